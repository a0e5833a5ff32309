"""Entering into the ledger what was paid for and the ledger doesn't know, so that no run pays for it again.

A ledger may be lost, or an older one may stand in its place. What was paid for is then looked for where it is told most
exactly: in the ledger's own copy, in what the batch left outside the ledger (metadata with its pictures, outcomes,
lineage, the pictures' marks), and in fal's list of what it was sent. What is found enters the ledger by its own
transitions, each of which can be made once: a run that works meanwhile is never overtaken.

A request with all of its pictures in the store is settled; one of which fal's id is known is submitted, and the next
run fetches it. One that was paid for and of which nothing more is known is reserved: unknown, and not paid for again
by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast, get_args

from ideogram_pipeline import marks
from ideogram_pipeline.errors import DamagedFile
from ideogram_pipeline.fal import FalClient, FalError
from ideogram_pipeline.fal.errors import RequestEnded
from ideogram_pipeline.generation import files, lost_ledgers
from ideogram_pipeline.generation.answers import Answers
from ideogram_pipeline.generation.books import RunFacts, settlement_of
from ideogram_pipeline.generation.ledger import (
    AlreadyWritten,
    CostSource,
    Entry,
    Ledger,
    Reserved,
    Settled,
    StoredImage,
    Submitted,
    damages,
    request_ids,
    restore_from_copy,
)
from ideogram_pipeline.generation.ledger import batches as batches_with_ledger
from ideogram_pipeline.generation.lost_ledgers import PaidRequest
from ideogram_pipeline.generation.matching import Listed, Matcher, Past, takes_of
from ideogram_pipeline.generation.picture_names import PREFIX, in_names
from ideogram_pipeline.generation.reconcile import digest
from ideogram_pipeline.generation.requests import GenerationRequest, PictureUse, fingerprint
from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow, PlannedRow
from ideogram_pipeline.generation.runs import holders, is_alive
from ideogram_pipeline.ideogram.endpoints import ENDPOINTS, RenderingSpeed
from ideogram_pipeline.ideogram.prices import price
from ideogram_pipeline.pictures import BadPicture, inspect
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables import erased
from ideogram_pipeline.tables.references import KEPT_COPY

_MAY_BE_ENTERED = ("new", "retryable", "reserved", "damaged")
"""What the ledger may say of a request, or not say, for another attempt of it to be entered."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """A request that the ledger knows now."""

    batch: str
    """The partition."""
    prompt_id: str
    """The row of the prompts table."""
    take: int
    """Which of its takes."""
    says: str
    """Where it was found, and what happens next."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was found and entered."""

    adopted: tuple[Adopted, ...]
    """What the ledger knows now."""
    left_open: tuple[str, ...]
    """What may have been paid for and could not be entered, and why; and why more may be missing."""
    not_found: int
    """Rows of the tables that nothing was found of: they are new, or fal lists them no longer."""
    lost: tuple[str, ...]
    """What was paid for once, and nothing tells any more what it was: no row asks for it."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What a batch's own files tell of a request that its ledger lacks."""

    paid: PaidRequest
    request: GenerationRequest
    images: Sequence[ImageRow] = ()
    outcome: OutcomeRow | None = None


async def adopt(
    fal: FalClient,
    store: Store,
    tables: Mapping[str, Sequence[GenerationRequest]],
    *,
    run: RunFacts,
    told: Callable[[str], None],
) -> Adoption:
    """Enter what was paid for and the ledger doesn't know: of each batch of `tables`, take 0 of its rows in order.

    `run` stands in the entries as who made them, unless the store tells of the run that paid. The batches have to be
    held meanwhile, as `runs.working` does. `told` hears how far it is.

    Raises:
        StoreError: the store is at fault. Ask again: it goes on where it was.
    """
    return await _Adopter(fal, store, run, told).adopted(tables)


class _Adopter:
    def __init__(
        self,
        fal: FalClient,
        store: Store,
        run: RunFacts,
        told: Callable[[str], None],
    ) -> None:
        self._fal = fal
        self._store = store
        self._run = run
        self._told = told
        self._adopted: list[Adopted] = []
        self._open: dict[str, str] = {}
        self._lost: list[str] = []
        stones = erased.tombstones(store)
        self._erased = erased.fingerprints(stones)
        self._taken = {one for stone in stones for one in stone.request_ids}
        self._ledgers: dict[str, Ledger] = {}
        self._living: dict[str, bool] = {}
        self._with_fal: list[GenerationRequest] = []

    async def adopted(self, tables: Mapping[str, Sequence[GenerationRequest]]) -> Adoption:
        restored = {batch: restore_from_copy(self._store, batch, but=self._erased) for batch in tables}
        for batch in sorted({*tables, *batches_with_ledger(self._store)}):
            self._told(f"the ledger of {batch}")
            ledger = self._ledgers[batch] = Ledger(self._store, batch)
            self._taken |= request_ids(ledger.entries.values())
        for batch, fingerprints in restored.items():
            for one in fingerprints:
                entry = self._ledgers[batch].entries.get(one)
                if entry and entry.attempts:
                    self._say(entry.last.reserved.request, "from the ledger's copy")
        leftovers: list[_Told] = []
        for batch, firsts in tables.items():
            self._told(f"what the batch {batch} left")
            leftovers += await self._from_results(batch, firsts)
        not_found, problems = await self._from_list(tables, leftovers)
        for batch in tables:
            self._ledgers[batch].keep_copy()
            for one, damage in damages(self._ledgers[batch].entries).items():
                self._open.setdefault(one, f"{batch}, {one[:PREFIX]}: {damage}")
        left_open = (*self._open.values(), *problems)
        return Adoption(tuple(self._adopted), left_open, not_found, tuple(self._lost))

    async def _from_results(self, batch: str, firsts: Sequence[GenerationRequest]) -> list[_Told]:
        """Enter what the batch's own files tell enough of; return what fal's list has to be asked of."""
        named = lost_ledgers.lacking(self._store, batch, self._ledgers[batch].entries)
        damaged = [one for one, entry in self._ledgers[batch].entries.items() if entry.state == "damaged"]
        named |= {one: PaidRequest(one, "", None, "") for one in damaged if one not in self._erased}
        named |= {
            one: PaidRequest(one, "", None, "")
            for one in lost_ledgers.gaps(self._store, batch)  # a row may ask for it now
            if one not in self._ledgers[batch].entries and one not in self._erased
        }
        if not named:
            return []
        reader = _Results(self._store, batch, named, firsts)
        leftovers = []
        for one in reader.told():
            if not await self._entered(one):
                leftovers.append(one)
        if reader.lost:
            lost_ledgers.keep_gaps(self._store, batch, [one.fingerprint for one in reader.lost])
        self._lost += [
            f"{batch}: {one.fingerprint[:PREFIX]} of {one.prompt_id}, named by {one.path}"
            for one in reader.lost
        ]
        return leftovers

    async def _entered(self, told: _Told) -> bool:
        """Enter a request if its batch's files say enough: its pictures, its refusal, or fal's id of it."""
        request, outcome = told.request, told.outcome
        if told.images and (settled := _settled(self._store, told.images)):
            first = told.images[0]
            return await self._enter(
                request,
                first.request_id,
                "from metadata.parquet; its pictures are there",
                at=first.submitted_at or first.completed_at,
                settled=settled,
                made_by=first,
            )
        if outcome and outcome.state == "refused" and outcome.request_id:
            return await self._enter(
                request,
                outcome.request_id,
                f"from outcomes.parquet: refused, {outcome.reason}",
                settled=_refused(outcome),
            )
        if request_id := told.paid.request_id:
            says = f"from {told.paid.path}: found as {request_id}; the next run fetches it"
            return await self._enter(request, request_id, says)
        return await self._entered_by_marks(request)

    async def _entered_by_marks(self, request: GenerationRequest) -> bool:
        """Enter a request of which only pictures are left: each says in its marks which request it is of."""
        images, said_of = [], {}
        for path in lost_ledgers.picture_paths(self._store, request.batch, request.fingerprint):
            content = self._store.get(path)
            with suppress(BadPicture):
                facts, said = inspect(content), marks.read(content)
                if said and said.fingerprint == request.fingerprint:
                    said_of[said.request_id] = said
                    images.append(
                        StoredImage(
                            index=said.image_index,
                            path=path,
                            sha256=facts.sha256,
                            sha256_received=facts.sha256,  # other bytes, which nobody knows: it was marked
                            prompt_marked=said.prompt is not None,
                            marks_version=said.version,
                            perceptual_hash=facts.perceptual_hash,
                            bytes=facts.bytes,
                            width=facts.width,
                            height=facts.height,
                            format=facts.kind,
                        )
                    )
        if len(said_of) != 1:
            return False
        [(request_id, said)] = said_of.items()
        if len(images) < request.num_images:
            says = f"from its pictures' marks: found as {request_id}; the next run fetches it"
            return await self._enter(request, request_id, says)
        settled = Settled(
            state="generated",
            images=tuple(sorted(images, key=lambda image: image.index)),
            seed=said.seed,
            completed_at=datetime.now(UTC),
            cost_usd=request.price_usd,
            cost_source="unknown" if request.price_usd is None else "price_list",
        )
        return await self._enter(request, request_id, "from its pictures and their marks", settled=settled)

    async def _from_list(
        self, tables: Mapping[str, Sequence[GenerationRequest]], leftovers: Sequence[_Told]
    ) -> tuple[int, list[str]]:
        """Enter what fal's list holds; return how many rows nothing was found of, and why more may be missing."""
        firsts = [first for of_batch in tables.values() for first in of_batch]
        exactly = [told.request for told in leftovers]
        listed = await Matcher(
            self._fal, self._store, [*firsts, *exactly], taken=self._taken, told=self._told
        ).look()
        not_found = 0
        for first in firsts:
            not_found += not await self._take_by_take(first, listed)
        for request in self._with_fal:
            if listed.holds(request):
                await self._enter_retry(request, listed)
        for request in exactly:
            if self._may_be_entered(request) and not await self._listed(request, listed):
                reason = "it was paid for, and neither its batch's files nor fal's list tell more of it"
                await self._enter_as_unknown(request, reason)
        problems = list(listed.problems)
        if not_found and listed.without_input:
            problems.append(
                f"fal's list holds {len(listed.without_input)} requests without what was sent; nobody can tell whether "
                "they are of these rows"
            )
        return not_found, problems

    async def _take_by_take(self, first: GenerationRequest, listed: Listed) -> bool:
        """Enter a row's takes as long as there is one; say whether the ledger knows any of them now."""
        known = False
        for request in takes_of(first):
            if self._may_be_entered(request) and not await self._listed(request, listed):
                break
            if self._entry(request).state == "submitted":
                self._with_fal.append(request)
            known = True
        return known or self._entry(first).state in ("reserved", "damaged")

    async def _listed(self, request: GenerationRequest, listed: Listed) -> bool:
        """Enter a request that fal's list holds."""
        if past := listed.take(request):
            says = f"from fal's list: found as {past.request_id}; the next run fetches it"
            return await self._enter(request, past.request_id, says, past=past)
        if past := listed.take_unreadable(request):
            reason = (
                f"fal was sent the same as {past.request_id}, but for pictures that nobody can read any more; look at "
                "it on fal's site"
            )
            await self._enter_as_unknown(request, reason)
        return False

    async def _enter_retry(self, request: GenerationRequest, listed: Listed) -> None:
        """Enter what was sent after a request had ended that the ledger, an older one, still holds as with fal.

        That it ended has to be proven first: until then it may bring its picture, and the other request is somebody's.
        """
        ledger, last = self._ledgers[request.batch], self._entry(request).last
        assert last.submitted is not None
        row = f"{request.batch}, {request.prompt_id}"
        others = set(await asyncio.to_thread(holders, self._store, request.batch)) - {self._run.run_id}
        if others:
            told = f"{row}: run {min(others)} works on the batch at this moment; adopt again later"
            self._open.setdefault(request.fingerprint, told)
            return
        queued = self._fal.attach(request.endpoint_id, last.submitted.request_id)
        try:
            await Answers(self._fal, None).output(last.reserved, queued)
        except RequestEnded as error:
            with suppress(AlreadyWritten):
                await ledger.settle(request.fingerprint, settlement_of(error), attempt=last.reserved.attempt)
            if self._may_be_entered(request):
                await self._listed(request, listed)
        except FalError as error:
            told = (
                f"{row}: fal was sent the same as {queued.request_id} once more, and how that one ended can't be read "
                f"yet; adopt again before the next run: {error}"
            )
            self._open.setdefault(request.fingerprint, told)

    def _entry(self, request: GenerationRequest) -> Entry:
        return self._ledgers[request.batch].entries.get(request.fingerprint, Entry())

    def _may_be_entered(self, request: GenerationRequest) -> bool:
        return self._entry(request).state in _MAY_BE_ENTERED and request.fingerprint not in self._erased

    async def _is_left_to_its_run(self, request: GenerationRequest) -> bool:
        """Say whether a live run has reserved a request: the answer on its way to that run may name another one."""
        entry = self._entry(request)
        if entry.state != "reserved":
            return False
        owner = entry.last.reserved.owner
        if owner not in self._living:
            self._living[owner] = await is_alive(self._store, owner)
        if not self._living[owner]:
            self._ledgers[request.batch].catch_up()  # nobody else goes on with it now
            return False
        told = f"{request.batch}, {request.prompt_id}: run {owner} is submitting it at this moment; adopt again later"
        self._open.setdefault(request.fingerprint, told)
        return True

    async def _enter_as_unknown(self, request: GenerationRequest, reason: str) -> None:
        """Keep a request from being paid for again by itself."""
        if self._entry(request).state in ("new", "retryable"):
            with suppress(AlreadyWritten):
                await self._reserve(request, datetime.now(UTC))
        self._open.setdefault(
            request.fingerprint,
            f"{request.batch}, {request.prompt_id}: {reason}. It is unknown, and not paid for again by itself",
        )

    async def _enter(
        self,
        request: GenerationRequest,
        request_id: str | None,
        says: str,
        *,
        at: datetime | None = None,
        past: Past | None = None,
        settled: Settled | None = None,
        made_by: ImageRow | None = None,
    ) -> bool:
        """Enter a request as submitted, and as settled where its end is known; say whether the ledger knows it now."""
        if await self._is_left_to_its_run(request):
            return False
        ledger, before = self._ledgers[request.batch], self._entry(request).state
        if before not in _MAY_BE_ENTERED:
            return True  # its run got the answer after all
        at = at or (past.sent_at if past else datetime.now(UTC))
        if request_id is None or request_id in self._taken:
            return False
        try:
            queued = self._fal.attach(request.endpoint_id, request_id)
            if before != "reserved":
                await self._reserve(request, at, past=past, made_by=made_by)
            await ledger.submitted(request.fingerprint, Submitted.of(queued, at))
            if settled:
                await ledger.settle(request.fingerprint, settled)
        except (AlreadyWritten, FalError):
            ledger.catch_up()
        if before == "damaged":
            ledger.catch_up()
        if self._may_be_entered(request):
            return False
        self._taken.add(request_id)
        self._say(request, says)
        return True

    async def _reserve(
        self,
        request: GenerationRequest,
        at: datetime,
        *,
        past: Past | None = None,
        made_by: ImageRow | None = None,
    ) -> None:
        reserved = Reserved(
            request=request,
            sent_sha256=past.sent_sha256 if past else digest(request.arguments),
            attempt=self._entry(request).next_attempt,
            owner=made_by.dagster_run_id if made_by else self._run.run_id,
            reserved_at=at,
            backend=made_by.backend if made_by else self._run.backend,
            code_version=made_by.code_version if made_by else self._run.code_version,
        )
        await self._ledgers[request.batch].reserve(reserved)

    def _say(self, request: GenerationRequest, says: str) -> None:
        self._adopted.append(Adopted(request.batch, request.prompt_id, request.take, says))


class _Results:
    """What a batch's files tell of requests that its ledger lacks."""

    def __init__(
        self, store: Store, batch: str, named: Mapping[str, PaidRequest], firsts: Iterable[GenerationRequest]
    ) -> None:
        self.lost: list[PaidRequest] = []
        """What nothing tells any more what it asked for; known once `told` is through."""
        self._named = named
        self._images: dict[str, list[ImageRow]] = defaultdict(list)
        for row in _rows(store, files.metadata_path(batch), ImageRow, named):
            self._images[row.fingerprint].append(row)
        ended = _rows(store, files.outcomes_path(batch), OutcomeRow, named)
        self._outcomes = {row.fingerprint: row for row in ended if row.fingerprint}
        self._requests: dict[str, GenerationRequest] = {}
        self._look_at(self._of_metadata(store))
        self._look_at(_of_plans(store, batch))
        prompts = {paid.prompt_id for paid in named.values()}
        self._look_at(
            take
            for first in firsts
            for take in (
                takes_of(first) if prompts & {first.prompt_id, in_names(first.prompt_id), ""} else [first]
            )
        )

    def told(self) -> Iterator[_Told]:
        """Yield what is known of each request, in the order of their fingerprints."""
        for name, paid in sorted(self._named.items()):
            request = self._requests.get(name)
            if request:
                images = self._images.get(request.fingerprint, [])
                yield _Told(paid, request, images, self._outcomes.get(request.fingerprint))
            elif paid.path:
                self.lost.append(paid)

    def _look_at(self, requests: Iterable[GenerationRequest]) -> None:
        for request in requests:
            for name in (request.fingerprint, request.fingerprint[:PREFIX]):
                if name in self._named:
                    self._requests[name] = request

    def _of_metadata(self, store: Store) -> Iterator[GenerationRequest]:
        names = (KEPT_COPY.fullmatch(found.path) for found in store.objects("references"))
        copies = {name[1]: name[0] for name in names if name}
        rows = [rows[0] for rows in self._images.values()]
        takes = {(row.prompt_id, row.endpoint, row.take): row.fingerprint for row in rows}
        for row in rows:
            before = takes.get((row.prompt_id, row.endpoint, row.take - 1)) if row.take else None
            if request := _request_of(row, copies, before):
                yield request


def _rows(
    store: Store, path: str, model: type[Any], fingerprints: Mapping[str, PaidRequest]
) -> Iterator[Any]:
    """Yield the rows of a file about some requests; none of one that isn't there, or is damaged."""
    with suppress(FileNotFoundError, DamagedFile, ValueError):
        yield from parquet.read(store, path, model, where=("fingerprint", fingerprints))


def _of_plans(store: Store, batch: str) -> Iterator[GenerationRequest]:
    """Yield the requests that runs of a batch were asked for."""
    folders = (f"run_plans/batch={batch}", f"plans/batch={batch}")
    for path in [found.path for folder in folders for found in store.objects(folder)]:
        with suppress(FileNotFoundError, DamagedFile, ValueError):
            for row in parquet.read(store, path, PlannedRow):
                if request := row.request:
                    yield request


def _request_of(row: ImageRow, copies: Mapping[str, str], replaces: str | None) -> GenerationRequest | None:
    """Return the request that a picture's row tells; None if it isn't the one whose fingerprint the row has."""
    arguments, endpoint = json.loads(row.request_json), ENDPOINTS.get(row.endpoint)
    if endpoint is None or row.fingerprint != fingerprint(row.prompt_id, endpoint.id, arguments, row.take):
        return None
    single = [
        (name, (row_id,), (sha256,))
        for name, row_id, sha256 in (
            ("image_url", row.image_id, row.image_sha256),
            ("mask_url", row.mask_id, row.mask_sha256),
        )
        if row_id and sha256
    ]
    used = [
        ("reference_image_urls", row.reference_ids, row.reference_sha256s),
        ("reference_mask_urls", row.reference_mask_ids, row.reference_mask_sha256s),
        ("image_urls", row.style_reference_ids, row.style_reference_sha256s),
        *single,
    ]
    sent = json.loads(row.sent_sha256s)
    return GenerationRequest(
        prompt_id=row.prompt_id,
        batch=row.batch,
        row_number=0,
        endpoint=endpoint.name,
        arguments=arguments,
        pictures=tuple(
            PictureUse(
                field=name,
                reference_id=one,
                uri="",
                sha256=sha256,
                path=copies.get(sha256, ""),
                sent_sha256=sent.get(sha256),
            )
            for name, ids, digests in used
            for one, sha256 in zip(ids, digests, strict=True)
        ),
        fingerprint=row.fingerprint,
        take=row.take,
        replaces=replaces,
        price_usd=price(endpoint.name, cast(RenderingSpeed, row.rendering_speed), row.num_images),
        extra=row.extra,
    )


def _settled(store: Store, rows: Sequence[ImageRow]) -> Settled | None:
    """Return the end that the rows of a request's pictures tell, if each of them lies whole in the store."""
    images = []
    for row in sorted(rows, key=lambda row: row.image_index):
        path = f"images/batch={row.batch}/{row.file_name}"
        try:
            content = store.get(path)
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest() != row.sha256:
            return None
        said = marks.read(content)
        images.append(
            StoredImage(
                index=row.image_index,
                path=path,
                sha256=row.sha256,
                sha256_received=row.sha256_received if row.sha256_received != row.sha256 else None,
                prompt_marked=said is not None and said.prompt is not None,
                marks_version=said.version if said else marks.VERSION,
                unmarked_because=row.unmarked_because or "",
                manifest_id=row.manifest_id,
                stamped_at=row.stamped_at,
                unstamped_because=row.unstamped_because or "",
                perceptual_hash=row.perceptual_hash,
                face_distance=row.face_distance,
                bytes=row.bytes,
                width=row.width,
                height=row.height,
                format=row.format,
            )
        )
    last = rows[-1]
    cost = None if last.cost_usd is None else _dollars(last.cost_usd * len(rows))
    return Settled(
        state="generated",
        images=tuple(images),
        seed=last.seed_returned,
        inference_s=last.inference_s,
        completed_at=last.completed_at,
        cost_usd=cost,
        cost_source=_source(last.cost_source if cost is not None else "unknown"),
    )


def _refused(row: OutcomeRow) -> Settled:
    return Settled(
        state="refused",
        reason=row.reason,
        completed_at=datetime.now(UTC),
        cost_usd=None if row.cost_usd is None else _dollars(row.cost_usd),
        cost_source=_source(row.cost_source),
    )


def _source(text: str) -> CostSource:
    return next((one for one in get_args(CostSource) if one == text), "unknown")


def _dollars(usd: float) -> Decimal:
    return Decimal(str(round(usd, 6)))

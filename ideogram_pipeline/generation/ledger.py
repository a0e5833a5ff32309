"""The ledger: what is known of every request's money, in files that are each written once and never changed.

Under `ledger/batch=<batch>/<fingerprint>/` each attempt to submit a request leaves up to four files:

    1-reserved.json     before the POST: who is about to pay, when and how much
    1-released.json     the POST certainly never reached fal; the next attempt may follow
    1-submitted.json    fal's request id and URLs, before anything else is awaited
    1-settled.json      how it ended: generated, refused or failed, with files, hashes and cost
    1-billed.json       what fal says it charged, once somebody has asked; it overrides the cost of the settlement

`ledger_copies/batch=<batch>.gz` repeats them, so that a ledger is opened with few requests; it may be deleted.
Every file is created only if it isn't there, so each transition happens once, whoever tries; a fingerprint whose
attempt is reserved but neither released nor submitted has an unknown answer and is never submitted again by itself.

An empty file is one that a power cut left, and its transition did not happen: whoever wrote it went on only once the
bytes were on the disk. So an empty file with later ones beside it was damaged, and so was one that can't be read. Its
entry is `damaged`: nothing is submitted or fetched for that fingerprint, and no other one is kept from anything.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from gzip import GzipFile
from io import BytesIO
from itertools import count, groupby, islice
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ideogram_pipeline.fal import QueuedRequest
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.ideogram.endpoints import MAX_SEED
from ideogram_pipeline.packing import Packer
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables import erased
from ideogram_pipeline.tables.rows import is_name

MAX_ATTEMPTS = 3
"""A request is submitted at most this often, over all runs, counting the times its POST may have reached fal.

Those that ended because fal could not fetch from a signed URL or an address don't count.
"""
UNFETCHED = "file_download_error"
"""fal's type of a refusal because a picture could not be fetched; it stands in the reason."""
NOT_COPIED = 32
"""So many files are read one by one rather than copied."""

_GZIP = 31

CostSource = Literal["billing_event", "billable_units_header", "price_list", "unknown"]
"""Who says what something cost, the strongest proof first."""
EntryState = Literal["new", "reserved", "submitted", "retryable", "generated", "refused", "failed", "damaged"]


_LONGEST_INFERENCE_S = 7 * 86_400


def _at_most(most: int) -> BeforeValidator:
    """Take a number that fal named for absent where it is below zero, not finite, or beyond all reason.

    Such numbers stand in ledgers that were written before they were checked, and no ledger file is ever changed.
    """

    def within(value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number and 0 <= value <= most else None

    return BeforeValidator(within)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, cache_strings="keys")


class Reserved(_Record):
    """The intent to pay, durable before the POST."""

    request: GenerationRequest = Field(description="What is about to be sent.")
    sent_sha256: str = Field(
        description="Hex digest of the body as sent, by which fal's list of requests is searched."
    )
    uploaded: bool = Field(
        default=False,
        description="Whether fal was given the bytes of every picture: uploaded to it, or inside the request.",
    )
    attempt: int = Field(description="1 for the first submit of this fingerprint.")
    owner: str = Field(description="The run that reserved it.")
    reserved_at: datetime = Field(description="UTC.")
    backend: str = Field(description="`fal` or `sandbox`.")
    code_version: str = Field(description="Version of this package.")


class Released(_Record):
    """The proof that an attempt's POST was never accepted."""

    released_at: datetime = Field(description="UTC.")
    reason: str = Field(description="What fal or the network answered.")


class Submitted(_Record):
    """fal's answer to the POST, durable before anything else is awaited."""

    request_id: str = Field(description="fal's id of the request.")
    status_url: str = Field(description="As fal gave it.")
    response_url: str = Field(description="As fal gave it.")
    cancel_url: str = Field(description="As fal gave it.")
    submitted_at: datetime = Field(description="UTC, when the answer had arrived.")
    accepted_at: datetime | None = Field(
        default=None, description="The same by fal's own clock, where its answer told the time."
    )

    @classmethod
    def of(cls, queued: QueuedRequest, at: datetime) -> Submitted:
        """Return what is known of a request that fal has accepted, or that was attached to."""
        return cls(
            request_id=queued.request_id,
            status_url=queued.status_url,
            response_url=queued.result_url,
            cancel_url=queued.cancel_url,
            submitted_at=at,
            accepted_at=queued.accepted_at,
        )


class StoredImage(_Record):
    """One picture in the store."""

    index: int = Field(description="Position in fal's answer, from 0.")
    path: str = Field(description="Path in the store.")
    sha256: str = Field(description="Hex digest of the file.")
    sha256_received: str | None = Field(
        default=None, description="Hex digest of what fal sent, where marks were put into it."
    )
    unmarked_because: str = Field(
        default="", description="Why marks or a signature could not be put into it; empty where they could."
    )
    prompt_marked: bool = Field(default=False, description="Whether the marks were to tell the prompt.")
    manifest_id: str | None = Field(
        default=None, description="Identity of the Content Credentials it was signed with, if it was."
    )
    perceptual_hash: str | None = Field(
        default=None, description="What it looks like, as `likeness` has it, where its pixels were decoded."
    )
    face_distance: float | None = Field(
        default=None, description="How far its face is from its reference's, where that was measured."
    )
    bytes: int = Field(description="Length of the file.")
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    format: str = Field(description="`png`, `jpeg` or `webp`, from the bytes.")


class Settled(_Record):
    """How an attempt ended."""

    state: Literal["generated", "refused", "failed"] = Field(description="The end.")
    reason: str = Field(default="", description="Why, for a refusal or failure.")
    retryable: bool = Field(
        default=False, description="The request ended without a result and a new one may succeed."
    )
    images: tuple[StoredImage, ...] = Field(default=(), description="The pictures, all in the store.")
    seed: Annotated[int | None, _at_most(MAX_SEED)] = Field(
        default=None, description="The seed that fal says it used, if it is a valid one."
    )
    inference_s: Annotated[float | None, _at_most(_LONGEST_INFERENCE_S)] = Field(
        default=None, description="Seconds of work, as fal measured them, if that is a possible time."
    )
    completed_at: datetime = Field(description="UTC, when the end was seen.")
    cost_usd: Decimal | None = Field(description="US dollars for the request, or None if not known.")
    cost_source: CostSource = Field(description="Who says what it cost.")


class Billed(_Record):
    """What fal says it charged for a request (fal docs, billing events), in US dollars."""

    request_id: str = Field(description="fal's id of the request.")
    units: Decimal | None = Field(description="Units charged, such as pictures, where fal says how many.")
    unit_price_usd: Decimal | None = Field(
        description="Price of one unit before discounts, where fal says it."
    )
    usd: Decimal = Field(description="What was charged, after discounts.")
    billed_at: datetime = Field(description="When fal booked it.")
    read_at: datetime = Field(description="UTC, when it was read; what fal corrects later is not seen.")


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost, and who says so."""

    usd: Decimal | None
    """US dollars, or None if not known."""
    source: CostSource
    """`unknown` where the dollars are."""


_NOTHING = Cost(Decimal(0), "price_list")
_UNKNOWN = Cost(None, "unknown")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to submit a request, as far as it got."""

    reserved: Reserved
    """Who tried."""
    released: Released | None = None
    """Proof that it cost nothing, if there is."""
    submitted: Submitted | None = None
    """fal's answer, if it came."""
    settled: Settled | None = None
    """The end, if it was seen."""
    billed: Billed | None = None
    """What fal says it charged, if that was read."""

    @property
    def expected(self) -> Cost:
        """What it cost as far as that can be told without fal's bill: nothing if it was never accepted."""
        if self.released:
            return _NOTHING
        return Cost(self.settled.cost_usd, self.settled.cost_source) if self.settled else _UNKNOWN

    @property
    def cost(self) -> Cost:
        """What it cost: what fal's bill says, else what was expected."""
        return Cost(self.billed.usd, "billing_event") if self.billed else self.expected

    @property
    def was_not_fetched(self) -> bool:
        """Whether it ended because fal could not read a picture where it lies; the next attempt uploads it."""
        ended = self.settled is not None and self.settled.retryable and UNFETCHED in self.settled.reason
        return ended and not self.reserved.uploaded


@dataclass(frozen=True, slots=True)
class Entry:
    """All attempts of one fingerprint, oldest first."""

    attempts: tuple[Attempt, ...] = field(default=())
    """Never empty in a ledger, unless it is damaged."""
    damage: str = ""
    """Which file can't be read and what to do, where one can't; the attempts are those whose reservation can."""

    @property
    def last(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def next_attempt(self) -> int:
        """Number of the attempt that would follow; an earlier one's files may be missing."""
        return self.last.reserved.attempt + 1 if self.attempts else 1

    @property
    def request_ids(self) -> tuple[str, ...]:
        """fal's ids of all attempts that it accepted."""
        return tuple(attempt.submitted.request_id for attempt in self.attempts if attempt.submitted)

    @property
    def paid_attempts(self) -> int:
        """Attempts whose POST may have reached fal."""
        return sum(attempt.released is None for attempt in self.attempts)

    @property
    def lost_attempts(self) -> int:
        """Attempts whose POST may have reached fal, and whose answer is not known."""
        return sum(not (attempt.released or attempt.submitted) for attempt in self.attempts)

    @property
    def cost(self) -> Cost:
        """What all attempts cost together, not known if one isn't; its source is the weakest of those that cost any."""
        if self.damage:
            return _UNKNOWN
        costs = [attempt.cost for attempt in self.attempts if not attempt.released]
        known = [cost.usd for cost in costs if cost.usd is not None]
        if len(known) < len(costs):
            return _UNKNOWN
        paid = [cost for cost in costs if cost.usd] or costs or [_NOTHING]
        return Cost(
            sum(known, Decimal(0)), max((cost.source for cost in paid), key=get_args(CostSource).index)
        )

    @property
    def state(self) -> EntryState:
        """What may be done next: submit (`new`, `retryable`), fetch (`submitted`), wait (`reserved`), or nothing."""
        if self.damage:
            return "damaged"
        if not self.attempts or self.last.released:
            return "retryable" if self.paid_attempts else "new"
        if self.last.settled:
            tried = sum(not (attempt.released or attempt.was_not_fetched) for attempt in self.attempts)
            again = self.last.settled.retryable and tried < MAX_ATTEMPTS
            return "retryable" if again else self.last.settled.state
        return "submitted" if self.last.submitted else "reserved"


class AlreadyWritten(Exception):
    """Another run made this transition first; the entry now says what that run wrote."""


_READ_AT_ONCE = 1_000
"""Files that are read side by side, which bounds what reading takes beside what is kept."""
_READ_BYTES = 1 << 16
_NAME = re.compile(
    r"(?P<fingerprint>[0-9a-f]{64})/(?P<attempt>[1-9]\d{0,8})-(?P<step>reserved|released|submitted|settled|billed)\.json"
)
_STEPS: Mapping[str, type[_Record]] = {
    "reserved": Reserved,
    "released": Released,
    "submitted": Submitted,
    "settled": Settled,
    "billed": Billed,
}
"""In the order in which they are made; `released` and `submitted` exclude each other."""
_DAMAGED = "damaged"
"""Stands among an entry's files for all that can't be read, with what there is to say."""
_UNREADABLE = b"\0"
"""Stands for the bytes of a file that can't be read."""


class Entries(Mapping[str, Entry]):
    """The entries of one batch by fingerprint, kept as the packed text of their files.

    As objects they take twenty times the memory, and a large batch holds thousands that nobody looks at before the end.
    So an entry is made when it is asked for, and kept only while its request is being worked on.
    """

    def __init__(self) -> None:
        self.damaged: set[str] = set()
        """The fingerprints of entries that are damaged."""
        self._packed: dict[str, bytes] = {}
        self._at_work: dict[str, tuple[bytes, Entry]] = {}
        self._packer = Packer()

    def __getitem__(self, fingerprint: str) -> Entry:
        """Return what is known of a fingerprint."""
        if at_work := self._at_work.get(fingerprint):
            return at_work[1]
        return _entry(self._packer.unpacked(self._packed[fingerprint]))

    def __contains__(self, fingerprint: object) -> bool:
        """Say whether anything is known of a fingerprint."""
        return fingerprint in self._packed

    def __iter__(self) -> Iterator[str]:
        """Yield the fingerprints."""
        return iter(self._packed)

    def __len__(self) -> int:
        """Return how many fingerprints are known."""
        return len(self._packed)

    def files(self, fingerprint: str) -> bytes:
        """Return the files of a fingerprint, one a line after its name, such as `1-reserved`."""
        if at_work := self._at_work.get(fingerprint):
            return at_work[0]
        packed = self._packed.get(fingerprint)
        return self._packer.unpacked(packed) if packed else b""

    def found(self, fingerprint: str, files: bytes) -> None:
        """Take what the store has of a fingerprint, one file a line, in place of what was known."""
        self._packed[fingerprint] = self._packer.packed(files)
        self._at_work.pop(fingerprint, None)
        if any(step == _DAMAGED for _, step, _ in _lines(files)):
            self.damaged.add(fingerprint)
        else:
            self.damaged.discard(fingerprint)

    def wrote(self, fingerprint: str, line: bytes, entry: Entry) -> None:
        """Take a file that was just written, and the entry with it."""
        files = self.files(fingerprint) + line
        if entry.state in ("reserved", "submitted"):
            self._at_work[fingerprint] = files, entry
            self._packed.setdefault(fingerprint, b"")
        else:
            self.found(fingerprint, files)


class Ledger:
    """The ledger of one batch: read whole when opened, kept up to date with what this process writes.

    Each transition can be made once; the methods that make one raise `AlreadyWritten` where another run has made it.
    """

    def __init__(self, store: Store, batch: str, *, with_erased: bool = False) -> None:
        """Read what the store has; of what was erased and came back from a backup nothing is known, unless asked for.

        Raises:
            StoreError: the ledger can't be read, or not what was erased.
        """
        self.batch = batch
        """The partition."""
        self._store = store
        stones = () if with_erased else erased.tombstones(store)
        self._gone = erased.fingerprints(stones) | erased.by_digest(stones).keys()
        self._folder = _folder(batch)
        self.entries = Entries()
        """What is known, by fingerprint."""
        self._copy = _copy_path(batch)
        self._not_copied = 0
        self._mark = ""
        self._read(self._folder)

    def catch_up(self) -> str:
        """Read what other runs have written since, and return a mark that changes with every file of the ledger."""
        listed = self._listed(self._folder)
        mark = hashlib.sha256(b"\n".join(listed)).hexdigest()
        if mark == self._mark:
            return mark
        self._mark = mark
        for fingerprint, files in groupby(listed, key=_fingerprint):
            known = {(attempt, step) for attempt, step, _ in _lines(self.entries.files(fingerprint))}
            if known != {_named(file)[1:] for file in files}:
                self._read(f"{self._folder}/{fingerprint}")
        return mark

    async def reserve(self, reserved: Reserved) -> None:
        """Claim an attempt."""
        fingerprint = reserved.request.fingerprint
        earlier = self.entries[fingerprint].attempts if fingerprint in self.entries else ()
        after = Entry((*earlier, Attempt(reserved)))
        await self._create(fingerprint, reserved.attempt, "reserved", reserved, after)

    async def release(self, fingerprint: str, released: Released) -> None:
        """Record that the last attempt was never accepted."""
        await self._advance(fingerprint, "released", released)

    async def submitted(self, fingerprint: str, submitted: Submitted) -> None:
        """Record fal's answer to the last attempt."""
        await self._advance(fingerprint, "submitted", submitted)

    async def settle(self, fingerprint: str, settled: Settled, *, attempt: int | None = None) -> None:
        """Record how an attempt ended: the one with this number, for another run may have retried; else the last."""
        numbers = [one.reserved.attempt for one in self.entries[fingerprint].attempts]
        position = numbers.index(attempt) if attempt is not None else -1
        await self._advance(fingerprint, "settled", settled, position)

    async def billed(self, fingerprint: str, billed: Billed) -> None:
        """Record what fal charged for the attempt with the bill's request id, whether it is the last one or not."""
        entry = self.entries[fingerprint]
        [position] = [
            position
            for position, attempt in enumerate(entry.attempts)
            if attempt.submitted and attempt.submitted.request_id == billed.request_id
        ]
        await self._advance(fingerprint, "billed", billed, position)

    async def _advance(self, fingerprint: str, step: str, record: _Record, position: int = -1) -> None:
        attempts = list(self.entries[fingerprint].attempts)
        attempts[position] = replace(attempts[position], **{step: record})  # type: ignore[arg-type]  # step names a field of its record's type
        number = attempts[position].reserved.attempt
        await self._create(fingerprint, number, step, record, Entry(tuple(attempts)))

    async def _create(self, fingerprint: str, attempt: int, step: str, record: _Record, after: Entry) -> None:
        folder, content = f"{self._folder}/{fingerprint}", record.model_dump_json().encode()
        path = f"{folder}/{attempt}-{step}.json"
        if not await self._store.create_async(path, content):
            cut = await asyncio.to_thread(self._store.delete_empty, path)
            if not (cut and await self._store.create_async(path, content)):
                await asyncio.to_thread(self._read, folder)
                raise AlreadyWritten(path)
        self._not_copied += 1
        self.entries.wrote(fingerprint, _line(attempt, step, content), after)

    def keep_copy(self) -> None:
        """Keep all that is known in one object too, so that opening takes three requests instead of several a row.

        Every file stays what counts: the copy stands in for those that a listing shows as they were when it was made.
        """
        if self._not_copied <= NOT_COPIED:
            return
        packed = zlib.compressobj(1, wbits=_GZIP)
        parts = []
        for fingerprint, files in groupby(self._listed(self._folder), key=_fingerprint):
            known = {
                (attempt, step): content for attempt, step, content in _lines(self.entries.files(fingerprint))
            }
            for file in files:
                _, attempt, step = _named(file)
                content = known.get((attempt, step), b"")
                if len(content) == int(file.split(b":")[1]):
                    parts.append(packed.compress(b"%s %s\n" % (file, content)))
        self._store.put(self._copy, b"".join([*parts, packed.flush()]))
        self._not_copied = 0

    def _read(self, folder: str) -> None:
        files = self._listed(folder)
        use_copy = folder == self._folder and len(files) > NOT_COPIED
        joined = _joined(files, _copied(self._store, self._copy) if use_copy else iter(()))

        def read(known: tuple[bytes, bytes]) -> bytes:
            file, copied = known
            return copied or self._content(f"{self._folder}/{file.partition(b':')[0].decode()}")

        def contents(threads: ThreadPoolExecutor) -> Iterator[tuple[bytes, bytes]]:
            while part := list(islice(joined, _READ_AT_ONCE)):
                self._not_copied += sum(not copied for _, copied in part)
                yield from zip((file for file, _ in part), threads.map(read, part), strict=True)

        with ThreadPoolExecutor(max_workers=16) as threads:
            for fingerprint, found in groupby(contents(threads), key=lambda one: _fingerprint(one[0])):
                self._found(fingerprint, found)

    def _found(self, fingerprint: str, files: Iterable[tuple[bytes, bytes]]) -> None:
        """Take what was read of a fingerprint's files: each by its word in the listing, with its bytes."""
        steps = {(attempt, step): content for file, content in files for _, attempt, step in [_named(file)]}
        whole = {one: content for one, content in steps.items() if content not in (b"", _UNREADABLE)}
        lines = [_line(*one, whole[one]) for one in sorted(whole)]
        if damaged := min(_damaged(steps), key=_order, default=None):
            advice = self._advice(fingerprint, *damaged, has_bytes=steps.get(damaged) == _UNREADABLE)
            lines.append(_line(damaged[0], _DAMAGED, advice.encode()))
        if lines and not self.was_erased(fingerprint, *whole.values()):
            self.entries.found(fingerprint, b"".join(lines))

    def _advice(self, fingerprint: str, attempt: int, step: str, *, has_bytes: bool) -> str:
        where = self._store.where(f"{self._folder}/{fingerprint}/{attempt}-{step}.json")
        if step != "reserved":
            or_else = "or remove it: the row then goes one step back and is looked for at fal, and is not paid again"
        elif has_bytes:  # it stands in the way of what would be entered
            or_else = "or remove it and have `ideogram-pipeline reconcile --adopt` enter what was paid before you run"
        else:
            or_else = "or have `ideogram-pipeline reconcile --adopt` enter what was paid"
        return (
            f"its ledger file {where!r} is missing or damaged, so nobody knows whether it was paid, and it is not sent "
            f"again by itself. Restore the file from a backup, {or_else}."
        )

    def was_erased(self, fingerprint: str, *contents: bytes) -> bool:
        """Say whether a request, or what these files tell of, came from what was erased before this was opened."""
        if not self._gone:
            return False
        told = (digest for content in contents for digest in erased.DIGEST.findall(content.decode()))
        return fingerprint in self._gone or not self._gone.isdisjoint(told)

    def _listed(self, folder: str) -> list[bytes]:
        """Return the ledger's files below a folder, sorted: each as a word that no other has, nor it with other bytes.

        The word is the file's name below the ledger's folder, its size and the store's mark, with colons between.
        """
        below = len(self._folder) + 1
        return sorted(
            f"{found.path[below:]}:{found.size}:{found.etag}".replace(" ", "").encode()
            for found in self._store.objects(folder)
            if _NAME.fullmatch(found.path[below:])
        )

    def _content(self, path: str) -> bytes:
        """Return a ledger file's bytes: none if it is empty, and `_UNREADABLE` if they aren't what its name says."""
        content = self._store.get(path)
        if not content:
            return content
        fingerprint, _, step = _named(path.removeprefix(f"{self._folder}/").encode())
        try:
            record = _STEPS[step].model_validate_json(content)
        except ValueError:
            return _UNREADABLE
        if isinstance(record, Reserved) and record.request.fingerprint != fingerprint:
            return _UNREADABLE
        return content


def batches(store: Store) -> list[str]:
    """Return the batches that have a ledger, sorted; a copy of a batch's folder under another name is none."""
    found = [
        folder.removeprefix("batch=") for folder in store.folders("ledger") if folder.startswith("batch=")
    ]
    return [batch for batch in found if is_name(batch)]


def request_ids(entries: Iterable[Entry]) -> set[str]:
    """Return fal's ids of all attempts that it accepted."""
    return {one for entry in entries for one in entry.request_ids}


def damages(entries: Mapping[str, Entry]) -> dict[str, str]:
    """Return what can't be read of some entries, and what to do, by fingerprint."""
    return {one: entry.damage for one, entry in entries.items() if entry.damage}


def names(store: Store, batch: str) -> set[str]:
    """Return the fingerprints that a batch's ledger has a file of with anything in it, by its listing alone."""
    below = len(_folder(batch)) + 1
    found = (_NAME.fullmatch(one.path[below:]) for one in store.objects(_folder(batch)) if one.size)
    return {name["fingerprint"] for name in found if name}


def restore_from_copy(store: Store, batch: str, *, but: Collection[str]) -> list[str]:
    """Write the ledger files that a batch's copy has and its ledger lacks, or has empty; return their fingerprints.

    What the copy has of the fingerprints `but` stays away. A file that is there with bytes is never replaced.
    """
    folder, restored = _folder(batch), []
    there = {found.path: found.size for found in store.objects(folder)}
    for file, content in _copied(store, _copy_path(batch)):
        name, size, _ = file.decode().split(":", 2)
        fingerprint, path = name.partition("/")[0], f"{folder}/{name}"
        if fingerprint in but or there.get(path) or len(content) != int(size):
            continue
        store.delete_empty(path)
        if store.create(path, content, durable=True):
            restored.append(fingerprint)
    return list(dict.fromkeys(restored))


def _folder(batch: str) -> str:
    return f"ledger/batch={batch}"


def _copy_path(batch: str) -> str:
    return f"ledger_copies/batch={batch}.gz"


def _copied(store: Store, path: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield the files that a copy has and their bytes, sorted; none if there is no copy, or it is damaged."""
    try:
        packed = store.get(path)
        with GzipFile(fileobj=BytesIO(packed)) as whole:  # its checksum stands at its end
            while whole.read(_READ_BYTES):
                pass
    except (OSError, EOFError, zlib.error):
        return
    with GzipFile(fileobj=BytesIO(packed)) as lines:
        for line in lines:
            file, _, content = line.rstrip(b"\n").partition(b" ")
            yield file, content


def _joined(files: Iterable[bytes], copied: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield each of the files with its bytes in the copy, nothing where it has none; both are sorted."""
    name, content = next(copied, (b"", b""))
    for file in files:
        while name and name < file:
            name, content = next(copied, (b"", b""))
        yield file, content if name == file else b""


def _damaged(steps: Mapping[tuple[int, str], bytes]) -> Iterator[tuple[int, str]]:
    """Yield the files of an entry that can't be read, and those that must be there and aren't.

    A bill may be read before the end that it is for, and is never waited for.
    """
    last = max((one for one in steps if one[1] != "billed"), key=_order, default=None)
    for one, content in steps.items():
        if content == _UNREADABLE or (not content and one[1] != "billed" and one != last):
            yield one
    known = {attempt for attempt, _ in steps}
    missing = next(attempt for attempt in count(1) if (attempt, "reserved") not in steps)
    if missing < max(known, default=0) or missing in known:
        yield missing, "reserved"


def _order(one: tuple[int, str]) -> tuple[int, int]:
    return one[0], list(_STEPS).index(one[1])


def _named(file: bytes) -> tuple[str, int, str]:
    """Return the fingerprint, attempt and step that a ledger file's name tells."""
    name = _NAME.match(file.decode())
    assert name is not None
    return name["fingerprint"], int(name["attempt"]), name["step"]


def _fingerprint(file: bytes) -> str:
    return _named(file)[0]


def _line(attempt: int, step: str, content: bytes) -> bytes:
    return b"%d-%s %s\n" % (attempt, step.encode(), content.replace(b"\n", b" "))


def _lines(files: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Yield the attempt, step and content of each line."""
    for line in files.split(b"\n")[:-1]:
        name, _, content = line.partition(b" ")
        attempt, _, step = name.decode().partition("-")
        yield int(attempt), step, content


def _entry(files: bytes) -> Entry:
    attempts: dict[int, dict[str, _Record]] = defaultdict(dict)
    damage = ""
    for attempt, step, content in _lines(files):
        if step == _DAMAGED:
            damage = content.decode()
        else:
            attempts[attempt][step] = _STEPS[step].model_validate_json(content)
    told = tuple(Attempt(**steps) for steps in attempts.values() if "reserved" in steps)  # type: ignore[arg-type]  # each step was parsed as its own type
    return Entry(told, damage)

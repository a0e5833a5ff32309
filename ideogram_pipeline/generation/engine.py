"""The engine: works the requests of one batch through fal, each to a settled ledger entry, none twice.

A row is a loop over what the ledger says of it: reserve and submit, or wait and fetch, until its entry is settled. So a
row that another run left half-way simply enters the loop further down, and nothing is paid again. A picture lies in the
store before the ledger says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Protocol

from pydantic import JsonValue, ValidationError

from ideogram_pipeline.errors import PipelineError
from ideogram_pipeline.fal import CancelAnswer, Completed, FalClient, InQueue, QueuedRequest
from ideogram_pipeline.fal.errors import (
    AccessRefused,
    Cancelled,
    ConnectionFailed,
    FalError,
    ModelFailed,
    ModelRefused,
    RequestEnded,
    RequestNotFound,
    TooManyRequests,
)
from ideogram_pipeline.generation.budget import Budget, OverBudget, Reservation, UnknownPrice
from ideogram_pipeline.generation.ledger import (
    AlreadyWritten,
    CostSource,
    Entry,
    Ledger,
    Released,
    Reserved,
    Settled,
    StoredImage,
    Submitted,
)
from ideogram_pipeline.generation.outcomes import (
    Failed,
    Generated,
    NotReached,
    Outcome,
    Refused,
    Reused,
    Unknown,
)
from ideogram_pipeline.generation.polling import Kind, Polling, known_work
from ideogram_pipeline.generation.reconcile import digest, search
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.runs import beating, is_alive
from ideogram_pipeline.generation.uploads import ReferenceUrls
from ideogram_pipeline.generation.window import Place, Window
from ideogram_pipeline.ideogram.endpoints import File, Output
from ideogram_pipeline.pictures import EXTENSIONS, BadPicture, inspect_and_shrink
from ideogram_pipeline.storage import Store

MAX_PICTURE_BYTES = 50 * 1024 * 1024
"""No answer's picture is downloaded beyond this."""
DOWNLOAD_ATTEMPTS = 3
"""A picture that arrives damaged is fetched again this often in all."""
PATIENCE_S = 3600.0
"""A request that isn't done after so many seconds is left for the next run to fetch."""
THUMBNAIL_SIDE = 320
"""Pixels of a thumbnail's longer side."""
FINISHING = 16
"""So many requests at a time are fetched and stored, which bounds the pictures in memory."""
BRAKE_AFTER = 5
"""If so many rows have ended alike, without a picture, and none has ended with one, the batch stops."""

_UNANSWERED = "its submit was never answered; it may have been paid, and is not sent again by itself"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run writes into every entry it makes."""

    run_id: str
    """The Dagster run."""
    backend: str
    """`fal` or `sandbox`."""
    code_version: str
    """Version of this package."""


class Observer(Protocol):
    """Who wants to know how the run goes on. Called in the engine's event loop; must not block."""

    def ended(self, outcome: Outcome, spent_usd: Decimal) -> None:
        """Take note of a row's outcome and of the dollars settled in this run so far."""


class _LeftOpen(Exception):
    """A row ended in a way its ledger entry does not settle."""

    def __init__(self, kind: type[Failed | Unknown | NotReached], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


class _Limited(Exception):
    """fal takes no submit for now; this one was not accepted."""


class Engine:
    """Works the requests of one batch. One engine, one run."""

    def __init__(
        self,
        fal: FalClient,
        store: Store,
        ledger: Ledger,
        *,
        run: RunFacts,
        max_in_flight: int,
        inline_bytes: int,
        budget: Budget,
        observer: Observer,
    ) -> None:
        self._fal = fal
        self._store = store
        self._ledger = ledger
        self._run = run
        self._max_in_flight = max_in_flight
        self._budget = budget
        self._reservations: dict[str, Reservation] = {}
        self._observer = observer
        self._window = Window(max_in_flight)
        self._finishing = asyncio.Semaphore(FINISHING)
        self._polling = Polling(known_work(ledger.entries.values()))
        self._told = self._polling.revision
        self._news = asyncio.Event()
        self._references = ReferenceUrls(fal, store, inline_bytes=inline_bytes)
        self._queued: dict[str, QueuedRequest] = {}
        self._there: frozenset[str] = frozenset()
        self._submitting: set[asyncio.Task[None]] = set()
        self._stopped: str | None = None
        self._brake: Counter[str] | None = Counter()
        self.spent_usd = Decimal(0)
        """Dollars of everything settled in this run whose cost is known."""

    async def run(self, requests: Sequence[GenerationRequest]) -> list[Outcome]:
        """Work every request to its outcome, in order, at most `max_in_flight` at a time.

        Cancelling this call stops submitting at once, waits for the answers of submits that are on their way, and
        leaves the rest with fal, in the ledger, for the next run.

        Raises:
            PipelineError: the store failed; what was submitted is in the ledger.
        """
        outcomes: dict[int, Outcome] = {}
        self._there = await asyncio.to_thread(self._pictures_there, {request.batch for request in requests})
        try:
            async with beating(self._store, self._run.run_id):
                await self._work_all(list(enumerate(requests)), outcomes)
                await self._work_all(await self._found_after_all(outcomes), outcomes)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            if self._submitting:
                await asyncio.wait(self._submitting)
            await self._budget.close()
        for outcome in outcomes.values():
            if isinstance(outcome, Unknown):
                self._observer.ended(outcome, self.spent_usd)
        return [outcomes[position] for position in range(len(requests))]

    async def cancel_queued(self) -> int:
        """Cancel at fal what is submitted and hasn't ended; return how many were cancelled before any work.

        The newest goes first, so that no place falls free for one that is about to be cancelled.
        """
        cancelled = 0
        for fingerprint, queued in reversed(self._queued.items()):
            attempt = self._ledger.entries[fingerprint].last
            if attempt.submitted and not attempt.settled:
                cancelled += await self._cancel(attempt.reserved.request, queued)
        return cancelled

    def _pictures_there(self, batches: Iterable[str]) -> frozenset[str]:
        return frozenset(
            found.path for batch in batches for found in self._store.objects(f"images/batch={batch}")
        )

    async def _work_all(
        self, requests: Sequence[tuple[int, GenerationRequest]], outcomes: dict[int, Outcome]
    ) -> None:
        waiting = iter(requests)
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._max_in_flight + FINISHING, len(requests))):
                workers.create_task(self._work(waiting, outcomes))

    async def _found_after_all(self, outcomes: dict[int, Outcome]) -> list[tuple[int, GenerationRequest]]:
        """Look at fal for the submits that were never answered; return the rows that can be fetched now."""
        unknown = {
            outcome.request.fingerprint: position
            for position, outcome in outcomes.items()
            if isinstance(outcome, Unknown)
        }
        if not unknown:
            return []
        searched = await search(self._fal, self._ledger, unknown)
        for fingerprint, reason in searched.missing.items():
            request = outcomes[unknown[fingerprint]].request
            outcomes[unknown[fingerprint]] = Unknown(
                request, self._entry(request), f"{_UNANSWERED}; {reason}"
            )
        return [(unknown[found], outcomes[unknown[found]].request) for found in searched.found]

    async def _work(
        self, waiting: Iterator[tuple[int, GenerationRequest]], outcomes: dict[int, Outcome]
    ) -> None:
        for position, request in waiting:
            async with self._window.place() as place:
                outcomes[position] = await self._outcome(request, place)
            if not isinstance(outcomes[position], Unknown):
                self._observer.ended(outcomes[position], self.spent_usd)
        self._polling.nothing_left()
        self._tell_news()

    async def _outcome(self, request: GenerationRequest, place: Place) -> Outcome:
        known = self._entry(request).state == "generated"
        try:
            if known:
                await self._restore(request)
            while self._entry(request).state in ("new", "retryable", "submitted"):
                await place.take()
                if self._entry(request).state == "submitted":
                    await self._fetch(request, place)
                else:
                    try:
                        await self._submit(request)
                    except _Limited:
                        place.give_back()
        except _LeftOpen as end:
            return end.kind(request, self._entry(request), end.reason)
        except PipelineError:
            raise
        except Exception as error:
            _log.exception("prompt %s ended in an unexpected error", request.prompt_id)
            return Failed(
                request, self._entry(request), f"unexpected {type(error).__name__}; the log has the details"
            )
        return await self._ended(request, known)

    async def _ended(self, request: GenerationRequest, known: bool) -> Outcome:
        """Return the outcome that a row's ledger entry says, when there is nothing left to do for it."""
        entry = self._entry(request)
        reason = entry.last.settled.reason if entry.last.settled else ""
        match entry.state:
            case "generated":
                return Reused(request, entry) if known else Generated(request, entry)
            case "refused":
                return Refused(request, entry, reason)
            case "failed":
                return Failed(request, entry, reason)
        owner = entry.last.reserved.owner
        if await is_alive(self._store, owner):
            return NotReached(
                request, entry, f"run {owner} is submitting it now; run again to see how it ended"
            )
        return Unknown(request, entry, _UNANSWERED)

    async def _restore(self, request: GenerationRequest) -> None:
        """Fetch again the pictures of a settled request that are no longer in the store."""
        submitted, settled = self._entry(request).last.submitted, self._entry(request).last.settled
        assert submitted is not None
        assert settled is not None
        missing = [image for image in settled.images if image.path not in self._there]
        if not missing:
            return
        lost = f"{missing[0].path}, paid for as {submitted.request_id}, is gone from the store and can't be had again"
        try:
            result = await self._fal.result(self._fal.attach(request.endpoint_id, submitted.request_id))
            output = Output.model_validate(result.payload)
            restored = [
                await self._store_image(request, image.index, output.images[image.index]) for image in missing
            ]
        except (FalError, ValidationError, IndexError) as error:
            raise _LeftOpen(Failed, f"{lost}: {type(error).__name__}") from None
        if restored != missing:
            raise _LeftOpen(Failed, f"{lost}: fal has other bytes now")

    def _entry(self, request: GenerationRequest) -> Entry:
        return self._ledger.entries.get(request.fingerprint, Entry())

    async def _submit(self, request: GenerationRequest) -> None:
        if self._stopped:
            raise _LeftOpen(NotReached, self._stopped)
        try:
            arguments = await self._references.filled_in(request)
        except AccessRefused as error:
            self._stop(str(error))
        except FalError as error:
            raise _LeftOpen(NotReached, f"a reference could not be uploaded: {error}") from None
        # From here to the recorded answer nothing may be cut off: bytes that left are money that may be owed.
        task = asyncio.create_task(self._reserve_and_post(request, arguments))
        self._submitting.add(task)
        task.add_done_callback(self._submit_done)
        await asyncio.shield(task)

    def _submit_done(self, task: asyncio.Task[None]) -> None:
        self._submitting.discard(task)
        if not task.cancelled():
            task.exception()  # a row that was cancelled meanwhile no longer awaits it; the ledger has it

    async def _reserve_and_post(self, request: GenerationRequest, arguments: dict[str, JsonValue]) -> None:
        reserved = Reserved(
            request=request,
            sent_sha256=digest(arguments),
            attempt=len(self._entry(request).attempts) + 1,
            owner=self._run.run_id,
            reserved_at=datetime.now(UTC),
            backend=self._run.backend,
            code_version=self._run.code_version,
        )
        try:
            self._reservations[request.fingerprint] = await self._budget.reserve(request.price_usd)
        except OverBudget as reached:
            self._stop(str(reached))
        except UnknownPrice as refused:
            raise _LeftOpen(NotReached, str(refused)) from None
        try:
            await self._ledger.reserve(reserved)
        except AlreadyWritten:
            await self._return_money(request, Decimal(0))
            raise _LeftOpen(
                NotReached, "another run is working on this row; run again to see how it ended"
            ) from None
        sent_at = _now()
        try:
            queued = await self._fal.submit(request.endpoint_id, arguments)
        except RequestEnded as error:
            await self._settle_without_result(request, error)
            return
        except FalError as error:
            if error.may_be_billed:
                raise _LeftOpen(Unknown, str(error)) from None
            await self._ledger.release(
                request.fingerprint, Released(released_at=datetime.now(UTC), reason=error.message)
            )
            await self._return_money(request, Decimal(0))
            if isinstance(error, TooManyRequests) and self._window.limited(sent_at) < PATIENCE_S:
                raise _Limited from None
            if isinstance(error, AccessRefused | ConnectionFailed | TooManyRequests):
                self._stop(str(error))
            raise _LeftOpen(NotReached, str(error)) from None
        self._window.accepted(sent_at)
        self._queued[request.fingerprint] = queued
        submitted = Submitted(
            request_id=queued.request_id,
            status_url=queued.status_url,
            response_url=queued.result_url,
            cancel_url=queued.cancel_url,
            submitted_at=datetime.now(UTC),
        )
        try:
            await self._ledger.submitted(request.fingerprint, submitted)
        except AlreadyWritten:
            return  # somebody who took this run for dead has found the request at fal

    def _stop(self, reason: str) -> None:
        """Stop submitting: what ended this row would end every other one too."""
        self._stopped = self._stopped or reason
        raise _LeftOpen(NotReached, reason)

    async def _fetch(self, request: GenerationRequest, place: Place) -> None:
        submitted = self._entry(request).last.submitted
        assert submitted is not None
        queued = self._queued.get(request.fingerprint)
        if queued:
            self._polling.submitted(queued.request_id, Kind.of(request), _now())
        else:
            queued = self._fal.attach(request.endpoint_id, submitted.request_id)
            self._queued[request.fingerprint] = queued
            self._polling.attached(queued.request_id, Kind.of(request), _now())
        try:
            completed = await self._completed(queued)
            place.give_back()
            async with self._finishing:
                result = await self._fal.result(queued)
                output = Output.model_validate(result.payload)
                files = enumerate(output.images)
                images = await asyncio.gather(
                    *(self._store_image(request, index, file) for index, file in files)
                )
        except RequestEnded as error:
            await self._settle_without_result(request, error)
        except RequestNotFound as error:
            await self._settle_lost(
                request, f"{queued.request_id} may have been paid, and its result is gone: {error}"
            )
        except ValidationError as error:
            problems = "; ".join(f"{finding['loc']}: {finding['msg']}" for finding in error.errors()[:3])
            await self._settle_lost(
                request, f"fal's answer to {queued.request_id} is not one of Ideogram's: {problems}"
            )
        except FalError as error:
            reason = (
                f"{queued.request_id} is paid for and could not be fetched; the next run tries again: {error}"
            )
            raise _LeftOpen(Failed, reason) from None
        else:
            await self._settle_generated(request, output, images, completed)

    async def _completed(self, queued: QueuedRequest) -> Completed:
        deadline = _now() + PATIENCE_S
        try:
            while _now() < deadline:
                await self._turn(queued.request_id)
                status = await self._fal.status(queued)
                if isinstance(status, Completed):
                    self._polling.completed(queued.request_id, status.inference_s, _now())
                    return status
                if isinstance(status, InQueue):
                    self._polling.queued(queued.request_id, status.position, _now())
                else:
                    self._polling.in_progress(queued.request_id, _now())
        finally:
            self._polling.left(queued.request_id)
            self._tell_news()
        raise _LeftOpen(NotReached, f"{queued.request_id} is still with fal; the next run fetches it")

    async def _turn(self, request_id: str) -> None:
        """Wait until it is time to ask about a request."""
        while (wait_s := self._polling.next_ask(request_id) - _now()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()

    def _tell_news(self) -> None:
        """Let everybody who waits for a turn look again, if it may have come nearer."""
        if self._told != self._polling.revision:
            self._told = self._polling.revision
            self._news.set()
            self._news = asyncio.Event()

    async def _store_image(self, request: GenerationRequest, index: int, file: File) -> StoredImage:
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            downloaded = await self._fal.download(file.url, max_bytes=MAX_PICTURE_BYTES)
            try:
                picture, shrunk = await asyncio.to_thread(
                    inspect_and_shrink, downloaded.content, side=THUMBNAIL_SIDE
                )
                break
            except BadPicture as problem:
                if attempt == DOWNLOAD_ATTEMPTS:
                    reason = f"picture {index} arrives damaged: {problem}; it is paid for and fetched again next run"
                    raise _LeftOpen(Failed, reason) from None
        name = f"{request.prompt_id}-{request.fingerprint[:8]}-{index}"
        path = f"images/batch={request.batch}/{name}.{EXTENSIONS[picture.kind]}"
        await self._store.put_async(path, downloaded.content, durable=True)
        if shrunk:
            await self._store.put_async(thumbnail_path(path), shrunk)
        return StoredImage(
            index=index,
            path=path,
            sha256=picture.sha256,
            bytes=picture.bytes,
            width=picture.width,
            height=picture.height,
            format=picture.kind,
        )

    def _mind_the_brake(self, kind: str, reason: str) -> None:
        """Stop submitting where the first rows all end for the same reason: the others would too."""
        if self._brake is None:
            return
        self._brake[kind] += 1
        if self._brake[kind] >= BRAKE_AFTER and len(self._brake) == 1:
            self._stopped = self._stopped or (
                f"stopped, because the first {BRAKE_AFTER} rows all ended alike, without a picture: {reason}"
            )

    async def _settle_generated(
        self, request: GenerationRequest, output: Output, images: Sequence[StoredImage], completed: Completed
    ) -> None:
        if not images:
            await self._settle_lost(request, "fal's answer holds no picture")
            return
        self._brake = None
        price = request.price_usd
        cost = None if price is None else price / request.num_images * len(images)
        await self._settle(
            request,
            Settled(
                state="generated",
                images=tuple(images),
                seed=output.seed,
                inference_s=completed.inference_s,
                completed_at=datetime.now(UTC),
                cost_usd=cost,
                cost_source="unknown" if cost is None else "price_list",
            ),
        )

    async def _settle_without_result(self, request: GenerationRequest, error: RequestEnded) -> None:
        cost, source = _cost_of_failure(error)
        self._mind_the_brake(_kind(error), str(error))
        unfetched = isinstance(error, ModelRefused) and error.names("file_download_error")
        if unfetched:
            self._references.forget(request)
        await self._settle(
            request,
            Settled(
                state="refused" if isinstance(error, ModelRefused) else "failed",
                reason=str(error),
                retryable=error.may_resubmit or unfetched or isinstance(error, Cancelled),
                completed_at=datetime.now(UTC),
                cost_usd=cost,
                cost_source=source,
            ),
        )

    async def _settle_lost(self, request: GenerationRequest, reason: str) -> None:
        """Record an end with nothing to fetch and an unknown bill; it is never sent again by itself."""
        await self._settle(
            request,
            Settled(
                state="failed",
                reason=reason,
                completed_at=datetime.now(UTC),
                cost_usd=None,
                cost_source="unknown",
            ),
        )

    async def _settle(self, request: GenerationRequest, settled: Settled) -> None:
        try:
            await self._ledger.settle(request.fingerprint, settled)
        except AlreadyWritten:
            return  # another run fetched it too; what it recorded stands
        await self._return_money(request, settled.cost_usd)
        self.spent_usd += settled.cost_usd or Decimal(0)

    async def _return_money(self, request: GenerationRequest, cost: Decimal | None) -> None:
        """Give back to the budget what this run reserved for a request and the request did not cost."""
        reservation = self._reservations.pop(request.fingerprint, None)
        if reservation:
            await self._budget.settle(reservation, cost)

    async def _cancel(self, request: GenerationRequest, queued: QueuedRequest) -> bool:
        try:
            answer = await self._fal.cancel(queued)
        except FalError:
            return False
        if answer is not CancelAnswer.OK:
            return False
        await self._settle(
            request,
            Settled(
                state="failed",
                reason="cancelled before it started",
                retryable=True,
                completed_at=datetime.now(UTC),
                cost_usd=Decimal(0),
                cost_source="price_list",
            ),
        )
        return True


def _now() -> float:
    return asyncio.get_running_loop().time()


def _cost_of_failure(error: RequestEnded) -> tuple[Decimal | None, CostSource]:
    """Return what a request without a result cost: nothing where fal says so, else unknown."""
    if error.billable_units == 0:
        return Decimal(0), "billable_units_header"
    return (None, "unknown") if error.may_be_billed else (Decimal(0), "price_list")


def _kind(error: RequestEnded) -> str:
    """Return what two errors have in common that mean the same for different rows."""
    reasons = error.details if isinstance(error, ModelRefused | ModelFailed) else ()
    return " ".join([type(error).__name__, *sorted({detail.type for detail in reasons})])


def thumbnail_path(image_path: str) -> str:
    """Return where in the store the thumbnail of a picture lies."""
    batch, name = image_path.removeprefix("images/").split("/", 1)
    return f"gallery/{batch}/thumbnails/{name.rsplit('.', 1)[0]}.webp"

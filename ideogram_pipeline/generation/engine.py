"""The engine: works the requests of one batch through fal, each to a settled ledger entry, none twice.

A row is a loop over what the ledger says of it: reserve and submit, or wait and fetch, until its entry is settled. So a
row that another run left half-way simply enters the loop further down, and nothing is paid again. A picture lies in the
store before the ledger says so.

    window      how many may be with fal          submitting  the step that costs money
    polling     when to ask about one             fetching    the steps after it
    brake       when a batch makes no sense       answers     what fal's answers tell, and what proves an end
    books       what is written of the money
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import chain, islice
from typing import Protocol

from ideogram_pipeline.errors import PipelineError
from ideogram_pipeline.faces import Faces
from ideogram_pipeline.fal import CancelAnswer, FalClient, QueuedRequest
from ideogram_pipeline.fal.errors import (
    AccessRefused,
    FalError,
    MediaUnavailable,
    ModelRefused,
    RequestEnded,
    RequestNotFound,
)
from ideogram_pipeline.fal.http import pause
from ideogram_pipeline.generation.answers import is_gone
from ideogram_pipeline.generation.books import Books, RunFacts
from ideogram_pipeline.generation.brake import Brake
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.fetching import FINISHING, Fetcher, NotRead, OtherBytes
from ideogram_pipeline.generation.inbox import Inbox
from ideogram_pipeline.generation.ledger import MAX_ATTEMPTS, UNFETCHED, Ledger, Reserved, Submitted
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.outcomes import (
    UNANSWERED,
    Failed,
    Generated,
    LeftOpen,
    NotReached,
    Outcome,
    Outcomes,
    Unknown,
    left_to_another_run,
    of_entry,
    reason_of,
    state_of,
)
from ideogram_pipeline.generation.polling import Kind, Polling, known_work
from ideogram_pipeline.generation.reconcile import Search, search
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.runs import is_alive
from ideogram_pipeline.generation.submitting import StopSubmitting, Submitter
from ideogram_pipeline.generation.uploads import ReferenceUrls
from ideogram_pipeline.generation.window import Place, Window
from ideogram_pipeline.storage import Store

RESUBMIT_AFTER_S = 2.0
"""A request that failed, and may succeed, is sent again after so many seconds, and after four times as many then."""

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who wants to know how the run goes on. Called in the engine's event loop; must not block."""

    def ended(self, outcome: Outcome, spent_usd: Decimal) -> None:
        """Take note of a row's outcome and of the dollars settled in this run so far."""


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
        max_wait_s: float,
        inline_bytes: int,
        thumbnails: bool,
        budget: Budget,
        observer: Observer,
        marking: Marking,
        faces: Faces | None = None,
        webhook_url: str | None = None,
        beat: str = "",
    ) -> None:
        """Work with what `ledger` knows; fal delivers to the receiver at `webhook_url`, if there is one.

        `beat` is where the beat of this process lies, by which others know that the run works.
        """
        self._fal = fal
        self._store = store
        self._run = run
        self._observer = observer
        self._max_in_flight = max_in_flight
        self._books = Books(ledger, budget, run)
        self._window = Window(max_in_flight)
        self._brake = Brake()
        self._references = ReferenceUrls(fal, store, inline_bytes=inline_bytes, wait_s=max_wait_s)
        self._inbox = Inbox(store, ledger, webhook_url) if webhook_url else None
        self._polling = Polling(known_work(ledger.entries.values()), delivered=webhook_url is not None)
        self._submitter = Submitter(
            fal, self._references, self._books, window=self._window, brake=self._brake, inbox=self._inbox
        )
        self._fetcher = Fetcher(
            fal,
            store,
            ledger.entries.values(),
            waiting=self._polling,
            inbox=self._inbox,
            max_wait_s=max_wait_s,
            thumbnails=thumbnails,
            marking=marking,
            faces=faces,
        )
        self._stopped: str | None = None
        self._beat = beat

    @property
    def spent_usd(self) -> Decimal:
        """Dollars of everything settled in this run whose cost is known."""
        return self._books.spent_usd

    async def run(self, requests: Collection[GenerationRequest]) -> Outcomes:
        """Work every request to its outcome, at most `max_in_flight` at a time.

        What is with fal already is fetched before anything new is submitted. Cancelling this call stops submitting at
        once, waits for the answers of submits that are on their way, and leaves the rest with fal, in the ledger, for
        the next run.

        Raises:
            PipelineError: the store failed; what was submitted is in the ledger.
        """
        outcomes = Outcomes(requests, self._books.ledger.entries)
        try:
            async with self._fetcher.watching():
                await self._work_all(self._finish_first(requests), outcomes)
                await self._work_all(await self._found_after_all(outcomes), outcomes)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await self._submitter.all_arrived()
            self._fetcher.close()
            await self._books.close()
        for outcome in outcomes.of_kind(Unknown):
            self._observer.ended(outcome, self.spent_usd)
        return outcomes

    async def cancel_queued(self) -> int:
        """Cancel at fal what is submitted and hasn't ended; return how many were cancelled before any work.

        The newest goes first, so that no place falls free for one that is about to be cancelled.
        """
        cancelled = 0
        for fingerprint, queued in reversed(list(self._submitter.queued.items())):
            last = self._books.ledger.entries[fingerprint].last
            ours = last.submitted and last.submitted.request_id == queued.request_id
            if ours and not last.settled and await self._cancel(queued):
                await self._books.cancelled(last.reserved.request, attempt=last.reserved.attempt)
                cancelled += 1
        return cancelled

    async def _cancel(self, queued: QueuedRequest) -> bool:
        try:
            return await self._fal.cancel(queued) is CancelAnswer.OK
        except FalError:
            return False

    def _finish_first(self, requests: Collection[GenerationRequest]) -> Iterator[GenerationRequest]:
        """Return the requests in the order of work: what is with fal already goes before what is to be sent."""
        entries = self._books.ledger.entries.items()
        with_fal = {fingerprint for fingerprint, entry in entries if entry.state == "submitted"}
        if not with_fal:
            return iter(requests)
        return chain(
            (request for request in requests if request.fingerprint in with_fal),
            (request for request in requests if request.fingerprint not in with_fal),
        )

    async def _work_all(self, requests: Iterable[GenerationRequest], outcomes: Outcomes) -> None:
        workers = self._max_in_flight + FINISHING
        waiting = iter(requests)
        first = list(islice(waiting, workers))
        waiting = chain(first, waiting)
        async with asyncio.TaskGroup() as group:
            for _ in first:
                group.create_task(self._work(waiting, outcomes))

    async def _found_after_all(self, outcomes: Outcomes) -> list[GenerationRequest]:
        """Look for the submits that were never answered; return the rows that can be fetched now."""
        unknown = {
            outcome.request.fingerprint: outcome.request
            for outcome in outcomes.of_kind(Unknown)
            if self._books.entry(outcome.request).state == "reserved"
        }
        if not unknown:
            return []
        searched = await search(self._fal, self._store, self._books.ledger, unknown, but=self._beat)
        missing = [self._books.ledger.entries[one].last.reserved for one in searched.missing]
        if missing and await self._waited_for_the_end_of(missing):
            again = await search(self._fal, self._store, self._books.ledger, searched.missing, but=self._beat)
            searched = Search((*searched.found, *again.found), again.missing)
        self._books.caught_up()
        for fingerprint, reason in searched.missing.items():
            request = unknown[fingerprint]
            outcomes.add(Unknown(request, self._books.entry(request), f"{UNANSWERED}; {reason}"))
        return [unknown[found] for found in searched.found]

    async def _waited_for_the_end_of(self, unanswered: Sequence[Reserved]) -> bool:
        """Wait until fal can tell of these, for they have most likely ended; say whether it took any waiting."""
        if self._inbox:
            await self._inbox.wait_for(unanswered, self._polling.sweep_s)
            return True
        now = datetime.now(UTC)
        left_s = max(
            self._polling.ended_after_s(Kind.of(one.request))
            - max((now - one.reserved_at).total_seconds(), 0)
            for one in unanswered
        )
        if left_s <= 0:
            return False
        _log.info("%d submits were not answered; fal is asked about them in %.1f s", len(unanswered), left_s)
        await pause(left_s)
        return True

    async def _work(self, waiting: Iterator[GenerationRequest], outcomes: Outcomes) -> None:
        for request in waiting:
            async with self._window.place() as place:
                outcome = await self._outcome(request, place)
            outcomes.add(outcome)
            _log_end(outcome)
            if not isinstance(outcome, Unknown):
                self._observer.ended(outcome, self.spent_usd)
        self._fetcher.nothing_left_to_submit()

    async def _outcome(self, request: GenerationRequest, place: Place) -> Outcome:
        known = self._books.entry(request).state == "generated"
        try:
            if known:
                await self._restore(request)
            while (state := self._books.entry(request).state) in ("new", "retryable", "submitted"):
                if state == "retryable":
                    await self._let_pass(request)
                await place.take()
                if state == "submitted":
                    await self._fetch(request, place)
                else:
                    await self._submit(request)
                if self._books.entry(request).state != "submitted":
                    place.give_back()
        except LeftOpen as end:
            return end.kind(request, self._books.entry(request), end.reason)
        except PipelineError as error:
            self._stopped = self._stopped or str(error)  # the others are still running for a moment
            raise
        except Exception as error:
            _log.exception("prompt %s ended in an unexpected error", request.prompt_id)
            reason = f"unexpected {type(error).__name__}; the log has the details"
            return Failed(request, self._books.entry(request), reason)
        return await self._ended(request, known)

    async def _ended(self, request: GenerationRequest, known: bool) -> Outcome:
        """Return the outcome that a row's ledger entry says, when there is nothing left to do for it."""
        self._submitter.queued.pop(request.fingerprint, None)
        entry = self._books.entry(request)
        if entry.state == "generated" and not known:
            return Generated(request, entry)
        if entry.state == "reserved":
            owner = entry.last.reserved.owner
            if await is_alive(self._store, owner, but=self._beat):
                reason = f"run {owner} is submitting it now; run again to see how it ended"
                return left_to_another_run(request, entry, reason)
        return of_entry(request, entry)

    async def _let_pass(self, request: GenerationRequest) -> None:
        """Leave time between a failure of this run and the next attempt."""
        last = self._books.entry(request).last
        if last.settled and last.reserved.owner == self._run.run_id and not self._stopped:
            await pause(RESUBMIT_AFTER_S * 4 ** (min(last.reserved.attempt, MAX_ATTEMPTS - 1) - 1))

    async def _submit(self, request: GenerationRequest) -> None:
        if reason := self._stopped or self._brake.reason:
            raise LeftOpen(NotReached, reason)
        try:
            await self._submitter.submit(request)
        except StopSubmitting as stop:
            self._stopped = self._stopped or stop.reason
            raise
        except RequestEnded as error:
            await self._end(request, error, attempt=self._books.entry(request).last.reserved.attempt)

    async def _fetch(self, request: GenerationRequest, place: Place) -> None:
        queued, submitted_here = self._queued(request)
        last = self._books.entry(request).last
        assert last.submitted is not None
        try:
            fetched = await self._fetcher.fetch(last.reserved, queued, place, submitted_here=submitted_here)
        except RequestEnded as error:
            await self._end(request, error, attempt=last.reserved.attempt)
        except NotRead as unread:
            await self._not_read(request, last.reserved, last.submitted, unread.error)
        except FalError as error:
            reason = (
                f"{queued.request_id} is paid for and could not be fetched; the next run tries again: {error}"
            )
            raise LeftOpen(Failed, reason) from None
        else:
            self._brake.release()
            await self._books.generated(
                request, fetched.completed, fetched.seed, fetched.images, attempt=last.reserved.attempt
            )

    async def _not_read(
        self, request: GenerationRequest, reserved: Reserved, submitted: Submitted, error: FalError
    ) -> None:
        """Leave a row open whose end can't be read, unless fal has forgotten it for good."""
        if isinstance(error, RequestNotFound) and is_gone(submitted, error):
            reason = f"{submitted.request_id} may have been paid, and its result is gone: {error}"
            await self._books.lost(request, reason, attempt=reserved.attempt)
            return
        if not isinstance(error, AccessRefused):
            self._brake.unread_result(error)
            await self._stop_if_pulled()
        reason = (
            f"{submitted.request_id} is with fal, could not be read yet; the next run asks again: {error}"
        )
        raise LeftOpen(NotReached, reason)

    async def _restore(self, request: GenerationRequest) -> None:
        """Fetch again the pictures of a settled request that are no longer in the store."""
        settled = self._books.entry(request).last.settled
        assert settled is not None
        missing = [image for image in settled.images if self._fetcher.is_missing(image)]
        if not missing:
            return
        queued, _ = self._queued(request)
        try:
            reserved = self._books.entry(request).last.reserved
            await self._fetcher.fetch_again(reserved, queued, settled, missing)
        except (RequestNotFound, MediaUnavailable, FileNotFoundError, IndexError, OtherBytes) as error:
            why = "fal has other bytes now" if isinstance(error, OtherBytes) else type(error).__name__
            reason = (
                f"{missing[0].path}, paid for as {queued.request_id}, is gone from the store and can't be had again "
                f"({why}); `ideogram-pipeline replay {queued.request_id} --send` makes a new take, which is paid for"
            )
            raise LeftOpen(Failed, reason) from None
        except FalError as error:
            reason = (
                f"{missing[0].path}, paid for as {queued.request_id}, is gone from the store and could not be fetched; "
                f"the next run tries again: {error}"
            )
            raise LeftOpen(Failed, reason) from None

    def _queued(self, request: GenerationRequest) -> tuple[QueuedRequest, bool]:
        """Return a submitted request as fal's client knows it, and whether this run has submitted it."""
        here = self._submitter.queued.get(request.fingerprint)
        submitted = self._books.entry(request).last.submitted
        assert submitted is not None
        if here and here.request_id == submitted.request_id:
            return here, True
        attached = self._fal.attach(request.endpoint_id, submitted.request_id)
        self._submitter.queued[request.fingerprint] = attached
        return attached, False

    async def _end(self, request: GenerationRequest, error: RequestEnded, *, attempt: int) -> None:
        """Record an attempt that ended without a result."""
        unfetched = isinstance(error, ModelRefused) and error.names(UNFETCHED)
        given_anew = unfetched and await self._references.forget(self._books.entry(request).last.reserved)
        if not given_anew:
            self._brake.ended(error)
            await self._stop_if_pulled()
        await self._books.ended(request, error, again=unfetched, attempt=attempt)

    async def _stop_if_pulled(self) -> None:
        """Submit nothing more once the brake is pulled, and cancel what fal hasn't begun."""
        if self._brake.reason and not self._stopped:
            self._stopped = self._brake.reason
            await self.cancel_queued()


def _log_end(outcome: Outcome) -> None:
    state, reason = state_of(outcome), reason_of(outcome)
    last = outcome.entry.last if outcome.entry and outcome.entry.attempts else None
    _log.info(
        "%s: %s",
        outcome.request.prompt_id,
        f"{state}: {reason}" if reason else state,
        extra={
            **outcome.request.ids,
            "state": state,
            "request_id": last.submitted.request_id if last and last.submitted else None,
            "cost_usd": last.cost.usd if last else None,
        },
    )

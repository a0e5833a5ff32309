"""Sending a request to fal: the one step that costs money.

The intent is in the ledger before the POST, and fal's answer before anything else is awaited. From the one to the other
nothing may be cut off: bytes that left are money that may be owed.
"""

from __future__ import annotations

import asyncio
import logging

from ideogram_pipeline.fal import FalClient, QueuedRequest, SubmitOptions
from ideogram_pipeline.fal.errors import (
    AccessRefused,
    ConnectionFailed,
    FalError,
    RequestEnded,
    SubmitUnknown,
    TooManyRequests,
)
from ideogram_pipeline.generation.books import Books
from ideogram_pipeline.generation.brake import Brake
from ideogram_pipeline.generation.budget import OverBudget, UnknownPrice
from ideogram_pipeline.generation.inbox import Inbox
from ideogram_pipeline.generation.ledger import AlreadyWritten
from ideogram_pipeline.generation.outcomes import LeftOpen, NotReached, Unknown, left_to_another_run
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.uploads import Body, ReferenceUrls
from ideogram_pipeline.generation.window import Window
from ideogram_pipeline.telemetry import SUBMITS, span

_log = logging.getLogger(__name__)

PATIENCE_S = 3600.0
"""If fal has taken no submit for so many seconds because they come too often, the run stops."""


class StopSubmitting(LeftOpen):
    """What keeps this row from being sent keeps every other one from it too."""

    def __init__(self, reason: str) -> None:
        super().__init__(NotReached, reason)


class Submitter:
    """Sends the requests of one run."""

    def __init__(
        self,
        fal: FalClient,
        references: ReferenceUrls,
        books: Books,
        *,
        window: Window,
        brake: Brake,
        inbox: Inbox | None,
    ) -> None:
        """Have fal deliver to the inbox, if there is one."""
        self.queued: dict[str, QueuedRequest] = {}
        """What this run has sent or taken up, by fingerprint, in the order of fal's answers."""
        self._fal = fal
        self._references = references
        self._books = books
        self._window = window
        self._brake = brake
        self._inbox = inbox
        self._on_their_way: set[asyncio.Task[None]] = set()

    async def submit(self, request: GenerationRequest) -> None:
        """Send a request once; its ledger entry then says how that went. Returns early where fal limits the rate.

        Raises:
            StopSubmitting: the account, the budget or the network takes no request of this run.
            LeftOpen: this request can't be sent, or nobody knows whether it was accepted.
            RequestEnded: fal's answer to the submit was the request's end.
        """
        try:
            body = await self._references.filled_in(request)
        except (AccessRefused, ConnectionFailed) as error:
            raise StopSubmitting(f"a reference could not be uploaded: {error}") from None
        except FalError as error:
            raise LeftOpen(NotReached, f"a reference could not be uploaded: {error}") from None
        task = asyncio.create_task(self._reserve_and_post(request, body))
        self._on_their_way.add(task)
        task.add_done_callback(self._arrived)
        await asyncio.shield(task)

    async def all_arrived(self) -> None:
        """Wait for the answers of submits that are on their way."""
        if self._on_their_way:
            await asyncio.wait(self._on_their_way)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        self._on_their_way.discard(task)
        if not task.cancelled():
            task.exception()  # a row that was cancelled meanwhile no longer awaits it; the ledger has it

    async def _reserve_and_post(self, request: GenerationRequest, body: Body) -> None:
        try:
            await self._books.reserve(request, body.arguments, uploaded=body.uploaded)
        except OverBudget as reached:
            raise StopSubmitting(str(reached)) from None
        except UnknownPrice as refused:
            raise LeftOpen(NotReached, str(refused)) from None
        except AlreadyWritten:
            reason = "another run is working on this row; run again to see how it ended"
            raise LeftOpen(left_to_another_run, reason) from None
        reserved = self._books.entry(request).last.reserved
        options = SubmitOptions(webhook_url=self._inbox.url(reserved) if self._inbox else None)
        sent_at = asyncio.get_running_loop().time()
        try:
            with span("submit", **request.ids) as sent:
                queued = await self._fal.submit(request.endpoint_id, body.arguments, options)
                sent.set_attribute("ideogram.request_id", queued.request_id)
        except RequestEnded as error:
            _count(request, type(error).__name__)
            raise
        except FalError as error:
            _count(request, type(error).__name__)
            if error.may_be_billed:
                if isinstance(error, SubmitUnknown):
                    self._brake.unread_submit(error)
                _log.warning("%s: its submit was not answered", request.prompt_id, extra=request.ids)
                raise LeftOpen(Unknown, str(error)) from None
            await self._books.release(request, error.message)
            if isinstance(error, TooManyRequests) and self._window.limited(sent_at) < PATIENCE_S:
                return
            if isinstance(error, AccessRefused | ConnectionFailed | TooManyRequests):
                raise StopSubmitting(str(error)) from None
            raise LeftOpen(NotReached, str(error)) from None
        if self._books.is_known(queued.request_id):
            _count(request, "another's")
            _log.warning("%s: its submit was answered for another row", request.prompt_id, extra=request.ids)
            raise LeftOpen(
                Unknown, f"fal answered its submit with {queued.request_id}, another row's request"
            )
        _count(request, "accepted")
        _log.info(
            "%s: submitted as %s",
            request.prompt_id,
            queued.request_id,
            extra={**request.ids, "request_id": queued.request_id},
        )
        self._window.accepted(sent_at)
        self._brake.accepted()
        self.queued[request.fingerprint] = queued
        await self._books.submitted(request, queued)


def _count(request: GenerationRequest, answer: str) -> None:
    SUBMITS.add(1, {"endpoint": request.endpoint, "answer": answer})

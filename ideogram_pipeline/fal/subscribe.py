"""Submit and wait, in one call, for callers that keep no ledger of their own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from pydantic import JsonValue

from ideogram_pipeline.fal.errors import DeadlineExceeded, FalError, NotReady, TooManyRequests
from ideogram_pipeline.fal.http import pause, repeating
from ideogram_pipeline.fal.options import NO_OPTIONS, SubmitOptions
from ideogram_pipeline.fal.queue import (
    CancelAnswer,
    Completed,
    QueueCalls,
    QueuedRequest,
    QueueStatus,
    Result,
)

T = TypeVar("T")


class SubscribeCalls(QueueCalls):
    """The queue's calls, and the one that strings them together."""

    async def subscribe(
        self,
        endpoint_id: str,
        arguments: Mapping[str, JsonValue],
        *,
        options: SubmitOptions = NO_OPTIONS,
        on_enqueue: Callable[[QueuedRequest], Awaitable[None] | None] | None = None,
        on_update: Callable[[QueueStatus], Awaitable[None] | None] | None = None,
        logs: bool = False,
        poll_s: float = 1.0,
        deadline_s: float | None = None,
    ) -> Result:
        """Submit once, ask every `poll_s` seconds, and bring the result.

        Keep the request in `on_enqueue`, so that a crash doesn't lose what is paid for. After `deadline_s` seconds
        (None: never) the request is cancelled and `DeadlineExceeded` carries it, unless it has just completed: then
        its result is brought after all. Never call this again after an error that says `may_be_billed`.
        """
        request = await repeating(
            lambda: self.submit(endpoint_id, arguments, options),
            on=lambda error: isinstance(error, TooManyRequests),
        )
        await _told(on_enqueue, request)
        try:
            async with asyncio.timeout(deadline_s) as patience:
                return await self._wait(request, on_update, logs, poll_s)
        except TimeoutError:
            if not patience.expired():
                raise
        try:
            cancelled = await self.cancel(request)
        except FalError:
            cancelled = None
        if cancelled is CancelAnswer.ALREADY_COMPLETED:
            return await self.result(request)
        raise DeadlineExceeded(
            message=f"Request {request.request_id} did not complete within {deadline_s} s.",
            may_be_billed=cancelled is not CancelAnswer.OK,
            endpoint_id=endpoint_id,
            request_id=request.request_id,
            request=request,
            cancel_answer=cancelled,
        )

    async def _wait(
        self,
        request: QueuedRequest,
        on_update: Callable[[QueueStatus], Awaitable[None] | None] | None,
        logs: bool,
        poll_s: float,
    ) -> Result:
        while True:
            status = await self.status(request, logs=logs)
            await _told(on_update, status)
            if isinstance(status, Completed):
                try:
                    return await self.result(request)
                except NotReady:
                    pass  # The result may lag behind the status for a moment.
            await pause(poll_s)


async def _told(callback: Callable[[T], Awaitable[None] | None] | None, news: T) -> None:
    if callback is not None and inspect.isawaitable(waiting := callback(news)):
        await waiting

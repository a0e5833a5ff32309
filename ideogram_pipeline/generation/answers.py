"""What a request brought, as fal tells it: by a delivery, in its queue, or in its list of requests.

One answer proves nothing. A gateway may speak in fal's place, an answer may be another request's, a field may have
changed. So what can't be read is asked for again, here and by every later run; and that a request ended without a
picture is believed only where a passing fault can't say so:

- fal's queue names the same type of error three times, some seconds apart, and calls the request completed;
- fal's list of requests, where the key may read it, has its end;
- fal doesn't know the request 30 days after it accepted it, by fal's own clock (see `is_gone`).

An answer with fewer pictures than were asked for, and paid, may be one that was cut, so it is asked for again as well.

The list also holds results that the queue keeps no longer.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta

from pydantic import JsonValue

from ideogram_pipeline.fal import FalClient, QueuedRequest, Result
from ideogram_pipeline.fal.errors import (
    AccessRefused,
    FalError,
    NotReady,
    RequestEnded,
    RequestNotFound,
)
from ideogram_pipeline.fal.http import pause
from ideogram_pipeline.fal.queue import ASK_AGAIN_AFTER_S
from ideogram_pipeline.generation.inbox import Inbox
from ideogram_pipeline.generation.ledger import Reserved, Submitted
from ideogram_pipeline.ideogram.endpoints import Output

GONE_AFTER = timedelta(days=30)
"""fal keeps no result longer (fal docs, request payloads)."""

_log = logging.getLogger(__name__)


class Answers:
    """Reads what the requests of one run brought."""

    def __init__(self, fal: FalClient, inbox: Inbox | None) -> None:
        """Take what fal delivers to the inbox, if there is one."""
        self._fal = fal
        self._inbox = inbox

    async def output(self, reserved: Reserved, queued: QueuedRequest) -> Output:
        """Return where the pictures are of a request that has ended.

        Raises:
            RequestEnded: it ended without any, and that is proven.
            NotReady: it still runs.
            FalError: fal's answers tell neither; they may later.
        """
        output = await self._delivered(reserved, queued) or await self._asked(reserved, queued)
        for wait_s in ASK_AGAIN_AFTER_S:
            if len(output.images) >= reserved.request.num_images:
                break
            await pause(wait_s)
            with suppress(FalError):  # what was told once is kept all the same
                output = max(output, await self._asked(reserved, queued), key=lambda one: len(one.images))
        if output.seed is None:
            _log.warning(
                "%s: fal's answer names no readable seed", queued.request_id, extra=reserved.request.ids
            )
        return output

    async def _asked(self, reserved: Reserved, queued: QueuedRequest) -> Output:
        """Return what fal's queue gives, or what its list has of it; raises as `output` does."""
        try:
            result = await self._fal.result(
                queued, is_readable=lambda one: self._read(reserved, one) is not None
            )
        except (RequestEnded, NotReady, AccessRefused):
            raise
        except FalError as error:
            return await self._listed(reserved, queued, error)
        output = self._read(reserved, result)
        assert output is not None
        return output

    async def _delivered(self, reserved: Reserved, queued: QueuedRequest) -> Output | None:
        if self._inbox is None or not self._inbox.holds(reserved, queued.request_id):
            return None
        payload = await self._inbox.payload(reserved, queued.request_id)
        return Output.read(payload) if payload is not None else None

    async def _listed(self, reserved: Reserved, queued: QueuedRequest, error: FalError) -> Output:
        """Return what fal's list has of a request whose result can't be had for this reason, or raise that."""
        try:
            past = await self._fal.past_request(reserved.request.endpoint_id, queued.request_id)
        except FalError:
            raise error from None
        if past and past.ending:
            raise past.ending
        output = _output(past.json_output) if past else None
        if output is None:
            raise error
        return output

    def _read(self, reserved: Reserved, result: Result) -> Output | None:
        """Read a result; None where it is another request's, as both its id and its seed say."""
        output = Output.read(result.payload)
        if output is None or result.answered_id in (None, result.request_id):
            return output
        return None if output.seed not in (None, reserved.request.seed) else output


def is_gone(submitted: Submitted, error: RequestNotFound) -> bool:
    """Say whether a request that fal doesn't know was accepted so long ago that it never will again.

    fal's own clock counts, for ours may be wrong: an answer that doesn't tell the time proves nothing. Our clock has to
    do where fal did not say when it accepted the request.
    """
    accepted_at = submitted.accepted_at or submitted.submitted_at
    return error.answered_at is not None and error.answered_at - accepted_at > GONE_AFTER


def _output(payload: JsonValue) -> Output | None:
    return Output.read(payload) if isinstance(payload, dict) else None

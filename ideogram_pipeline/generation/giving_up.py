"""Giving up, by a person's word, requests that fal has accepted and whose pictures can't be had.

fal is asked once more before that. What can still be read is kept, what still waits is cancelled, and where fal could
not be asked nothing is decided: a wrong key or address must not cost a second payment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from ideogram_pipeline.fal import (
    AccessRefused,
    CancelAnswer,
    Completed,
    ConnectionFailed,
    FalClient,
    FalError,
    NoAnswer,
    QueuedRequest,
    RequestEnded,
    TooManyRequests,
)
from ideogram_pipeline.generation.answers import Answers
from ideogram_pipeline.generation.cancelling import AT_ONCE, Living, WithFal, of_entry, settle_cancelled
from ideogram_pipeline.generation.fetching import MAX_PICTURE_BYTES
from ideogram_pipeline.generation.ledger import Entry, EntryState, Ledger, Reserved
from ideogram_pipeline.generation.reconcile import give_up
from ideogram_pipeline.pictures import BadPicture, verify
from ideogram_pipeline.storage import Store

REASON = "given up by choice; it may have been paid"
_NOT_ASKED = (AccessRefused, ConnectionFailed, NoAnswer, TooManyRequests)
"""What tells nothing of a request, and may pass."""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What became of a request that was to be given up."""

    request: WithFal
    """Which one."""
    says: str
    """What happened."""
    is_decided: bool
    """Whether the next run goes on with it: it was given up or cancelled, or its pictures can be had after all."""


async def give_up_batch(
    fal: FalClient, store: Store, ledger: Ledger, requests: Sequence[WithFal], own_id: str = ""
) -> list[GivenUp]:
    """Give up requests of a batch that no live run works on, after asking fal once more about each.

    `own_id` is the name under which the caller holds the batch. What is given up is recorded as failed at an unknown
    cost: the next run submits it again, and it may then be paid twice.

    Raises:
        StoreError: the ledger is out of reach.
    """
    ledger.catch_up()
    living, turn = Living(store, own_id), asyncio.Semaphore(AT_ONCE)
    decided: dict[str, GivenUp] = {}
    for request in sorted(requests, key=lambda one: one.since, reverse=True):
        if owner := await living.at_work(request):
            decided[request.request_id] = GivenUp(request, f"left alone: the run {owner} works on it", False)
        elif of_entry(ledger.entries.get(request.request.fingerprint, Entry())) != request:
            decided[request.request_id] = GivenUp(request, "its end was recorded meanwhile", True)
        elif cancelled := await _cancelled(fal, ledger, request):
            decided[request.request_id] = cancelled

    async def one(request: WithFal) -> GivenUp:
        async with turn:
            return decided.get(request.request_id) or await _given_up(fal, ledger, request)

    return list(await asyncio.gather(*map(one, requests)))


async def _cancelled(fal: FalClient, ledger: Ledger, request: WithFal) -> GivenUp | None:
    """Cancel what fal still queues; return None where it does not, and there is more to ask."""
    queued = fal.attach(request.request.endpoint_id, request.request_id)
    try:
        if isinstance(await fal.status(queued), Completed) or await fal.cancel(queued) is not CancelAnswer.OK:
            return None
    except FalError:
        return None
    await settle_cancelled(ledger, request.request.fingerprint)
    return GivenUp(request, "cancelled at fal, at no cost: the next run submits it again", True)


async def _given_up(fal: FalClient, ledger: Ledger, request: WithFal) -> GivenUp:
    queued = fal.attach(request.request.endpoint_id, request.request_id)
    try:
        if await _can_be_had(fal, ledger.entries[request.request.fingerprint].last.reserved, queued):
            return GivenUp(request, "fal has it: the next run fetches it", True)
    except RequestEnded:
        return GivenUp(request, "fal says how it ended: the next run records it", True)
    except _NOT_ASKED as error:
        return GivenUp(request, f"left alone: fal could not be asked: {error}", False)
    await give_up(ledger, request.request.fingerprint, REASON)
    return GivenUp(request, _told(ledger.entries[request.request.fingerprint].state), True)


def _told(state: EntryState) -> str:
    """Say what comes of a request that was given up."""
    if state == "retryable":
        return "given up by choice; the next run submits it again, and it may then be paid twice"
    return "given up by choice; it was sent too often to be sent again by itself: ask for a new take (--regenerate)"


async def _can_be_had(fal: FalClient, reserved: Reserved, queued: QueuedRequest) -> bool:
    """Say whether a request's result can be read, and all of its pictures come whole."""
    try:
        output = await Answers(fal, None).output(reserved, queued)
        for url in output.images:
            downloaded = await fal.download(url, max_bytes=MAX_PICTURE_BYTES)
            await asyncio.to_thread(verify, downloaded.content, thumbnail_side=None)
    except (RequestEnded, *_NOT_ASKED):
        raise
    except (FalError, BadPicture):
        return False
    return True

"""Requests that fal has accepted and whose end nobody has seen: which they are, since when, and cancelling them.

Only fal's OK proves that a request was dropped before any work, and costs nothing. Every other answer leaves the row as
it is: the request may still end, and the batch's next run fetches it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from ideogram_pipeline.fal import CancelAnswer, Completed, FalClient, FalError, InQueue
from ideogram_pipeline.generation.ledger import AlreadyWritten, Entry, Ledger, Settled
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.runs import holders, is_alive
from ideogram_pipeline.storage import Store

AT_ONCE = 16
"""So many requests are asked about at a time."""

_ANSWERS = {
    CancelAnswer.CANCELLATION_REQUESTED: "fal was told to stop it; if it still ends well, the next run fetches it",
    CancelAnswer.ALREADY_COMPLETED: "it has ended: the next run fetches it",
    CancelAnswer.NOT_FOUND: "fal knows no such request; `ideogram-pipeline reconcile --give-up` gives it up",
}


@dataclass(frozen=True, slots=True)
class WithFal:
    """A request that fal has accepted and whose end nobody has seen."""

    request: GenerationRequest
    """What was asked."""
    request_id: str
    """fal's id of it."""
    since: datetime
    """When fal's answer to the submit had arrived, UTC."""
    owner: str
    """The run that submitted it."""

    @property
    def told(self) -> str:
        """Say which request it is, and since when."""
        asked = self.request
        return f"{asked.batch}, {asked.prompt_id}: {self.request_id}, with fal since {_when(self.since)}"

    @property
    def advice(self) -> str:
        """Say that it is the one that has waited for the longest time, and what can be done."""
        return f"the oldest request with fal is {self.told}; `ideogram-pipeline cancel` lists and cancels such requests"


@dataclass(frozen=True, slots=True)
class Stuck:
    """A request with fal, as it was found."""

    request: WithFal
    """Which one."""
    status: str
    """What fal says of it."""
    worked_by: str
    """The live run that works on it; empty if none does, and only then may it be cancelled."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What became of a request that was to be cancelled."""

    request: WithFal
    """Which one."""
    left: str
    """Why it is still open; empty if fal has dropped it, and the row is settled."""


def of_entry(entry: Entry) -> WithFal | None:
    """Return an entry's request if it is with fal."""
    if entry.state != "submitted":
        return None
    reserved, submitted = entry.last.reserved, entry.last.submitted
    assert submitted is not None
    return WithFal(reserved.request, submitted.request_id, submitted.submitted_at, reserved.owner)


def oldest(entries: Iterable[Entry]) -> WithFal | None:
    """Return the request that has been with fal for the longest time, if any is."""
    return min(_among(entries), key=lambda one: one.since, default=None)


def with_fal(ledger: Ledger, *, older_than: timedelta = timedelta(0)) -> list[WithFal]:
    """Return the requests of a batch that have been with fal for at least so long, the oldest first."""
    until = datetime.now(UTC) - older_than
    found = (one for one in _among(ledger.entries.values()) if one.since <= until)
    return sorted(found, key=lambda one: one.since)


def _among(entries: Iterable[Entry]) -> Iterator[WithFal]:
    return (found for entry in entries if (found := of_entry(entry)))


class Living:
    """Who works on what is with fal, each looked for once."""

    def __init__(self, store: Store, own_id: str = "") -> None:
        """Leave out who holds batches under `own_id`: whoever asks."""
        self._store = store
        self._own_id = own_id
        self._alive: dict[str, asyncio.Task[bool]] = {}
        self._holders: dict[str, asyncio.Task[list[str]]] = {}

    async def at_work(self, request: WithFal) -> str:
        """Return the live run that may be working on a request: its own, or one that holds its batch; or nothing."""
        owner, batch = request.owner, request.request.batch
        if owner not in self._alive:
            self._alive[owner] = asyncio.create_task(is_alive(self._store, owner))
        if batch not in self._holders:
            self._holders[batch] = asyncio.create_task(asyncio.to_thread(holders, self._store, batch))
        if await asyncio.shield(self._alive[owner]):
            return owner
        held = await asyncio.shield(self._holders[batch])
        return next((one for one in held if one != self._own_id), "")


async def look(
    fal: FalClient, store: Store, requests: Sequence[WithFal], told: Callable[[], None] = lambda: None
) -> list[Stuck]:
    """Ask fal about requests, and whether a live run works on them; `told` is called after each."""
    living, turn = Living(store), asyncio.Semaphore(AT_ONCE)

    async def one(request: WithFal) -> Stuck:
        worked_by = await living.at_work(request)
        async with turn:
            status = await _status(fal, request)
        told()
        return Stuck(request, status, worked_by)

    return list(await asyncio.gather(*map(one, requests)))


async def cancel(
    fal: FalClient,
    store: Store,
    ledger: Ledger,
    requests: Sequence[WithFal],
    *,
    told: Callable[[], None] = lambda: None,
    own_id: str = "",
) -> list[Cancelled]:
    """Cancel requests of a batch that no live run works on; what fal has dropped is settled, at no cost.

    `own_id` is the name under which the caller holds the batch.

    The newest goes first, so that no place falls free for one that is about to be cancelled.

    Raises:
        StoreError: the ledger is out of reach.
    """
    ledger.catch_up()
    living = Living(store, own_id)
    found = []
    for request in sorted(requests, key=lambda one: one.since, reverse=True):
        found.append(Cancelled(request, await _cancelled(fal, ledger, request, living)))
        told()
    return found


async def _cancelled(fal: FalClient, ledger: Ledger, request: WithFal, living: Living) -> str:
    """Cancel a request; return why it is still open, nothing if it isn't."""
    fingerprint = request.request.fingerprint
    if of_entry(ledger.entries.get(fingerprint, Entry())) != request:
        return ""  # its end was recorded since it was listed
    if owner := await living.at_work(request):
        return f"the run {owner} works on it"
    try:
        answer = await fal.cancel(fal.attach(request.request.endpoint_id, request.request_id))
    except FalError as error:
        return f"fal could not be asked: {error}"
    if answer is not CancelAnswer.OK:
        return _ANSWERS[answer]
    await settle_cancelled(ledger, fingerprint)
    return ""


async def settle_cancelled(ledger: Ledger, fingerprint: str) -> None:
    """Record that fal dropped a request before any work, by a person's wish; a later run sends it again."""
    settled = Settled(
        state="failed",
        reason="cancelled by hand before it started",
        retryable=True,
        completed_at=datetime.now(UTC),
        cost_usd=Decimal(0),
        cost_source="price_list",
    )
    try:
        await ledger.settle(fingerprint, settled)
    except AlreadyWritten:
        return  # somebody else has seen its end


async def _status(fal: FalClient, request: WithFal) -> str:
    try:
        status = await fal.status(fal.attach(request.request.endpoint_id, request.request_id))
    except FalError as error:
        return f"fal doesn't say where it is: {error}"
    if isinstance(status, Completed):
        return "it has ended, and can be fetched"
    if isinstance(status, InQueue):
        place = "" if status.position is None else f", {status.position} ahead of it"
        return f"it waits in fal's queue{place}"
    return "fal works on it"


def _when(since: datetime) -> str:
    minutes = max(int((datetime.now(UTC) - since).total_seconds()) // 60, 0)
    days, hours = divmod(minutes // 60, 24)
    parts = [(days, "d"), (hours, "h"), (minutes % 60, "min")]
    ago = " ".join(f"{count} {unit}" for count, unit in parts if count) or "less than 1 min"
    return f"{since:%Y-%m-%d %H:%M:%S} UTC ({ago})"

"""One batch from its plan to what it leaves: the one function that pays, and the one for a batch that may not pay.

The asset calls it, the tests do, and whoever wants to work a batch without Dagster. The run holds the batch, for others
to see, from before the first request until everything is recorded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ideogram_pipeline import logs, memory
from ideogram_pipeline.generation import files, lost_ledgers
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.cancelling import WithFal, oldest
from ideogram_pipeline.generation.engine import Engine, Observer
from ideogram_pipeline.generation.files import Results
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.outcomes import Failed, NotReached, Outcomes, Reused
from ideogram_pipeline.generation.planner import TO_PAY, Plan
from ideogram_pipeline.generation.recording import Worked, record, rows_of
from ideogram_pipeline.generation.runs import working
from ideogram_pipeline.storage import Store
from ideogram_pipeline.telemetry import span
from ideogram_pipeline.threads import to_its_end

if TYPE_CHECKING:
    from ideogram_pipeline.faces import Faces
    from ideogram_pipeline.fal import FalClient

Leaving = Callable[[Callable[[], Awaitable[object]]], AbstractAsyncContextManager[None]]
"""Makes the block that may be interrupted; it is given what cancels at fal, to be called where that is wanted."""


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """How a run works a batch."""

    run: RunFacts
    """What it writes into every entry that it makes."""
    budget: Budget
    """What it may spend."""
    observer: Observer
    """Who is told how rows end."""
    marking: Marking
    """What pictures say of themselves."""
    max_in_flight: int
    """Requests with fal at a time."""
    max_wait_s: float
    """Seconds after which a request is left for the next run."""
    inline_bytes: int
    """References up to so many bytes travel inside the request."""
    thumbnails: bool
    """Whether a small picture is made of each."""
    faces: Faces | None = None
    """What measures faces, if they are to be measured."""
    webhook_url: str | None = None
    """Where fal delivers how requests end, if it does."""


@dataclass(frozen=True, slots=True)
class WorkedBatch:
    """What a run has made of a batch."""

    results: Results
    """What the batch holds now: the rows of every table that has it."""
    own: Results
    """Those of the rows that this run was asked for."""
    reused: int
    """Rows that this run was asked for and whose pictures were there."""
    spent_usd: float
    """Dollars settled in this run."""
    waiting: WithFal | None
    """Of the rows that this run was asked for, the request that has been with fal for the longest time, if any is."""


@asynccontextmanager
async def _leave(cancel: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:  # noqa: ARG001 - as `Leaving` has it
    yield


async def work(
    store: Store,
    plan: Plan,
    make_client: Callable[[], FalClient],
    options: WorkOptions,
    *,
    leaving: Leaving = _leave,
) -> WorkedBatch:
    """Work every request of a plan to its outcome and record what the batch holds then. Nothing is paid for twice.

    Cancelling this call ends the work as `Engine.run` says, inside what `leaving` makes; a recording that has begun is
    brought to its end.

    Raises:
        BeingErased: an erasure holds the batch; nothing was submitted.
        PipelineError: the store failed, or the ledger lacks what was paid for; what was submitted is in the ledger.
    """
    batch, run_id = plan.batch, options.run.run_id
    with working(store, run_id, batch) as beat:
        plan = await asyncio.to_thread(files.without_erased, store, plan)
        ledger = await asyncio.to_thread(_open_ledger, store, batch)
        asked = [row.fingerprint for row in plan.rows if row.decision in TO_PAY and row.fingerprint]
        lost_ledgers.check_asked(store, batch, [one for one in asked if one not in ledger.entries])
        async with make_client() as client:
            engine = Engine(
                client,
                store,
                ledger,
                run=options.run,
                max_in_flight=options.max_in_flight,
                max_wait_s=options.max_wait_s,
                inline_bytes=options.inline_bytes,
                thumbnails=options.thumbnails,
                budget=options.budget,
                observer=options.observer,
                marking=options.marking,
                faces=options.faces,
                webhook_url=options.webhook_url,
                beat=beat,
            )
            with logs.of_run(run_id), span("generate", batch=batch, run_id=run_id, rows=len(plan.requests)):
                async with leaving(engine.cancel_queued):
                    outcomes = await engine.run(plan.requests)
        memory.give_back()
        return await to_its_end(lambda: _recorded(store, ledger, plan, outcomes, float(engine.spent_usd)))


async def stop(store: Store, plan: Plan, run_id: str, reason: str) -> None:
    """Record that a run pays for nothing of its plan: every row gets an outcome all the same.

    The rows that were to be paid for were not reached, for this reason; the others are as the ledger has them, or as
    their run has recorded.

    Raises:
        BeingErased: an erasure holds the batch; nothing was recorded.
        PipelineError: the store failed, or the ledger lacks what was paid for.
    """
    with working(store, run_id, plan.batch):
        plan = await asyncio.to_thread(files.without_erased, store, plan)
        ledger = await asyncio.to_thread(_open_ledger, store, plan.batch)
        outcomes = Outcomes(plan.requests, ledger.entries)
        for row in plan.rows:
            if row.decision in TO_PAY and (request := row.request):
                outcomes.add(NotReached(request, ledger.entries.get(request.fingerprint), reason))
        await to_its_end(lambda: _recorded(store, ledger, plan, outcomes, 0.0))


def _open_ledger(store: Store, batch: str) -> Ledger:
    """Open a batch's ledger, unless it lacks what was paid for: that would be paid again, and what tells of it lost."""
    ledger = Ledger(store, batch)
    lost_ledgers.check(store, batch, ledger.entries)
    return ledger


def _recorded(store: Store, ledger: Ledger, plan: Plan, outcomes: Outcomes, spent_usd: float) -> WorkedBatch:
    for row in plan.rows:
        if row.decision == "left out" and (request := row.request):
            entry = ledger.entries.get(request.fingerprint)
            outcomes.add(NotReached(request, entry, row.reason, "left_out"))
    worked = Worked(plan, outcomes)
    results = record(store, ledger, worked)
    own = rows_of(store, ledger, worked, results)
    ledger.keep_copy()
    memory.give_back()
    reused = sum(isinstance(outcomes.now(request), Reused) for request in plan.requests)
    waiting = oldest(one.entry for one in outcomes.of_kind(NotReached, Failed) if one.entry)
    return WorkedBatch(results, own, reused, spent_usd, waiting)

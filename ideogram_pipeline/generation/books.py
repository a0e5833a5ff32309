"""What a run writes of its money: ledger and budget, kept in step.

Every transition of a request passes through here. What is reserved in the budget is reserved in the ledger next, and
given back when the ledger says that it cost nothing, or less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from pydantic import JsonValue

from ideogram_pipeline.fal import Completed, QueuedRequest
from ideogram_pipeline.fal.errors import Cancelled, ModelRefused, RequestEnded
from ideogram_pipeline.generation.budget import Budget, Reservation
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
    request_ids,
)
from ideogram_pipeline.generation.reconcile import digest
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.telemetry import PICTURES, RETRIES, SETTLED, SPENT


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run writes into every entry it makes."""

    run_id: str
    """The Dagster run."""
    backend: str
    """`fal` or `sandbox`."""
    code_version: str
    """Version of this package."""


class Books:
    """The ledger of one batch and the budget of one run."""

    def __init__(self, ledger: Ledger, budget: Budget, run: RunFacts) -> None:
        self.ledger = ledger
        """What is known of every request."""
        self.spent_usd = Decimal(0)
        """Dollars of everything settled in this run whose cost is known."""
        self._budget = budget
        self._run = run
        self._reservations: dict[str, Reservation] = {}
        self._request_ids = request_ids(ledger.entries.values())

    def entry(self, request: GenerationRequest) -> Entry:
        """Return what is known of a request."""
        return self.ledger.entries.get(request.fingerprint, Entry())

    async def reserve(
        self, request: GenerationRequest, arguments: Mapping[str, JsonValue], *, uploaded: bool
    ) -> None:
        """Claim the request's next attempt, and the money for it; `arguments` is the body about to be sent.

        `uploaded` says whether it gives fal the bytes of every picture.

        Raises:
            OverBudget: a spending limit has no room for it.
            UnknownPrice: it has no known price, and such requests aren't allowed.
            AlreadyWritten: another run has claimed the attempt.
        """
        reserved = Reserved(
            request=request,
            sent_sha256=digest(arguments),
            uploaded=uploaded,
            attempt=self.entry(request).next_attempt,
            owner=self._run.run_id,
            reserved_at=datetime.now(UTC),
            backend=self._run.backend,
            code_version=self._run.code_version,
        )
        self._reservations[request.fingerprint] = await self._budget.reserve(request.price_usd)
        try:
            await self.ledger.reserve(reserved)
        except AlreadyWritten:
            await self._return_money(request, Decimal(0))
            raise
        RETRIES.add(reserved.attempt > 1, {"of": "request"})

    async def release(self, request: GenerationRequest, reason: str) -> None:
        """Record that the attempt's POST was never accepted."""
        released = Released(released_at=datetime.now(UTC), reason=reason)
        await self.ledger.release(request.fingerprint, released)
        await self._return_money(request, Decimal(0))

    def caught_up(self) -> None:
        """Know of the requests that the ledger has learned of from others."""
        self._request_ids = request_ids(self.ledger.entries.values())

    def is_known(self, request_id: str) -> bool:
        """Say whether an entry of the batch holds fal's request of this id already."""
        return request_id in self._request_ids

    async def submitted(self, request: GenerationRequest, queued: QueuedRequest) -> None:
        """Record fal's answer to the POST."""
        submitted = Submitted.of(queued, datetime.now(UTC))
        self._request_ids.add(queued.request_id)
        try:
            await self.ledger.submitted(request.fingerprint, submitted)
        except AlreadyWritten:
            return  # somebody who took this run for dead has found the request at fal

    async def generated(
        self,
        request: GenerationRequest,
        completed: Completed,
        seed: int | None,
        images: Sequence[StoredImage],
        *,
        attempt: int,
    ) -> None:
        """Record a request whose pictures, at least one, all lie in the store."""
        price = request.price_usd
        cost = None if price is None else price / request.num_images * min(len(images), request.num_images)
        await self._settle(
            request,
            Settled(
                state="generated",
                images=tuple(images),
                seed=seed,
                inference_s=completed.inference_s,
                completed_at=datetime.now(UTC),
                cost_usd=cost,
                cost_source="unknown" if cost is None else "price_list",
            ),
            attempt,
        )

    async def ended(
        self, request: GenerationRequest, error: RequestEnded, *, again: bool, attempt: int
    ) -> None:
        """Record a request that ended without a result; `again` says that a new one may succeed all the same."""
        await self._settle(request, settlement_of(error, again=again), attempt)

    async def lost(self, request: GenerationRequest, reason: str, *, attempt: int) -> None:
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
            attempt,
        )

    async def cancelled(self, request: GenerationRequest, *, attempt: int) -> None:
        """Record that fal dropped a request before any work, at our wish; a later run sends it again."""
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
            attempt,
        )

    async def close(self) -> None:
        """Hold no money any more."""
        await self._budget.close()

    async def _settle(self, request: GenerationRequest, settled: Settled, attempt: int) -> None:
        try:
            await self.ledger.settle(request.fingerprint, settled, attempt=attempt)
        except AlreadyWritten:
            return  # another run fetched it too; what it recorded stands
        await self._return_money(request, settled.cost_usd)
        SETTLED.add(1, {"endpoint": request.endpoint, "state": settled.state})
        PICTURES.add(len(settled.images), {"endpoint": request.endpoint})
        SPENT.add(float(settled.cost_usd or 0), {"endpoint": request.endpoint, "source": settled.cost_source})
        self.spent_usd += settled.cost_usd or Decimal(0)

    async def _return_money(self, request: GenerationRequest, cost: Decimal | None) -> None:
        """Give back to the budget what this run reserved for a request and the request did not cost."""
        reservation = self._reservations.pop(request.fingerprint, None)
        if reservation:
            await self._budget.settle(reservation, cost)


def settlement_of(error: RequestEnded, *, again: bool = False) -> Settled:
    """Return what the ledger is to say of a request that ended in this error; `again`: a new one may succeed."""
    cost, source = _cost_of_failure(error)
    return Settled(
        state="refused" if isinstance(error, ModelRefused) else "failed",
        reason=str(error),
        retryable=again or error.may_resubmit or isinstance(error, Cancelled),
        completed_at=datetime.now(UTC),
        cost_usd=cost,
        cost_source=source,
    )


def _cost_of_failure(error: RequestEnded) -> tuple[Decimal | None, CostSource]:
    """Return what a request without a result cost: nothing where fal says so, else unknown."""
    if error.billable_units == 0:
        return Decimal(0), "billable_units_header"
    return (None, "unknown") if error.may_be_billed else (Decimal(0), "price_list")

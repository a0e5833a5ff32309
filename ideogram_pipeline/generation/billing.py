"""What fal charged: its billing events, kept beside the attempts they belong to.

A bill is found by the id of its request. So a submit that was never answered has none, as long as its request isn't
found: billing events do not hold what was sent, and one that no attempt accounts for may belong to anybody who uses the
same account. Where fal keeps no payloads, such a submit stays unknown, whatever the key may read.

A listed event proves a charge. A missing one proves nothing: fal books late, and lists no request that cost nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from ideogram_pipeline.fal import BillingEvent, FalClient
from ideogram_pipeline.generation.ledger import AlreadyWritten, Attempt, Billed, Entry, Ledger

IDS_AT_ONCE = 50
"""fal's limit on the request ids of one question (fal docs, billing events)."""
LONGEST_PERIOD = timedelta(days=90)
"""fal's limit on the time that one question covers, likewise."""
SKEW = timedelta(days=1)
"""How far fal's clock and ours may be apart."""
SENT_WITHIN = timedelta(days=45)
"""What one question asks for was sent within so long; the rest of its period is for fal to book it."""


@dataclass(frozen=True, slots=True)
class Bill:
    """What fal has charged for the requests of a batch, as far as it was read, beside what was expected."""

    batch: str
    """The partition."""
    requests: int
    """Requests that fal has accepted."""
    billed: int
    """Those of them whose charge is known from fal."""
    billed_usd: Decimal
    """US dollars charged for them."""
    expected_usd: Decimal
    """US dollars that those cost by the list price and fal's answers, where that could be told."""
    unforeseen: int
    """Those of them whose cost could not be told."""
    unforeseen_usd: Decimal
    """US dollars charged for the latter; they are in `billed_usd`."""

    @property
    def difference_usd(self) -> Decimal:
        """US dollars charged beyond what was expected; less than 0 if it was cheaper."""
        return self.billed_usd - self.unforeseen_usd - self.expected_usd


def bill(batch: str, entries: Mapping[str, Entry]) -> Bill:
    """Add up what the ledger of a batch knows of fal's bills."""
    accepted = [attempt for entry in entries.values() for attempt in entry.attempts if attempt.submitted]
    charges = [(attempt.billed.usd, attempt.expected.usd) for attempt in accepted if attempt.billed]
    unforeseen = [billed for billed, expected in charges if expected is None]
    return Bill(
        batch=batch,
        requests=len(accepted),
        billed=len(charges),
        billed_usd=sum((billed for billed, _ in charges), Decimal(0)),
        expected_usd=sum((expected for _, expected in charges if expected is not None), Decimal(0)),
        unforeseen=len(unforeseen),
        unforeseen_usd=sum(unforeseen, Decimal(0)),
    )


async def read_bills(fal: FalClient, ledger: Ledger) -> None:
    """Ask fal what it charged for every accepted attempt whose bill isn't known, and record what it says.

    Raises:
        FalError: fal doesn't tell, `Forbidden` if the key may not know; what was read before that is recorded.
    """
    unbilled = {
        attempt.submitted.request_id: (fingerprint, attempt)
        for fingerprint, entry in ledger.entries.items()
        for attempt in entry.attempts
        if attempt.submitted and not attempt.billed
    }
    for question in _questions(attempt for _, attempt in unbilled.values()):
        listing = await fal.billing_events(
            start=question.start, end=question.end, request_ids=question.request_ids
        )
        for request_id, events in _by_request(listing.items).items():
            if request_id in question.request_ids:
                fingerprint, _ = unbilled[request_id]
                await _record(ledger, fingerprint, events)


@dataclass(frozen=True, slots=True)
class _Question:
    request_ids: tuple[str, ...]
    start: datetime
    end: datetime


def _questions(attempts: Iterable[Attempt]) -> Iterator[_Question]:
    """Split what is to be asked as fal's limits want it, oldest first."""
    now = datetime.now(UTC)
    rest = sorted(attempts, key=lambda attempt: attempt.reserved.reserved_at)
    while rest:
        first = rest[0].reserved.reserved_at
        asked = [one for one in rest[:IDS_AT_ONCE] if one.reserved.reserved_at - first <= SENT_WITHIN]
        rest = rest[len(asked) :]
        start = min(first, now) - SKEW
        yield _Question(
            request_ids=tuple(one.submitted.request_id for one in asked if one.submitted),
            start=start,
            end=min(start + LONGEST_PERIOD, now + SKEW),
        )


def _by_request(events: Iterable[BillingEvent]) -> dict[str, list[BillingEvent]]:
    """Return the events that name an amount; one that two pages repeat counts once."""
    found: dict[str, list[BillingEvent]] = defaultdict(list)
    for event in dict.fromkeys(events):
        if event.usd is not None:
            found[event.request_id].append(event)
    return found


async def _record(ledger: Ledger, fingerprint: str, events: list[BillingEvent]) -> None:
    units = [event.output_units for event in events]
    prices = {event.unit_price for event in events}
    billed = Billed(
        request_id=events[0].request_id,
        units=sum((one for one in units if one is not None), Decimal(0)) if None not in units else None,
        unit_price_usd=prices.pop() if len(prices) == 1 else None,
        usd=sum((event.usd for event in events if event.usd is not None), Decimal(0)),
        billed_at=max(event.timestamp for event in events),
        read_at=datetime.now(UTC),
    )
    try:
        await ledger.billed(fingerprint, billed)
    except AlreadyWritten:
        return  # somebody else has asked meanwhile

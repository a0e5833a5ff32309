"""How a row ended: a small closed family, each member carrying its facts. Every planned row ends as exactly one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ideogram_pipeline.generation.ledger import Entry, EntryState
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.rows import OutcomeRow, OutcomeState

UNANSWERED = (
    "its submit was never answered; it may have been paid, and is not sent again by itself "
    "(`ideogram-pipeline reconcile` looks for it, and can give it up)"
)
"""Why a row is unknown whose attempt is reserved, and whose run is gone."""


@dataclass(frozen=True, slots=True)
class Generated:
    """Paid for in this run, and its pictures are in the store."""

    request: GenerationRequest
    """What was asked."""
    entry: Entry
    """What the ledger holds of it, settled."""


@dataclass(frozen=True, slots=True)
class Reused:
    """Paid for in an earlier run; its pictures are in the store."""

    request: GenerationRequest
    """What was asked."""
    entry: Entry
    """What the ledger holds of it, settled."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The model refused the input; the same input would be refused again."""

    request: GenerationRequest
    """What was asked."""
    entry: Entry
    """What the ledger holds of it, settled."""
    reason: str
    """The model's reasons."""


@dataclass(frozen=True, slots=True)
class Failed:
    """No picture, for a reason that is not the input's: the request failed, or what it made could not be fetched."""

    request: GenerationRequest
    """What was asked."""
    entry: Entry
    """What the ledger holds of it."""
    reason: str
    """What failed, and whether the next run tries again."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A submit whose answer never came: it may be paid, and is not sent again before it was looked for."""

    request: GenerationRequest
    """What was asked."""
    entry: Entry
    """What the ledger holds of it: reserved."""
    reason: str
    """What happened to the answer."""


@dataclass(frozen=True, slots=True)
class NotReached:
    """Nothing was paid in this run: it stopped before the row, or left it with fal for the next run to fetch."""

    request: GenerationRequest
    """What was to be asked."""
    entry: Entry | None
    """What the ledger holds of it, if anything."""
    reason: str
    """Why the run stopped."""
    because: Literal["stopped", "left_out", "elsewhere"] = "stopped"
    """The run stopped before it, a person left it out of the run, or another run is working on it."""


Outcome = Generated | Reused | Refused | Failed | Unknown | NotReached


@dataclass(frozen=True, slots=True)
class _End:
    """How a row ended, without the row."""

    kind: type[Outcome]
    reason: str
    because: Literal["stopped", "left_out", "elsewhere"]
    state: EntryState
    """What the ledger said of it then."""


class Outcomes(Collection[Outcome]):
    """How each of a run's requests ended, in their order.

    Only the ends are kept: what was asked and what the ledger holds of it are looked up when somebody goes through
    them, as they are then.
    """

    def __init__(self, requests: Collection[GenerationRequest], entries: Mapping[str, Entry]) -> None:
        self._requests = requests
        self._entries = entries
        self._ends: dict[str, _End] = {}
        self._of_one_kind: dict[_End, _End] = {}

    def add(self, outcome: Outcome) -> None:
        """Take how a request ended, in place of how it had ended before."""
        because = outcome.because if isinstance(outcome, NotReached) else "stopped"
        state = outcome.entry.state if outcome.entry else "new"
        end = _End(type(outcome), reason_of(outcome), because, state)
        self._ends[outcome.request.fingerprint] = self._of_one_kind.setdefault(end, end)

    def now(self, request: GenerationRequest) -> Outcome | None:
        """Return how a request ended, or what the ledger says since; None where this run didn't work it."""
        end, entry = self._ends.get(request.fingerprint), self._entries.get(request.fingerprint)
        if end is None:
            return None
        if entry and entry.state != end.state and entry.state in _SETTLED:
            return of_entry(request, entry)
        return _outcome(request, entry, end)

    def of_kind(self, *kinds: type[Outcome]) -> Iterator[Outcome]:
        """Yield those that are of one of these kinds."""
        wanted = {name for name, end in self._ends.items() if end.kind in kinds}
        if wanted:
            yield from self._among(request for request in self._requests if request.fingerprint in wanted)

    def __iter__(self) -> Iterator[Outcome]:
        """Yield every outcome, in the order of the requests."""
        return self._among(self._requests)

    def __len__(self) -> int:
        """Return how many requests have ended."""
        return len(self._ends)

    def __contains__(self, outcome: object) -> bool:
        """Say whether a request has ended just so; goes through all."""
        return any(outcome == one for one in self)

    def _among(self, requests: Iterable[GenerationRequest]) -> Iterator[Outcome]:
        for request in requests:
            end, entry = self._ends[request.fingerprint], self._entries.get(request.fingerprint)
            yield _outcome(request, entry, end)


def _outcome(request: GenerationRequest, entry: Entry | None, end: _End) -> Outcome:
    if end.kind is NotReached:
        return NotReached(request, entry, end.reason, end.because)
    known = entry or Entry()
    if end.kind is Generated or end.kind is Reused:
        return end.kind(request, known)
    return end.kind(request, known, end.reason)  # type: ignore[call-arg]  # the kinds with a reason


class LeftOpen(Exception):
    """A row ends for this run in a way that its ledger entry does not settle."""

    def __init__(self, kind: Callable[[GenerationRequest, Entry, str], Outcome], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        """Makes the outcome."""
        self.reason = reason
        """Its reason."""


def left_to_another_run(request: GenerationRequest, entry: Entry | None, reason: str) -> NotReached:
    """Return the outcome of a row that another run is working on."""
    return NotReached(request, entry, reason, "elsewhere")


def is_missing(outcome: Outcome) -> bool:
    """Say whether a row should have its pictures and has none: nobody left it out, and no other run is making them."""
    match outcome:
        case Generated() | Reused():
            return False
        case NotReached():
            return outcome.because == "stopped"
        case _:
            return True


def of_entry(request: GenerationRequest, entry: Entry) -> Outcome:
    """Return how a row ended as far as the ledger tells, without any run that says more."""
    if entry.damage:
        return Unknown(request, entry, entry.damage)
    settled = next((one.settled for one in reversed(entry.attempts) if one.settled), None)
    match entry.state:
        case "generated":
            return Reused(request, entry)
        case "refused":
            return Refused(request, entry, settled.reason if settled else "")
        case "failed" | "retryable":
            return Failed(request, entry, settled.reason if settled else "")
        case "reserved":
            return Unknown(request, entry, UNANSWERED)
        case _:
            submitted = entry.last.submitted
            reason = (
                f"{submitted.request_id} is with fal; the next run fetches it"
                if submitted
                else "fal has not accepted it; the next run sends it"
            )
            return NotReached(request, entry, reason)


def recalled(request: GenerationRequest, entry: Entry | None, row: OutcomeRow) -> Outcome:
    """Return the outcome that a run has recorded, or what the ledger says since."""
    had_pictures = (
        row.state == "failed" and row.images > 0
    )  # they were lost, and the ledger knows nothing of that
    if entry and entry.damage:
        return of_entry(request, entry)
    if entry and entry.state in _SETTLED and row.state != entry.state and not had_pictures:
        return of_entry(request, entry)
    was_open = row.state == "unknown" or (row.request_id and row.reason.startswith(row.request_id))
    if entry and was_open and entry.state not in ("reserved", "submitted", "generated"):
        return of_entry(request, entry)  # it was cancelled, or given up
    because: Literal["stopped", "elsewhere"] = "stopped" if row.due else "elsewhere"
    return _outcome(request, entry, _End(_KINDS[row.state], row.reason, because, "new"))


def state_of(outcome: Outcome) -> OutcomeState:
    """Return the row's visible state; a reused row is generated."""
    match outcome:
        case Generated() | Reused():
            return "generated"
        case Refused():
            return "refused"
        case Failed():
            return "failed"
        case Unknown():
            return "unknown"
        case NotReached():
            return "not_reached"


def reason_of(outcome: Outcome) -> str:
    """Return why a row ended as it did; empty for a generated one."""
    return "" if isinstance(outcome, Generated | Reused) else outcome.reason


_SETTLED = ("generated", "refused", "failed")
"""What the ledger says of a row that has ended."""
_KINDS: Mapping[OutcomeState, type[Outcome]] = {
    "generated": Reused,
    "refused": Refused,
    "failed": Failed,
    "unknown": Unknown,
    "not_reached": NotReached,
}

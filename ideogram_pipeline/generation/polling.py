"""When to ask fal how a request is getting on: seldom, and when an answer is likely.

What belongs here: a model of waiting that learns while it runs. It has no clock, no HTTP and no event loop: it is told
what was seen and when, and says when to ask next. All times are seconds of one clock, whichever.

A request waits in fal's queue, then it is worked on. How long the work takes is learned from what fal reports, for
each kind of request. How long the queue is follows from the requests that ended lately: what passed from submit to
answer, less the work, is queue plus lateness of ours, so that the least of a few is about the queue.

Being late costs nothing while requests of ours wait at fal, for there the next one starts by itself. So the model is
patient: it first asks when most of a kind would be done. Where none waits, being late keeps work from starting, so it
is eager; and for the last requests of a batch, where somebody waits for us, it is in a hurry.

Where fal delivers the ends by itself, asking only catches what was not delivered. So the model asks after several
times what deliveries took lately, and returns to its own ways when ends are found that should have been delivered.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from ideogram_pipeline.generation.ledger import Entry
from ideogram_pipeline.generation.requests import GenerationRequest

SWEEP_S = 30.0
"""No two questions about a request are further apart, in seconds."""
SHORTEST_S = 0.05
"""No two questions about a request are closer together, in seconds."""
LONGEST_SWEEP_S = 600.0
"""Where ends are delivered, no two questions about a request are further apart, in seconds."""

_SCOUTS = 8  # requests of an unknown kind that are asked about from early on; the others wait for their news
_FIRST_SCOUTING_S, _SCOUTING_GROWTH = 0.25, 1.5
_NO_NEWS_S = 10.0
_SAMPLES = 200  # of the work of a kind
_RECENT = 16  # ends, to tell how long the queue is
_DISCOUNT = 0.85  # on that length: what is learned from late answers only would never fall
_SHORT_QUEUE = 0.1  # of the usual work: a queue that may run dry
_MOST_LIKELY = 1.5  # times the longest that a request took lately: one that has ended
_SWEEP_TIMES = 3  # what deliveries took lately; a request that takes longer is asked about
_UNDELIVERED = 3  # ends in a row that were found by asking: deliveries are no longer counted on
_LAST, _LAST_SHARE = 4, 0.025  # how many requests are the last of a batch, at least and of all


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides how long a request is worked on."""

    endpoint: str
    """Short name of the endpoint."""
    speed: str | None
    """Rendering speed, if one is sent."""

    @classmethod
    def of(cls, request: GenerationRequest) -> Self:
        """Return a request's kind."""
        speed = request.arguments.get("rendering_speed")
        return cls(request.endpoint, speed if isinstance(speed, str) else None)


def known_work(entries: Iterable[Entry]) -> list[tuple[Kind, float]]:
    """Return kind and seconds of work of what a ledger holds, oldest first."""
    ends = [(end, attempt) for entry in entries for attempt in entry.attempts if (end := attempt.settled)]
    return [
        (Kind.of(attempt.reserved.request), end.inference_s)
        for end, attempt in sorted(ends, key=lambda pair: pair[0].completed_at)
        if end.inference_s is not None
    ]


@dataclass(frozen=True, slots=True)
class _Manner:
    """How much lateness is worth a question."""

    share: float
    """Of those of a kind that may still be worked on, how many should be done by the next question."""
    closest: float
    """Distance of two questions, at least, in usual lengths of work."""
    overdue: float
    """Distance beyond all that is known, in lengths of what it takes already; so it grows by itself."""


_PATIENT = _Manner(share=0.9, closest=0.25, overdue=0.3)
_EAGER = _Manner(share=0.3, closest=0.05, overdue=0.1)
_HURRIED = _Manner(share=0.1, closest=0.025, overdue=0.05)


class Polling:
    """Says when to ask about each request in flight. One for a run."""

    def __init__(self, known: Iterable[tuple[Kind, float]] = (), *, delivered: bool = False) -> None:
        """Begin with what earlier runs saw: kinds and seconds of work, oldest first.

        `delivered` says that fal delivers the ends of the requests that this run submits.
        """
        self._work: dict[Kind, _Work] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._queues: deque[float] = deque(maxlen=_RECENT)
        self._ends: deque[float] = deque(maxlen=2 * _RECENT)
        self._deliveries: deque[float] = deque(maxlen=_RECENT)
        self._undelivered = 0 if delivered else _UNDELIVERED
        self._asking_since = float("inf") if delivered else -float("inf")
        self._submitted = 0
        self._nothing_left = False
        self.revision = 0
        """Changes when every `next_ask` may have come nearer; who waits for one should then look again."""
        for kind, seconds in known:
            self._of(kind).add(seconds)

    def submitted(self, request_id: str, kind: Kind, now: float) -> None:
        """Take note that fal has just accepted a request."""
        scouts = sum(one.scout and one.kind == kind for one in self._waiting.values())
        scout = not self._of(kind).known and scouts < _SCOUTS
        self._waiting[request_id] = _Waiting(kind, now, scout=scout, not_before=now, asked_at=now)
        self._submitted += 1

    def attached(self, request_id: str, kind: Kind, now: float) -> None:
        """Take note of a request that an earlier run left with fal: it is asked about at once."""
        self.submitted(request_id, kind, now)
        one = self._waiting[request_id]
        one.of_this_run = False

    def nothing_left(self) -> None:
        """Take note that all requests are submitted, so that only the last answer is waited for."""
        self._nothing_left = True
        self.revision += self._hurried

    def queued(self, request_id: str, position: int | None, now: float) -> None:
        """Take note of an answer: it waits, with so many others before it."""
        one = self._asked(request_id, now)
        one.not_before, one.started_by = now, None
        if position is not None and self._ends and now > self._ends[0]:
            one.not_before += (position + 1) * (now - self._ends[0]) / len(self._ends)

    def in_progress(self, request_id: str, now: float) -> None:
        """Take note of an answer: it is worked on."""
        one = self._asked(request_id, now)
        one.started_by = one.started_by or now

    def completed(self, request_id: str, inference_s: float | None, now: float) -> None:
        """Take note of an answer: it ended, after so many seconds of work if fal says so."""
        one = self._waiting[request_id]
        self._ends.append(now)
        if one.of_this_run:
            self._undelivered += 1
            if self._undelivered == _UNDELIVERED:
                self._asking_since = now
                self.revision += 1
        if inference_s is not None:
            work = self._of(one.kind)
            if one.of_this_run and one.submitted_at >= self._asking_since:
                self._queues.append(max(now - one.submitted_at - inference_s, 0.0))
            self.revision += not work.known
            work.add(inference_s)
        self.left(request_id)

    def delivered(self, request_id: str, now: float) -> None:
        """Take note that a request's end was delivered, which says nothing of the seconds of work."""
        one = self._waiting[request_id]
        self._ends.append(now)
        self._undelivered, self._asking_since = 0, float("inf")
        if one.of_this_run:
            self._deliveries.append(now - one.submitted_at)
        self.left(request_id)

    @property
    def sweep_s(self) -> float:
        """Seconds after which a request whose end was not delivered is asked about."""
        return min(max(SWEEP_S, _SWEEP_TIMES * max(self._deliveries, default=0.0)), LONGEST_SWEEP_S)

    def ended_after_s(self, kind: Kind) -> float:
        """Return how many seconds after its submit a request that nobody can ask about has most likely ended."""
        longest = self._of(kind).end(1.0, beyond=0.0)
        return _NO_NEWS_S if longest is None else _MOST_LIKELY * (max(self._queues, default=0.0) + longest)

    def left(self, request_id: str) -> None:
        """Take note that nobody asks about a request any more."""
        was_hurried = self._hurried
        self._waiting.pop(request_id, None)
        self.revision += self._hurried and not was_hurried

    def next_ask(self, request_id: str) -> float:
        """Return when to ask about a request: after the last question, and not more than `SWEEP_S` after it.

        Where its end should be delivered, it is `sweep_s` after the submit, and twice as long after each question.
        """
        one = self._waiting[request_id]
        if not one.asked and not one.of_this_run:
            return one.asked_at
        if one.of_this_run and self._undelivered < _UNDELIVERED:
            return one.asked_at + min(self.sweep_s * 2.0 ** min(one.asked, 8), LONGEST_SWEEP_S)
        return one.asked_at + min(max(self._distance(one), SHORTEST_S), SWEEP_S)

    def _distance(self, one: _Waiting) -> float:
        """Return the seconds from the last question, or the submit, to the next."""
        work = self._of(one.kind)
        if not work.known:
            return _FIRST_SCOUTING_S * _SCOUTING_GROWTH**one.asked if one.scout else _NO_NEWS_S
        manner, starts_at = self._manner(work), self._starts_at(one)
        worked = one.asked_at - starts_at
        end = work.end(manner.share, beyond=worked)
        if end is None:
            return manner.overdue * worked
        return max(end - worked, manner.closest * work.usual if one.asked else 0.0)

    def _starts_at(self, one: _Waiting) -> float:
        """Return when a request was or will be begun, as far as one can tell."""
        queue = _DISCOUNT * min(self._queues, default=0.0)
        starts_at = max(one.submitted_at + queue, one.not_before)
        return starts_at if one.started_by is None else min(starts_at, one.started_by)

    def _manner(self, work: _Work) -> _Manner:
        if self._hurried:
            return _HURRIED
        if len(self._queues) < _RECENT:
            return _PATIENT
        late = (work.end(_PATIENT.share, beyond=0.0) or 0.0) - work.usual
        queue = sorted(self._queues)[_RECENT // 2] - late
        return _EAGER if queue < _SHORT_QUEUE * work.usual else _PATIENT

    @property
    def _hurried(self) -> bool:
        return self._nothing_left and len(self._waiting) <= max(_LAST, _LAST_SHARE * self._submitted)

    def _asked(self, request_id: str, now: float) -> _Waiting:
        one = self._waiting[request_id]
        one.asked += 1
        one.asked_at = now
        return one

    def _of(self, kind: Kind) -> _Work:
        return self._work.setdefault(kind, _Work())


@dataclass(slots=True)
class _Waiting:
    """A request in flight."""

    kind: Kind
    submitted_at: float
    scout: bool
    not_before: float
    asked_at: float
    started_by: float | None = None
    asked: int = 0
    of_this_run: bool = True


class _Work:
    """How long requests of one kind were worked on lately, in seconds."""

    def __init__(self) -> None:
        self._by_age: deque[float] = deque()
        self._by_length: list[float] = []

    def add(self, seconds: float) -> None:
        self._by_age.append(seconds)
        insort(self._by_length, seconds)
        if len(self._by_age) > _SAMPLES:
            del self._by_length[bisect_right(self._by_length, self._by_age.popleft()) - 1]

    @property
    def known(self) -> bool:
        return bool(self._by_age)

    @property
    def usual(self) -> float:
        return self._by_length[len(self._by_length) // 2]

    def end(self, share: float, beyond: float) -> float | None:
        """Return when this share has ended of those that take longer than `beyond`; None where none is known to."""
        first = bisect_right(self._by_length, beyond)
        left = len(self._by_length) - first
        return self._by_length[first + min(int(share * left), left - 1)] if left else None

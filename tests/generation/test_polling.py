"""Waiting: seldom asked, seldom late, never forgotten. All in virtual time."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from random import Random
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.generation.ledger import Attempt, Entry, Reserved, Settled
from ideogram_pipeline.generation.planner import References, plan_row
from ideogram_pipeline.generation.polling import (
    LONGEST_SWEEP_S,
    SHORTEST_S,
    SWEEP_S,
    Kind,
    Polling,
    known_work,
)
from ideogram_pipeline.tables.rows import PromptRow

TURBO = Kind("character", "TURBO")
QUALITY = Kind("character", "QUALITY")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Told:
    """What a simulated batch came to."""

    asks: float
    """Questions a request."""
    late_s: float
    """From the end of a request to its answer, on average."""
    makespan: float
    """Until the last picture, in times of what the server alone would have needed."""
    gaps: Sequence[float]
    """Distances of two questions about a request."""


class Simulation:
    """A server with so many slots and a first-come queue, and a client with so many requests in flight."""

    ROUND_TRIP_S = 0.03
    FINISHING_S = 0.25  # from an answer to the picture in the store

    LOOK_S = 1.0  # from a delivery to its being noticed, at most

    def __init__(
        self,
        works: Sequence[float],
        *,
        slots: int,
        window: int,
        known: Sequence[float] = (),
        is_delivered: Callable[[int], bool] | None = None,
    ) -> None:
        """With `is_delivered` the server delivers the ends of those requests."""
        self.works, self.slots = works, slots
        self.delivers = is_delivered is not None
        self.is_delivered = is_delivered or (lambda _: False)
        self.polling = Polling(((TURBO, seconds) for seconds in known), delivered=self.delivers)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.left = iter(range(len(works)))
        self.queue: list[int] = []
        self.running: set[int] = set()
        self.ended: dict[int, float] = {}
        self.asleep: dict[int, int] = {}
        self.asked_at: dict[int, list[float]] = {}
        self.lates: list[float] = []
        self.happened = 0
        for _ in range(window):
            self.submit_next(0.0)

    def run(self) -> Told:
        now, revision = 0.0, self.polling.revision
        while self.events:
            now, _, happen = heapq.heappop(self.events)
            happen(now)
            if revision != self.polling.revision:
                revision = self.polling.revision
                for request in list(self.asleep):
                    self.sleep(request, now)
        slots = [0.0] * self.slots
        for work in self.works:
            heapq.heapreplace(slots, slots[0] + work)
        gaps = [later - sooner for asked in self.asked_at.values() for sooner, later in pairwise(asked)]
        asks = sum(len(asked) - 1 for asked in self.asked_at.values())
        return Told(asks / len(self.works), mean(self.lates), now / max(slots), gaps)

    def at(self, when: float, happen: Callable[[float], None]) -> None:
        self.happened += 1
        heapq.heappush(self.events, (when, self.happened, happen))

    def submit_next(self, now: float) -> None:
        request = next(self.left, None)
        if request is None:
            self.polling.nothing_left()
        else:
            self.at(now + self.ROUND_TRIP_S, lambda now: self.accept(request, now))

    def accept(self, request: int, now: float) -> None:
        self.queue.append(request)
        self.start(now)
        self.polling.submitted(str(request), TURBO, now)
        self.asked_at[request] = [now]
        self.sleep(request, now)

    def start(self, now: float) -> None:
        while self.queue and len(self.running) < self.slots:
            request = self.queue.pop(0)
            self.running.add(request)
            self.at(now + self.works[request], lambda now, request=request: self.end(request, now))

    def end(self, request: int, now: float) -> None:
        self.running.remove(request)
        self.ended[request] = now
        if self.is_delivered(request):
            self.at(now + self.LOOK_S, lambda now: self.deliver(request, now))
        self.start(now)

    def deliver(self, request: int, now: float) -> None:
        if self.asleep.pop(request, None):
            self.lates.append(now - self.ended[request])
            self.polling.delivered(str(request), now)
            self.at(now + self.FINISHING_S, self.submit_next)

    def sleep(self, request: int, now: float) -> None:
        turn = self.asleep[request] = self.happened
        self.at(
            max(self.polling.next_ask(str(request)), now),
            lambda now: self.wake(request, now) if self.asleep.get(request) == turn else None,
        )

    def wake(self, request: int, now: float) -> None:
        if self.delivers and self.polling.next_ask(str(request)) > now:
            self.sleep(request, now)
        else:
            self.ask(request, now)

    def ask(self, request: int, now: float) -> None:
        del self.asleep[request]
        self.asked_at[request].append(now)
        position = self.queue.index(request) if request in self.queue else None
        ended = self.ended.get(request)
        self.at(now + self.ROUND_TRIP_S, lambda now: self.answer(request, position, ended, now))

    def answer(self, request: int, position: int | None, ended: float | None, now: float) -> None:
        if ended is not None:
            self.lates.append(now - ended)
            self.polling.completed(str(request), self.works[request], now)
            self.at(now + self.FINISHING_S, self.submit_next)
            return
        if position is not None:
            self.polling.queued(str(request), position, now)
        else:
            self.polling.in_progress(str(request), now)
        self.sleep(request, now)


def works(count: int, seed: int, usual: float = 4.0) -> list[float]:
    """Seconds of work as the sandbox draws them: 30 % up or down."""
    chance = Random(seed)
    return [usual * chance.uniform(0.7, 1.3) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("known", [(), works(200, seed=99)], ids=["first run", "later run"])
def test_a_batch_takes_two_questions_a_request_and_hardly_longer_than_the_server_needs(seed, known):
    told = Simulation(works(400, seed), slots=40, window=80, known=known).run()
    assert told.asks < 2.3
    assert told.makespan < 1.03


def test_a_long_batch_settles_to_fewer_questions():
    assert Simulation(works(3000, 1), slots=40, window=80).run().asks < 1.6


def test_where_nothing_waits_at_fal_answers_are_noticed_soon():
    patient = Simulation(works(1000, 1), slots=20, window=80).run()
    eager = Simulation(works(1000, 1), slots=200, window=80).run()
    assert eager.late_s < 0.45 < patient.late_s
    assert eager.asks < 3.5


def test_an_account_of_two_requests_at_a_time_is_not_asked_without_end():
    told = Simulation(works(150, 1), slots=2, window=64).run()
    assert told.asks < 7
    assert told.makespan < 1.02


def test_a_few_requests_of_a_kind_never_seen_are_noticed_soon():
    told = Simulation(works(9, 1, usual=0.6), slots=10, window=64).run()
    assert told.late_s < 0.3


@given(
    works=st.lists(st.floats(0, 200), min_size=1, max_size=40),
    known=st.lists(st.floats(0, 200), max_size=20),
    slots=st.integers(1, 10),
    window=st.integers(1, 30),
)
def test_every_request_is_asked_about_until_it_ends_at_bounded_distances(works, known, slots, window):
    simulation = Simulation([*works, 1.0], slots=slots, window=window, known=known)
    told = simulation.run()
    assert simulation.ended.keys() == set(range(len(works) + 1))
    rounding, answer = 1e-6, Simulation.ROUND_TRIP_S
    assert all(SHORTEST_S - rounding <= gap <= SWEEP_S + answer + rounding for gap in told.gaps)


@given(seconds=st.floats(0.5, 100), learned=st.integers(1, 300))
def test_a_request_that_behaves_as_learned_is_asked_about_once(seconds, learned):
    polling = Polling([(TURBO, seconds)] * learned)
    polling.submitted("a", TURBO, now=1000.0)
    asked_at = polling.next_ask("a")
    assert min(seconds, SWEEP_S) == pytest.approx(asked_at - 1000.0)


def test_kinds_are_learned_apart():
    polling = Polling([(TURBO, 2.0), (QUALITY, 20.0)])
    polling.submitted("fast", TURBO, now=0.0)
    polling.submitted("slow", QUALITY, now=0.0)
    assert (polling.next_ask("fast"), polling.next_ask("slow")) == (2.0, 20.0)


def test_a_request_that_nobody_can_ask_about_is_given_longer_than_any_other_took():
    polling = Polling([(TURBO, 2.0), (TURBO, 4.0)])
    assert 4.0 < polling.ended_after_s(TURBO) < 10.0
    before = polling.ended_after_s(TURBO)
    polling.submitted("queued", TURBO, 0.0)
    polling.completed("queued", 3.0, 63.0)
    assert polling.ended_after_s(TURBO) > before + 60.0
    assert polling.ended_after_s(QUALITY) > 0.0


def test_of_an_unknown_kind_only_a_few_are_asked_about_before_the_first_news():
    polling = Polling()
    for number in range(20):
        polling.submitted(str(number), TURBO, now=0.0)
    assert sum(polling.next_ask(str(number)) < 1.0 for number in range(20)) == 8
    revision = polling.revision
    polling.completed("0", 3.0, now=3.1)
    assert polling.revision != revision
    assert polling.next_ask("19") < 6.0


def test_a_queued_request_is_asked_about_when_those_before_it_should_have_ended():
    polling = Polling([(TURBO, 4.0)])
    for number in range(10):
        polling.submitted(str(number), TURBO, now=0.0)
        polling.completed(str(number), 4.0, now=4.0 + number)
    polling.submitted("a", TURBO, now=14.0)
    polling.queued("a", 4, now=15.0)
    assert polling.next_ask("a") == pytest.approx(15.0 + 5 * 1.1 + 4.0)


def test_a_request_that_fal_put_back_into_the_queue_begins_anew():
    polling = Polling([(TURBO, 4.0)])
    polling.submitted("a", TURBO, now=0.0)
    polling.in_progress("a", now=3.0)
    polling.queued("a", None, now=10.0)
    assert polling.next_ask("a") == pytest.approx(14.0)


def test_a_stuck_request_is_asked_about_ever_more_seldom_up_to_the_sweep():
    polling = Polling([(TURBO, 4.0)])
    polling.submitted("a", TURBO, now=0.0)
    gaps, now = [], 0.0
    for _ in range(40):
        gaps.append(round(polling.next_ask("a") - now, 6))
        now = polling.next_ask("a")
        polling.in_progress("a", now)
    assert gaps[2:] == sorted(gaps[2:])
    assert gaps[-1] == SWEEP_S


def test_the_last_requests_are_asked_about_more_often_and_the_change_is_told():
    polling = Polling([(TURBO, seconds) for seconds in works(100, 1)])
    for number in range(6):
        polling.submitted(str(number), TURBO, now=0.0)
    polling.nothing_left()
    patient, revision = polling.next_ask("5"), polling.revision
    polling.completed("0", 4.0, now=5.0)
    assert polling.revision == revision
    polling.left("1")
    assert polling.revision != revision
    assert polling.next_ask("5") < patient


def test_a_request_of_an_earlier_run_is_asked_about_at_once_and_says_nothing_of_the_queue():
    polling = Polling([(TURBO, 4.0)])
    polling.attached("a", TURBO, now=100.0)
    assert polling.next_ask("a") == 100.0
    polling.in_progress("a", now=100.1)
    assert 100.1 < polling.next_ask("a") <= 104.1
    polling.completed("a", 4.0, now=190.0)
    polling.submitted("b", TURBO, now=200.0)
    assert polling.next_ask("b") == 204.0


def test_what_a_ledger_holds_is_known_oldest_first_and_by_kind():
    def entry(speed: str, at: datetime, seconds: float | None) -> Entry:
        row = PromptRow(prompt_id="a", row_number=2, prompt="a lighthouse", rendering_speed=speed)
        asked = plan_row(row, References({}, {}))
        reserved = Reserved.model_construct(request=asked)
        settled = Settled(
            state="generated", inference_s=seconds, completed_at=at, cost_usd=None, cost_source="unknown"
        )
        return Entry((Attempt(reserved, settled=settled),))

    newer = entry("TURBO", NOON, 2.5)
    known = known_work(
        [
            newer,
            entry("QUALITY", NOON - timedelta(1), 20.0),
            entry("TURBO", NOON, None),
            Entry((replace(newer.last, settled=None),)),
        ]
    )
    assert [(kind.speed, seconds) for kind, seconds in known] == [("QUALITY", 20.0), ("TURBO", 2.5)]


@pytest.mark.parametrize("usual", [4.0, 25.0, 60.0])
def test_what_is_delivered_is_hardly_ever_asked_about(usual):
    told = Simulation(works(400, 1, usual), slots=10, window=64, is_delivered=lambda _: True).run()
    assert told.asks < 0.2
    assert told.late_s == pytest.approx(Simulation.LOOK_S, abs=0.1)


def test_a_delivery_in_twenty_that_is_lost_holds_up_nothing_but_itself():
    told = Simulation(works(1000, 1), slots=40, window=80, is_delivered=lambda number: number % 20).run()
    assert told.asks < 0.5
    assert told.makespan < 1.5


def test_where_nothing_is_delivered_a_batch_takes_one_sweep_longer():
    alone = Simulation(works(400, 1), slots=40, window=80)
    waiting = Simulation(works(400, 1), slots=40, window=80, is_delivered=lambda _: False)
    longer = (waiting.run().makespan - alone.run().makespan) * sum(waiting.works) / waiting.slots
    assert 0 < longer < 1.5 * SWEEP_S


def test_after_some_ends_that_were_not_delivered_fal_is_asked_until_one_is():
    polling = Polling([(TURBO, 4.0)], delivered=True)
    for number in range(6):
        polling.submitted(str(number), TURBO, now=0.0)
    for number in range(3):
        assert polling.next_ask("5") == SWEEP_S
        before = polling.revision
        polling.completed(str(number), 4.0, now=31.0)
    assert polling.revision > before
    assert polling.next_ask("5") < 10.0
    polling.delivered("3", now=50.0)
    assert polling.next_ask("5") == polling.sweep_s == 150.0


def test_a_sweep_is_never_further_away_than_ten_minutes():
    polling = Polling(delivered=True)
    polling.submitted("a", TURBO, now=0.0)
    polling.submitted("b", TURBO, now=0.0)
    polling.delivered("a", now=3000.0)
    assert polling.next_ask("b") == LONGEST_SWEEP_S

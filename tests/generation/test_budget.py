"""The budget: whoever spends, in whatever order, on whatever host, no line is passed and what is free comes back."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.generation.budget import (
    BLOCK_REQUESTS,
    BLOCK_SHARE,
    Budget,
    BudgetEntry,
    OverBudget,
    Reservation,
    UnknownPrice,
)
from ideogram_pipeline.storage import Store

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
TODAY = "budget/day=2026-11-22"
ONE = Decimal(1)
CENT = Decimal("0.01")
NOTHING = Decimal(0)


def budget(
    store: Store,
    run_id: str = "run-1",
    *,
    per_run_usd: Decimal | None = None,
    per_day_usd: Decimal | None = None,
    allow_unknown: bool = False,
    now: datetime = NOON,
) -> Budget:
    return Budget(
        store,
        run_id=run_id,
        per_run_usd=per_run_usd,
        per_day_usd=per_day_usd,
        allow_unknown=allow_unknown,
        clock=lambda: now,
    )


def log(store: Store, folder: str) -> list[BudgetEntry]:
    """The entries of a line, oldest first."""
    paths = sorted(found.path for found in store.objects(folder))
    return [BudgetEntry.model_validate_json(store.get(path)) for path in paths]


def total(store: Store, folder: str = TODAY) -> Decimal:
    entries = log(store, folder)
    return entries[-1].total_usd if entries else NOTHING


async def reserve_all(of: Budget, price: Decimal) -> list[Reservation]:
    """Reserve until the line is reached."""
    reservations = []
    try:
        while True:
            reservations.append(await of.reserve(price))
    except OverBudget:
        return reservations


class Run:
    """A run of the model below: what it was handed out, and on which day."""

    def __init__(self, of: Budget) -> None:
        self.budget = of
        self.open: list[tuple[Reservation, str]] = []
        self.counted: Counter[str] = Counter()
        self.crashed = False


class BudgetMachine(RuleBasedStateMachine):
    """Runs on one store against sums kept by hand: of each run, and of each day over all runs."""

    PER_RUN, PER_DAY = Decimal("0.70"), Decimal("1.10")
    NAMES = ("run-1", "run-2", "run-3")

    def __init__(self) -> None:
        super().__init__()
        self.store = Store.open("memory://")
        self.now = NOON
        self.runs: dict[str, Run] = {}

    def begin(self, name: str) -> Run:
        made = Budget(
            self.store,
            run_id=name,
            per_run_usd=self.PER_RUN,
            per_day_usd=self.PER_DAY,
            allow_unknown=False,
            clock=lambda: self.now,
        )
        return Run(made)

    @property
    def today(self) -> str:
        return f"budget/day={self.now.date()}"

    def alive(self) -> list[str]:
        return [name for name, run in self.runs.items() if not run.crashed]

    def held(self, day: str) -> Decimal:
        return sum((run.counted[day] for run in self.runs.values()), NOTHING)

    @rule(name=st.sampled_from(NAMES), cents=st.sampled_from([3, 6, 15, 40]))
    def reserve(self, name: str, cents: int) -> None:
        run = self.runs.setdefault(name, self.begin(name))
        if run.crashed:
            return
        price = cents * CENT
        try:
            reservation = asyncio.run(run.budget.reserve(price))
        except OverBudget:
            others_may_hold = [other for other in self.runs.values() if other is not run]
            if not others_may_hold:
                assert (
                    min(self.PER_RUN - sum(run.counted.values()), self.PER_DAY - self.held(self.today))
                    < price
                )
            return
        run.open.append((reservation, self.today))
        run.counted[self.today] += price

    @precondition(lambda self: any(self.runs[name].open for name in self.alive()))
    @rule(data=st.data(), share=st.sampled_from([0, 0, Decimal("0.5"), 1, None]))
    def settle(self, data: st.DataObject, share: Decimal | None) -> None:
        run = self.runs[data.draw(st.sampled_from([name for name in self.alive() if self.runs[name].open]))]
        reservation, day = data.draw(st.sampled_from(run.open))
        cost = None if share is None else reservation.usd * share
        asyncio.run(run.budget.settle(reservation, cost))
        if cost is not None:
            run.open.remove((reservation, day))
            run.counted[day] -= reservation.usd - cost

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        asyncio.run(self.runs[data.draw(st.sampled_from(self.alive()))].budget.close())

    @precondition(lambda self: self.alive())
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.runs[data.draw(st.sampled_from(self.alive()))].crashed = True

    @rule(hours=st.integers(1, 13))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @invariant()
    def no_line_is_passed(self) -> None:
        for name, run in self.runs.items():
            counted = sum(run.counted.values())
            assert counted <= total(self.store, f"budget/run={name}") <= self.PER_RUN
        for day in {day for run in self.runs.values() for day in run.counted}:
            assert self.held(day) <= total(self.store, day) <= self.PER_DAY

    @invariant()
    def each_run_knows_what_it_spends(self) -> None:
        for run in self.runs.values():
            assert run.budget.reserved_usd == sum(reservation.usd for reservation, _ in run.open)
            assert run.budget.spent_usd + run.budget.reserved_usd == sum(run.counted.values())

    def teardown(self) -> None:
        """At the end the logs hold what was spent or is reserved, and little more for runs that crashed."""
        for name in self.alive():
            asyncio.run(self.runs[name].budget.close())
            counted = sum(self.runs[name].counted.values())
            assert total(self.store, f"budget/run={name}") == counted
        lost = sum(run.crashed for run in self.runs.values()) * 2 * max(40 * CENT, self.PER_DAY * BLOCK_SHARE)
        for day in {day for run in self.runs.values() for day in run.counted}:
            assert self.held(day) <= total(self.store, day) <= self.held(day) + lost


TestBudgets = BudgetMachine.TestCase
TestBudgets.settings = settings(max_examples=60, stateful_step_count=25)


def test_a_line_is_used_to_the_last_cent_and_not_beyond(store):
    of = budget(store, per_day_usd=ONE)
    reserved = asyncio.run(reserve_all(of, Decimal("0.03")))
    assert (len(reserved), of.reserved_usd, of.remaining_usd) == (33, Decimal("0.99"), CENT)
    asyncio.run(of.reserve(CENT))
    assert of.remaining_usd == 0


def test_rows_that_reserve_at_once_do_not_pass_the_line_together(store):
    of = budget(store, per_run_usd=ONE, per_day_usd=ONE)

    async def reserve_at_once() -> list[object]:
        return await asyncio.gather(*(of.reserve(Decimal("0.06")) for _ in range(40)), return_exceptions=True)

    ends = Counter(type(end) for end in asyncio.run(reserve_at_once()))
    assert ends == {Reservation: 16, OverBudget: 24}


async def cut_off(work: Coroutine[None, None, object], turns: int) -> None:
    """Cancel work after so many turns of the event loop."""
    task = asyncio.create_task(work)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.parametrize("turns", range(8))
def test_a_request_that_is_cut_off_while_it_reserves_makes_no_other_pass_the_line(store, turns):
    of = budget(store, per_day_usd=ONE)

    async def work() -> None:
        for _ in range(4):
            await cut_off(of.reserve(Decimal("0.06")), turns)
        await reserve_all(of, Decimal("0.06"))

    asyncio.run(work())
    assert of.reserved_usd <= total(store) <= ONE


@pytest.mark.parametrize("turns", range(8))
def test_a_run_that_is_cut_off_while_it_gives_back_does_not_hold_the_same_money_twice(store, turns):
    of = budget(store, per_day_usd=ONE)

    async def work() -> None:
        for _ in range(4):
            await of.settle(await of.reserve(Decimal("0.3")), NOTHING)
            await cut_off(of.close(), turns)
        await reserve_all(of, Decimal("0.06"))

    asyncio.run(work())
    assert of.reserved_usd <= total(store) <= ONE


def test_most_requests_cost_no_write(store):
    of = budget(store, per_run_usd=Decimal(100), per_day_usd=Decimal(100))

    async def work() -> None:
        for _ in range(200):
            await of.settle(await of.reserve(Decimal("0.15")), Decimal("0.15"))
        await of.close()

    asyncio.run(work())
    writes = 200 // BLOCK_REQUESTS
    assert len(log(store, TODAY)) == len(log(store, "budget/run=run-1")) == writes
    assert total(store) == of.spent_usd == Decimal(30)


def test_what_turned_out_free_can_be_spent_again(store):
    of = budget(store, per_day_usd=ONE)

    async def work() -> int:
        for reservation in (await reserve_all(of, Decimal("0.10")))[:4]:
            await of.settle(reservation, NOTHING)
        return len(await reserve_all(of, Decimal("0.10")))

    assert asyncio.run(work()) == 4


def test_a_run_that_closes_gives_the_next_one_what_it_did_not_use(store):
    first, second = budget(store, "first", per_day_usd=ONE), budget(store, "second", per_day_usd=ONE)

    async def work() -> None:
        reservations = await reserve_all(first, Decimal("0.15"))
        for reservation in reservations:
            await first.settle(reservation, NOTHING)
        await first.reserve(Decimal("0.15"))
        await first.close()

    asyncio.run(work())
    assert total(store) == Decimal("0.15")
    assert len(asyncio.run(reserve_all(second, Decimal("0.15")))) == 5


def test_looking_tells_what_all_runs_have_left_and_holds_nothing(store):
    async def spend_and_look() -> list[Decimal | None]:
        other, looking = budget(store, "run-1", per_day_usd=ONE), budget(store, "run-2", per_day_usd=ONE)
        before = await looking.look()
        await other.settle(await other.reserve(CENT), CENT)
        await other.close()
        return [before, await looking.look(), await budget(store, "run-3").look()]

    assert asyncio.run(spend_and_look()) == [ONE, ONE - CENT, None]
    assert {entry.run_id for entry in log(store, TODAY)} == {"run-1"}


def test_room_that_another_run_gives_back_is_found_before_giving_up(store):
    first, second = budget(store, "first", per_day_usd=ONE), budget(store, "second", per_day_usd=ONE)

    async def work() -> Reservation:
        reservations = await reserve_all(first, Decimal("0.5"))
        with pytest.raises(OverBudget):
            await second.reserve(Decimal("0.5"))
        await first.settle(reservations[0], NOTHING)
        await first.close()
        return await second.reserve(Decimal("0.5"))

    assert asyncio.run(work()).usd == Decimal("0.5")


def test_a_cost_that_nobody_knows_stays_reserved_until_it_is_known(store):
    of = budget(store, per_day_usd=ONE)

    async def work() -> None:
        reservation = await of.reserve(Decimal("0.15"))
        await of.settle(reservation, None)
        await of.close()
        assert (total(store), of.reserved_usd, of.spent_usd) == (Decimal("0.15"), Decimal("0.15"), 0)
        await of.settle(reservation, Decimal("0.05"))

    asyncio.run(work())
    assert (total(store), of.reserved_usd, of.spent_usd) == (Decimal("0.05"), 0, Decimal("0.05"))


def test_a_reservation_is_settled_once(store):
    of = budget(store, per_day_usd=ONE)
    reservation = asyncio.run(of.reserve(Decimal("0.15")))
    asyncio.run(of.settle(reservation, NOTHING))
    with pytest.raises(KeyError):
        asyncio.run(of.settle(reservation, NOTHING))


def test_a_cost_beyond_the_price_is_counted_even_past_the_line(store):
    of = budget(store, per_day_usd=ONE)

    async def work() -> None:
        reservations = await reserve_all(of, Decimal("0.5"))
        await of.settle(reservations[0], Decimal("0.8"))

    asyncio.run(work())
    assert total(store) == Decimal("1.3")
    with pytest.raises(OverBudget, match=r"is \$1.00, of which \$1.30"):
        asyncio.run(of.reserve(CENT))


def test_at_midnight_utc_a_new_day_begins(store):
    now = [datetime(2026, 11, 22, 23, 59, tzinfo=UTC)]
    of = Budget(
        store, run_id="r", per_run_usd=None, per_day_usd=ONE, allow_unknown=False, clock=lambda: now[0]
    )

    async def work() -> int:
        yesterdays = await reserve_all(of, Decimal("0.3"))
        now[0] += timedelta(minutes=1)
        todays = await reserve_all(of, Decimal("0.3"))
        await of.settle(yesterdays[0], NOTHING)
        assert (total(store), total(store, "budget/day=2026-11-23")) == (Decimal("0.6"), Decimal("0.9"))
        assert await reserve_all(of, Decimal("0.3")) == [], "what was free yesterday is no money for today"
        return len(todays)

    assert asyncio.run(work()) == 3


def test_the_block_of_a_run_that_crashed_stays_counted_that_day(store):
    crashed = budget(store, "crashed", per_day_usd=Decimal(100))
    asyncio.run(crashed.reserve(Decimal("0.15")))
    assert total(store) == BLOCK_REQUESTS * Decimal("0.15")
    after = budget(store, "after", per_day_usd=Decimal(100))
    assert len(asyncio.run(reserve_all(after, ONE))) == 97
    tomorrow = budget(store, "tomorrow", per_day_usd=Decimal(100), now=NOON + timedelta(days=1))
    assert len(asyncio.run(reserve_all(tomorrow, ONE))) == 100


def test_a_run_whose_requests_turn_out_free_holds_two_blocks_at_most(store):
    of = budget(store, per_day_usd=Decimal(100))

    async def work() -> None:
        for reservation in await reserve_all(of, Decimal("0.15")):
            await of.settle(reservation, NOTHING)

    asyncio.run(work())
    assert NOTHING < total(store) <= 2 * BLOCK_REQUESTS * Decimal("0.15")


def test_the_budget_of_a_run_holds_over_its_retries(store):
    asyncio.run(reserve_all(budget(store, "run-1", per_run_usd=ONE), Decimal("0.5")))
    with pytest.raises(OverBudget):
        asyncio.run(budget(store, "run-1", per_run_usd=ONE).reserve(CENT))
    asyncio.run(budget(store, "run-2", per_run_usd=ONE).reserve(ONE))


def test_the_nearer_of_both_lines_holds_and_the_message_says_which_and_what_to_do(store):
    by_run = budget(store, "a", per_run_usd=ONE, per_day_usd=Decimal(3))
    asyncio.run(reserve_all(by_run, Decimal("0.3")))
    with pytest.raises(OverBudget) as reached:
        asyncio.run(by_run.reserve(Decimal("0.3")))
    assert str(reached.value) == (
        "The budget of this run is $1.00, of which $0.90 is spent or reserved: too little is left for the next "
        "request. Raise IDEOGRAM_BUDGET_USD or the run's own limit (--max-spend, max_spend_usd), whichever is lower, "
        "or run again: what is there is not paid for again. A run that was to --regenerate is continued with "
        "--only-failed beside it."
    )
    asyncio.run(by_run.close())
    by_day = budget(store, "b", per_run_usd=Decimal(9), per_day_usd=Decimal("1.005"))
    with pytest.raises(OverBudget) as reached:
        asyncio.run(by_day.reserve(Decimal("0.3")))
    assert str(reached.value) == (
        "The budget of all runs for 2026-11-22 (UTC) is $1.005, of which $0.90 is spent or reserved: too little is "
        "left for the next request. Raise IDEOGRAM_BUDGET_USD_PER_DAY, or run again tomorrow (UTC)."
    )
    asyncio.run(by_day.close())
    assert total(store, "budget/run=b") == 0


def test_an_unknown_price_is_refused_with_or_without_a_budget(store):
    for limit in (None, ONE):
        with pytest.raises(UnknownPrice, match="IDEOGRAM_ALLOW_UNKNOWN_PRICES=true"):
            asyncio.run(budget(store, per_day_usd=limit).reserve(None))


def test_an_unknown_price_that_is_allowed_counts_once_its_cost_is_known(store):
    of = budget(store, per_day_usd=ONE, allow_unknown=True)

    async def work() -> None:
        first = await of.reserve(None)
        assert of.reserved_usd == 0
        await of.settle(first, Decimal("0.9"))
        await of.settle(await of.reserve(None), Decimal("0.2"))
        await of.close()
        with pytest.raises(OverBudget):
            await of.reserve(None)

    asyncio.run(work())
    assert total(store) == of.spent_usd == Decimal("1.1")


def test_without_a_limit_nothing_is_read_or_written(store):
    of = budget(store)

    async def work() -> None:
        await of.settle(await of.reserve(Decimal("0.15")), Decimal("0.15"))
        await of.reserve(Decimal("0.20"))
        await of.close()

    asyncio.run(work())
    assert list(store.objects("")) == []
    assert (of.spent_usd, of.reserved_usd, of.remaining_usd) == (Decimal("0.15"), Decimal("0.20"), None)


class LosesAnswers(Store):
    """A store that writes, loses the answer and asks again, as an object store's own retries do."""

    async def create_async(self, path: str, content: bytes) -> bool:
        await super().create_async(path, content)
        return await super().create_async(path, content)


def test_an_entry_whose_answer_was_lost_is_neither_reserved_nor_given_back_twice(tmp_path):
    store = LosesAnswers.open(str(tmp_path))
    of = budget(store, per_day_usd=ONE)

    async def work() -> None:
        for reservation in await reserve_all(of, Decimal("0.1")):
            await of.settle(reservation, NOTHING)
        await of.reserve(Decimal("0.1"))
        await of.close()

    asyncio.run(work())
    assert total(store) == Decimal("0.1")
    assert len({entry.entry_id for entry in log(store, TODAY)}) == len(log(store, TODAY))


def test_a_damaged_entry_is_an_error_that_names_it(store):
    asyncio.run(budget(store, per_day_usd=ONE).reserve(CENT))
    store.put(f"{TODAY}/000001.json", b"{")
    with pytest.raises(StoreError, match=r"day=2026-11-22/000001\.json' can't be read"):
        asyncio.run(budget(store, per_day_usd=ONE).reserve(CENT))


def test_a_file_that_is_none_of_the_budgets_is_left_alone(store):
    store.put(f"{TODAY}/notes.txt", b"hands off")
    asyncio.run(budget(store, per_day_usd=ONE).reserve(CENT))
    assert store.get(f"{TODAY}/notes.txt") == b"hands off"


def test_each_step_of_the_log_leads_to_the_next(store):
    first, second = budget(store, "first", per_day_usd=ONE), budget(store, "second", per_day_usd=ONE)

    async def work() -> None:
        for of in (first, second, first):
            await of.settle(await of.reserve(Decimal("0.3")), NOTHING)
            await of.close()

    asyncio.run(work())
    sums = NOTHING
    for entry in log(store, TODAY):
        sums += entry.usd
        assert entry.total_usd == sums
    assert [(entry.run_id, entry.usd) for entry in log(store, TODAY)] == [
        (run, sign * Decimal("0.3")) for run in ("first", "second", "first") for sign in (1, -1)
    ]


async def spend(of: Budget, price: Decimal) -> int:
    """Spend until the line is reached, where every fifth request turns out free; return how many were paid."""
    paid = asked = 0
    try:
        while True:
            reservation = await of.reserve(price)
            asked += 1
            free = asked % 5 == 0
            await of.settle(reservation, NOTHING if free else price)
            paid += not free
    except OverBudget:
        await of.close()
        return paid


def test_runs_that_spend_at_once_reach_the_line_and_do_not_pass_it(store):
    runs = [budget(store, f"run-{number}", per_day_usd=Decimal(9)) for number in range(5)]

    async def race() -> list[int]:
        return await asyncio.gather(*(spend(run, Decimal("0.03")) for run in runs))

    paid = sum(asyncio.run(race()))
    assert total(store) == paid * Decimal("0.03") <= Decimal(9)
    rest = asyncio.run(reserve_all(budget(store, per_day_usd=Decimal(9)), Decimal("0.03")))
    assert paid + len(rest) == 300


SPEND = """
import asyncio, sys
from datetime import UTC, datetime
from decimal import Decimal
from ideogram_pipeline.generation.budget import Budget, OverBudget
from ideogram_pipeline.storage import Store

noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
budget = Budget(
    Store.open(sys.argv[1]), run_id=sys.argv[2], per_run_usd=None, per_day_usd=Decimal(60), allow_unknown=False,
    clock=lambda: noon,
)

async def spend():
    paid = 0
    try:
        while True:
            reservation = await budget.reserve(Decimal("0.03"))
            await budget.settle(reservation, reservation.usd)
            paid += 1
    except OverBudget:
        await budget.close()
        print(paid)

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(spend())
"""


def test_processes_that_spend_at_once_reach_the_line_and_do_not_pass_it(store):
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", SPEND, str(store.folder), f"run-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    paid = sum(int(run.communicate()[0]) for run in runs)
    assert [run.returncode for run in runs] == [0] * 3
    assert total(store) == paid * Decimal("0.03") <= Decimal(60)
    rest = asyncio.run(reserve_all(budget(store, per_day_usd=Decimal(60)), Decimal("0.03")))
    assert paid + len(rest) == 2000

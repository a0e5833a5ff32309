"""The window: never more in flight than it has places, fewer after a refusal, all of them again later. Virtual time."""

import asyncio
import contextlib
import selectors
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideogram_pipeline.generation.window import FIRST_PAUSE_S, LONGEST_PAUSE_S, SLOW_S, Window

T = TypeVar("T")


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next thing to happen, and never waits."""

    def __init__(self) -> None:
        self.now = 0.0

        class Jump(selectors.DefaultSelector):
            def select(_, timeout=None):
                self.now += timeout or 0.0
                return super().select(0)

        super().__init__(Jump())

    def time(self) -> float:
        return self.now


def virtually(work: Callable[[], Awaitable[T]]) -> T:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(work())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_no_more_are_in_flight_than_there_are_places():
    async def work() -> int:
        window, held, most = Window(5), 0, 0

        async def request() -> None:
            nonlocal held, most
            async with window.place():
                held += 1
                most = max(most, held)
                await asyncio.sleep(1)
                held -= 1

        await asyncio.gather(*(request() for _ in range(23)))
        assert now() == pytest.approx(5)
        return most

    assert virtually(work) == 5


def test_a_refusal_halves_the_window_once_for_all_that_were_sent_before_it():
    async def work() -> list[int]:
        window = Window(64)
        sent_at = now()
        await asyncio.sleep(0.1)
        sizes = []
        for _ in range(10):
            window.limited(sent_at)
            sizes.append(window.size)
        window.limited(now())
        return [*sizes, window.size]

    assert virtually(work) == [32] * 10 + [16]


def test_the_window_never_closes_for_good_and_grows_back_to_its_most():
    async def work() -> None:
        window = Window(8)
        for _ in range(10):
            window.limited(now())
        assert window.size == 1
        accepted = 0
        while window.size < 8:
            window.accepted(now())
            accepted += 1
        assert 1 + 2 + 3 + 4 + 5 + 6 + 7 <= accepted <= 2 * 28
        for _ in range(100):
            window.accepted(now())
        assert window.size == 8

    virtually(work)


def test_after_refusals_nobody_starts_for_a_time_that_doubles_until_one_is_accepted():
    async def pause(window: Window) -> float:
        refused_at = now()
        window.limited(refused_at)
        async with window.place():
            return now() - refused_at

    async def work() -> list[float]:
        window = Window(4)
        pauses = [await pause(window) for _ in range(9)]
        window.accepted(now())
        return [*pauses, await pause(window)]

    *pauses, after_success = virtually(work)
    doubling = [min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) for number in range(9)]
    assert pauses == pytest.approx(doubling)
    assert after_success == pytest.approx(FIRST_PAUSE_S)


def test_a_pause_that_the_server_asks_for_is_kept():
    async def work() -> float:
        window = Window(4)
        window.limited(now(), retry_after_s=17.0)
        async with window.place():
            return now()

    assert virtually(work) == pytest.approx(17.0)


def test_a_refusal_tells_how_long_none_was_accepted():
    async def work() -> list[float]:
        window = Window(4)
        told = [window.limited(now())]
        await asyncio.sleep(60)
        told.append(window.limited(now()))
        window.accepted(now())
        await asyncio.sleep(5)
        return [*told, window.limited(now())]

    assert virtually(work) == pytest.approx([0.0, 60.0, 5.0])


def test_answers_that_take_far_longer_than_usual_halve_the_window_and_close_nothing():
    async def answered(window: Window, seconds: float) -> None:
        sent_at = now()
        await asyncio.sleep(seconds)
        window.accepted(sent_at)

    async def work() -> None:
        window = Window(16)
        for _ in range(20):
            await answered(window, 0.1)
        await answered(window, SLOW_S - 0.1)
        assert window.size == 16
        await answered(window, SLOW_S + 1.0)
        assert window.size == 8
        opened_at = now()
        async with window.place():
            assert now() == opened_at

    virtually(work)


def test_a_server_that_is_always_slow_is_not_held_against_it():
    async def work() -> int:
        window = Window(16)
        for _ in range(50):
            sent_at = now()
            await asyncio.sleep(3 * SLOW_S)
            window.accepted(sent_at)
        return window.size

    assert virtually(work) == 16


def test_a_place_given_back_early_goes_to_another_and_is_given_back_once():
    async def work() -> None:
        window, order = Window(1), []

        async def first() -> None:
            async with window.place() as place:
                await asyncio.sleep(1)
                place.give_back()
                place.give_back()
                await asyncio.sleep(10)
                order.append("first has ended")

        async def later(name: str) -> None:
            async with window.place() as place:
                await place.take()
                order.append(f"{name} has it")
                await asyncio.sleep(1)

        await asyncio.gather(first(), later("second"), later("third"))
        assert order == ["second has it", "third has it", "first has ended"]

    virtually(work)


def test_a_place_is_given_back_whoever_is_cancelled_and_when():
    async def work() -> None:
        window = Window(1)

        async def request(*, anew: bool) -> None:
            async with window.place() as place:
                await asyncio.sleep(10)
                if anew:
                    window.limited(now())
                    place.give_back()
                    await place.take()
                    await asyncio.sleep(10)

        for cancelled_at, anew in ((5, False), (10.1, True), (15, True)):
            holding, waiting = (asyncio.create_task(request(anew=anew)) for _ in range(2))
            await asyncio.sleep(cancelled_at)
            for task in (waiting, holding):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            async with asyncio.timeout(LONGEST_PAUSE_S), window.place():
                window.accepted(now())

    virtually(work)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 60), st.integers(1, 30), st.integers(0, 10**6))
def test_every_request_is_accepted_at_last_by_a_server_that_takes_so_many_a_second(
    most, requests, per_second, seed
):
    async def work() -> int:
        window, chance, accepted_at, held = Window(most), Random(seed), [], 0

        async def request() -> None:
            nonlocal held
            async with window.place() as place:
                while True:
                    held += 1
                    assert held <= most
                    sent_at = now()
                    await asyncio.sleep(0.05)
                    if sum(at > now() - 1 for at in accepted_at) < per_second:
                        break
                    held -= 1
                    window.limited(sent_at)
                    place.give_back()
                    await place.take()
                accepted_at.append(now())
                window.accepted(sent_at)
                await asyncio.sleep(chance.uniform(0.1, 5))
                held -= 1

        await asyncio.gather(*(request() for _ in range(requests)))
        return len(accepted_at)

    assert virtually(work) == requests

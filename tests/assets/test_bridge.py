"""The bridge between Dagster's thread and the engine's loop."""

import asyncio
import signal
import threading

import dagster as dg
import pytest

from ideogram_pipeline.assets.bridge import run_in_thread


class Work:
    """Work that interrupts the main thread and then waits for ever; remembers how it was left."""

    def __init__(self):
        self.let_go = False
        self.cancelled_at_fal = False

    async def cancel(self):
        self.cancelled_at_fal = True

    async def __call__(self, interruption):
        async with interruption.before_leaving(self.cancel):
            try:
                while True:  # an interrupt that comes in a finalizer is lost
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                    await asyncio.sleep(5)
            finally:
                self.let_go = True


@pytest.fixture(autouse=True)
def interrupts():
    """Have Ctrl-C raise `KeyboardInterrupt`, whatever a server in this process had made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_result_of_the_work_is_returned():
    async def work(interruption):
        await asyncio.sleep(0)
        return 42

    assert run_in_thread(work, is_terminated=lambda: False) == 42


def test_an_error_of_the_work_is_raised_as_it_is():
    async def work(interruption):
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        run_in_thread(work, is_terminated=lambda: False)


def test_an_interruption_lets_go_of_the_work_and_cancels_nothing_at_fal():
    work = Work()
    with pytest.raises(KeyboardInterrupt):
        run_in_thread(work, is_terminated=lambda: False)
    assert work.let_go
    assert not work.cancelled_at_fal


def test_a_termination_cancels_at_fal_and_is_never_retried():
    work = Work()
    with pytest.raises(dg.Failure) as failure:
        run_in_thread(work, is_terminated=lambda: True)
    assert work.cancelled_at_fal
    assert failure.value.allow_retries is False

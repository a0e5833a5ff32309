"""An event loop whose time passes only when nothing is left to do, and clocks on walls that show it, wrongly at times.

Whatever a program waits for (`asyncio.sleep`, timeouts, retries) it waits for in no real time at all, in the same order
each time. Work for other threads is done at once, where it is asked for; its result arrives like a thread's, later.
"""

import asyncio
import selectors
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from ideogram_pipeline import memory

EPOCH = datetime(2026, 11, 30, 20, tzinfo=UTC)
"""What a clock that is right shows at the loop's time 0."""


class _NoWaiting(selectors.SelectSelector):
    """Waits by moving the loop's time on. There is no input or output to wait for."""

    loop = None

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("everything waits for something that never comes")
        self.loop.now_s += max(timeout, 0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop. Tasks that a program starts belong to the owner that was set when it was started."""

    def __init__(self):
        self.now_s = 0.0
        self.owner = None
        self.tasks = defaultdict(set)
        """The unfinished tasks of each owner."""
        selector = _NoWaiting()
        super().__init__(selector)
        selector.loop = self
        self._clock_resolution = 1e-9
        self.set_task_factory(_owned_task)

    def time(self):
        return self.now_s

    def run_in_executor(self, executor, func, *args):
        future = self.create_future()
        try:
            result = func(*args)
        except asyncio.CancelledError:
            self.call_soon(future.cancel)
        except Exception as error:
            self.call_soon(_unless_done, future, future.set_exception, error)
        else:
            self.call_soon(_unless_done, future, future.set_result, result)
        return future

    def run_for(self, seconds):
        """Let so much time pass."""
        self.run_until_complete(asyncio.sleep(seconds))

    def owned(self, owner, coroutine):
        """Start a program of an owner."""
        before, self.owner = self.owner, owner
        try:
            return self.create_task(coroutine)
        finally:
            self.owner = before


def _owned_task(loop, coroutine, **options):
    """Make a task of the owner of the task that makes it."""
    running = asyncio.current_task(loop)
    owner = loop.owner if running is None else running.owner
    task = _Task(coroutine, loop=loop, **options)
    task.owner = owner
    if owner is not None:
        loop.tasks[owner].add(task)
        task.add_done_callback(loop.tasks[owner].discard)
    return task


class _Task(asyncio.Task):
    owner = None


def _unless_done(future, how, result):
    if not future.done():
        how(result)


class Threads:
    """Stands for a pool of threads: does the work at once, where it is asked for."""

    def __init__(self, max_workers=None, thread_name_prefix=""):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, call, *of):
        return map(call, *of)

    def shutdown(self, wait=True, *, cancel_futures=False):
        pass


@contextmanager
def virtual(loop, offset_s):
    """Let the whole project do its work in one thread and read the time off the loop, plus the seconds of `offset_s()`.

    It doesn't look for garbage either, among all that the tests hold, which would take a third of the time.

    Names are exchanged in the modules that have imported them, for `datetime` itself can't be patched.
    """

    class Told(datetime, metaclass=_AnyDatetime):
        @classmethod
        def now(cls, tz=None):
            return EPOCH + timedelta(seconds=loop.now_s + offset_s())

    exchanged = {"datetime": (datetime, Told), "ThreadPoolExecutor": (ThreadPoolExecutor, Threads)}
    found = [
        (module, name)
        for path, module in list(sys.modules.items())
        if path.startswith("ideogram_pipeline.")
        for name, (real, _) in exchanged.items()
        if getattr(module, name, None) is real
    ]
    for module, name in found:
        setattr(module, name, exchanged[name][1])
    give_back, memory.give_back = memory.give_back, lambda: None
    try:
        yield
    finally:
        memory.give_back = give_back
        for module, name in found:
            setattr(module, name, exchanged[name][0])


class _AnyDatetime(type(datetime)):
    def __instancecheck__(cls, instance):
        return isinstance(instance, datetime)

"""Between event loops and calls that wait: a call in a thread, from a loop; a coroutine's result, from anywhere."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


async def to_its_end(call: Callable[[], Result]) -> Result:
    """Make a call in a thread; whoever is cut off meanwhile goes on once it has ended, and what it wrote is certain."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        running.exception()
        raise


def result_of(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end and return its result, also where an event loop runs already, such as in Jupyter.

    There it runs in a loop and thread of its own, and the loop that is there waits. An interruption cancels the work
    and is raised once that has let go.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    loop = OwnLoop(work)
    loop.start()
    try:
        loop.done.wait()
    except BaseException:
        loop.cancel()
        loop.done.wait()
        raise
    return loop.result()


class OwnLoop(Generic[Result]):
    """One coroutine in an event loop of its own, in a daemon thread."""

    def __init__(self, work: Coroutine[Any, Any, Result]) -> None:
        """Take the coroutine, and the context variables of the caller."""
        self.done = threading.Event()
        """Set once it has ended."""
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(work)

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="loop", daemon=True).start()

    def cancel(self) -> None:
        """Cancel it, unless it has ended."""
        if not self.done.is_set():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def result(self) -> Result:
        """Return its result, or raise what it has raised."""
        return self._task.result()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(asyncio.wait([self._task]))
        self.done.set()

"""Between Dagster's synchronous world and the engine's event loop, and what an interruption means.

A native async asset is never told that its run was cancelled, so the loop runs in a thread of its own while the main
thread waits and can be interrupted. Two kinds of interruption are told apart by the run's status:

- somebody terminated the run (CANCELING): what fal has queued is cancelled, and nothing is tried again;
- anything else (Ctrl-C, a pod that goes away): the run lets go. fal works on, the ledger knows, the next run fetches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ideogram_pipeline.assets.retries import Interrupted
from ideogram_pipeline.threads import OwnLoop

Result = TypeVar("Result")

_LOOK_AT_RUN_EVERY_S = 5.0
_WAKE_EVERY_S = 0.2
_FINISH_WITHIN_S = 25.0
"""Less than the 30 s that Kubernetes gives a pod after SIGTERM."""


class Interruption:
    """Tells the work whether it is being interrupted because somebody terminated the run."""

    def __init__(self) -> None:
        self.terminated = False
        """Somebody wants the run to end, not only this process."""

    @asynccontextmanager
    async def before_leaving(self, cancel: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
        """Run `cancel` when the work inside is interrupted by a termination."""
        try:
            yield
        except asyncio.CancelledError:
            if self.terminated:
                await cancel()
            raise


def run_in_thread(
    work: Callable[[Interruption], Coroutine[Any, Any, Result]], *, is_terminated: Callable[[], bool]
) -> Result:
    """Run `work` in an event loop of its own and return its result; `is_terminated` says what `terminated` does.

    An interruption cancels the work, gives it time to let go in order, and is then raised: as `Interrupted` where the
    run was terminated, as it came otherwise.
    """
    interruption = Interruption()
    loop = OwnLoop(work(interruption))
    try:
        loop.start()
        looked_at = time.monotonic()
        while not loop.done.wait(_WAKE_EVERY_S):
            if time.monotonic() - looked_at > _LOOK_AT_RUN_EVERY_S:
                looked_at = time.monotonic()
                if is_terminated():  # some executors never interrupt a running step
                    raise Interrupted("The run was terminated.", allow_retries=False)
    except BaseException:
        interruption.terminated = is_terminated()
        loop.cancel()
        loop.done.wait(_FINISH_WITHIN_S)
        if interruption.terminated:
            raise Interrupted("The run was terminated.", allow_retries=False) from None
        raise
    return loop.result()

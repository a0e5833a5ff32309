"""How many requests may be with fal at a time: the most that is allowed, and fewer while fal asks for less.

The window starts at its most. A refusal for coming too often (429), or an answer that takes far longer than usual,
halves it; answers let it grow by one for every window full of them (additive increase, multiplicative decrease, as TCP
has it). Refusals of submits that were sent before the last cut don't count: they are of the same jam. After a refusal
nobody starts for a moment, which doubles with every further one until a submit is accepted.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

FIRST_PAUSE_S = 0.5
"""Seconds nobody starts after a first refusal."""
LONGEST_PAUSE_S = 30.0
"""Seconds nobody starts after one of many refusals in a row."""
SLOW_S = 2.0
"""An answer that comes within so many seconds is never slow."""
SLOW_FACTOR = 4.0
"""An answer is slow if it takes so many times longer than usual."""

_USUAL_WEIGHT = 0.1


class Window:
    """Lends places to requests in flight. To be used in one event loop."""

    def __init__(self, most: int) -> None:
        """Begin with `most` places."""
        self._most = most
        self._size = float(most)
        self._taken = 0
        self._opens_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._cut_at = 0.0
        self._accepted_at: float | None = None
        self._usual_s: float | None = None
        self._changed = asyncio.Event()

    @property
    def size(self) -> int:
        """How many places there are now."""
        return int(self._size)

    def place(self) -> Place:
        """Return a place to be taken with `async with`."""
        return Place(self)

    def accepted(self, sent_at: float) -> None:
        """Take note that a submit, sent at this time of the event loop, was accepted just now."""
        now = _now()
        took_s = now - sent_at
        usual_s = took_s if self._usual_s is None else self._usual_s
        self._usual_s = usual_s + _USUAL_WEIGHT * (took_s - usual_s)
        self._accepted_at, self._pause_s = now, FIRST_PAUSE_S
        if took_s > max(SLOW_S, SLOW_FACTOR * usual_s):
            self._cut(sent_at)
        else:
            self._size = min(self._size + 1 / self._size, self._most)
            self._tell()

    def limited(self, sent_at: float, retry_after_s: float | None = None) -> float:
        """Take note that a submit, sent at this time of the event loop, was refused for coming too often.

        Returns the seconds since one was last accepted, so that the caller can give up.
        """
        now = _now()
        if self._cut(sent_at):
            self._opens_at = now + max(self._pause_s, retry_after_s or 0.0)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if self._accepted_at is None:
            self._accepted_at = sent_at
        return now - self._accepted_at

    def _cut(self, sent_at: float) -> bool:
        """Halve the window, once for all that was sent before the answer that halves it."""
        if sent_at < self._cut_at:
            return False
        self._size = max(self._size / 2, 1.0)
        self._cut_at = _now()
        return True

    async def _take(self) -> None:
        while (closed_s := self._opens_at - _now()) > 0 or self._taken >= self.size:
            if closed_s > 0:
                await asyncio.sleep(closed_s)
            else:
                await self._changed.wait()
        self._taken += 1

    def _give_back(self) -> None:
        self._taken -= 1
        self._tell()

    def _tell(self) -> None:
        """Let everybody who waits for a place look again."""
        self._changed.set()
        self._changed = asyncio.Event()


class Place:
    """A place in a window, held inside its `async with` block but for the times it is given back."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._held = False

    async def __aenter__(self) -> Self:
        await self.take()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    async def take(self) -> None:
        """Wait for a place, if none is held: a request is about to be with fal."""
        if not self._held:
            await self._window._take()
            self._held = True

    def give_back(self) -> None:
        """Let another request have it, if it is held: this one is no longer with fal."""
        if self._held:
            self._held = False
            self._window._give_back()


def _now() -> float:
    return asyncio.get_running_loop().time()

"""When to ask again: soon at first, then at a growing distance, so that waiting costs little."""

from __future__ import annotations

from collections.abc import Iterator

FIRST_S = 0.25
"""Seconds before the first question."""
GROWTH = 1.4
"""Each pause is this many times the one before."""
LONGEST_S = 4.0
"""No pause is longer, in seconds."""


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each question, for ever."""
    pause = FIRST_S
    while True:
        yield pause
        pause = min(pause * GROWTH, LONGEST_S)

"""Memory that is free is not kept: not by each thread, and not by a stage of a large batch for the next one."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_ARENA_MAX = -8
_HEAPS = 2
"""With one for each of many threads, as glibc has it, runs took 40 MB more and were no quicker."""


def share_heaps() -> None:
    """Have glibc's threads share two heaps (mallopt(3), M_ARENA_MAX), where else each of many keeps what it freed."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_ARENA_MAX, _HEAPS)


def give_back() -> None:
    """Free what only refers to itself, and have glibc give back what it keeps of freed memory (malloc_trim(3)).

    It keeps what lies between blocks that are still in use, and more of it the larger the blocks were that it has seen.
    With another C library nothing is given back.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)

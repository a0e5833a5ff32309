"""Memory that is free is kept while pictures come and go, and given back by a stage of a large batch for the next one."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_HEAPS = 2
"""With one for each of many threads, as glibc has it, runs took 40 MB more and were no quicker."""
_LARGEST_PIECE = 8 * 1024 * 1024
"""A picture of a million pixels takes four of them: as a mapping of its own it costs a thousand page faults each time."""
_KEPT_FREE = 32 * 1024 * 1024
"""So much at the end of a heap."""


def tune_heaps() -> None:
    """Have glibc's threads share two heaps, which keep what one picture took for the next (mallopt(3))."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_ARENA_MAX, _HEAPS)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_PIECE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


def give_back() -> None:
    """Free what only refers to itself, and have glibc give back what it keeps of freed memory (malloc_trim(3)).

    It keeps what lies between blocks that are still in use, and more of it the larger the blocks were that it has seen.
    With another C library nothing is given back.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)

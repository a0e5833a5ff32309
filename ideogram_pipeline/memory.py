"""Free memory is kept from picture to picture, and given back from stage to stage of a batch."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_HEAPS = 2
"""With one for each of many threads, as glibc has it, runs took 40 MB more and were no quicker."""
_LARGEST_PIECE = 8 * 1024 * 1024
"""Bytes. A picture of a million pixels takes half of it, and a thousand page faults were it a mapping of its own."""
_KEPT_FREE = 32 * 1024 * 1024
"""Bytes that stay at the end of a heap."""


def tune_heaps() -> None:
    """Have glibc's threads share two heaps, which keep what one picture took for the next (mallopt(3))."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_ARENA_MAX, _HEAPS)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_PIECE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


@contextmanager
def lasting() -> Iterator[None]:
    """Take what the block makes, such as modules, to stay until the process ends: what refers to itself is never freed.

    Looking for garbage among it again and again takes a tenth of a small run.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def give_back() -> None:
    """Free what only refers to itself, and have glibc give back what it keeps of freed memory (malloc_trim(3)).

    It keeps what lies between blocks that are still in use, and more of it the larger the blocks were that it has seen.
    With another C library nothing is given back.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)

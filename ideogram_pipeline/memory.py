"""What a stage took of memory goes back to the system, so that the stages of a large batch don't add up."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Have glibc give back what it keeps of freed memory (malloc_trim(3)); with another C library this does nothing.

    It keeps what lies between blocks that are still in use, and more of it the larger the blocks were that it has seen.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)

"""What a large batch took of memory goes back to the system, and is not kept for the next one."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BYTES = 128 * 1024
"""glibc's own values at the start (mallopt(3)); it raises both, to 32 MiB and more, as large blocks are freed."""


def give_back() -> None:
    """Hold glibc to the thresholds it starts with; where there is another C library this does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, _BYTES)
        mallopt(_M_MMAP_THRESHOLD, _BYTES)

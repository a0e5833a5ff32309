"""Memory: what was taken and freed again, the system gets back."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
from ideogram_pipeline.memory import give_back
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.free(libc.malloc(30 << 20))  # from here on glibc takes such a block for nothing unusual

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

before = megabytes()
blocks = [libc.malloc(1 << 20) for _ in range(64)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
last = libc.malloc(1 << 16)  # keeps the heap from ending where the blocks do
ctypes.memset(last, 1, 1 << 16)
for block in blocks:
    libc.free(block)
kept = megabytes() - before
give_back()
print(kept, megabytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_what_was_freed_is_given_back():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, left = map(int, ended.stdout.split())
    assert kept > 32
    assert left < 8

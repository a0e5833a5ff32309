"""Memory: what was taken and freed again, the system has back."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes
if {loads}:
    from ideogram_pipeline.definitions import build_definitions
    from ideogram_pipeline.settings import Settings
    build_definitions(Settings())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.free(libc.malloc(30 << 20))  # from here on glibc takes such a block for nothing unusual
before = int(open("/proc/self/statm").read().split()[1])
blocks = [libc.malloc(1 << 20) for _ in range(64)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
last = libc.malloc(1 << 16)  # keeps the heap from ending where the blocks do
ctypes.memset(last, 1, 1 << 16)
for block in blocks:
    libc.free(block)
print((int(open("/proc/self/statm").read().split()[1]) - before) * 4096 >> 20)
"""


def left(*, loads: bool) -> int:
    """MiB that a process still has of the 64 it freed."""
    program = PROGRAM.format(loads=loads)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(ended.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_a_process_that_loads_the_pipeline_gives_back_what_it_freed():
    assert left(loads=True) < 8
    assert left(loads=False) > 32

"""Memory: what was taken and freed again, the system gets back."""

import gc
import subprocess
import sys
import weakref

import pytest

from ideogram_pipeline.memory import give_back, lasting

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


HEAPS = """
import ctypes, sys, threading
if sys.argv[1] == "shared":
    from ideogram_pipeline.definitions import build_definitions
    from ideogram_pipeline.settings import Settings
    build_definitions(Settings())
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.fopen.restype = ctypes.c_void_p, [ctypes.c_size_t], ctypes.c_void_p
together = threading.Barrier(12)

def allocate():
    together.wait()
    libc.malloc(1000)

threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
told = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, told)
libc.fclose(told)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_the_threads_of_a_run_share_two_heaps(tmp_path):
    told = tmp_path / "heaps.xml"
    counts = {}
    for how in ("shared", "each its own"):
        subprocess.run([sys.executable, "-c", HEAPS, how, str(told)], check=True)
        counts[how] = told.read_text().count("<heap nr=")
    assert counts["shared"] <= 2 < counts["each its own"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_what_was_freed_is_given_back():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    kept, left = map(int, ended.stdout.split())
    assert kept > 32
    assert left < 8


class Loop:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_only_refers_to_itself_is_freed():
    gone = weakref.ref(Loop())
    give_back()
    assert gone() is None


def test_what_lasts_is_not_looked_through_again():
    kept = []
    with lasting():
        assert not gc.isenabled()
        kept.append([])
    assert gc.isenabled()
    assert gc.get_freeze_count()
    assert not any(one is kept[0] for one in gc.get_objects())
    gc.unfreeze()


def test_after_a_failure_garbage_is_looked_for_again():
    with pytest.raises(LookupError), lasting():
        raise LookupError
    assert gc.isenabled()
    gc.unfreeze()

"""The store: whole writes, one winner for every create, and errors that name their path."""

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stamina
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage import Store

MEGABYTE = 1024 * 1024


def test_what_is_put_is_got(store):
    store.put("pictures/batch=été-漢/1 =.png", b"first")
    assert store.get("pictures/batch=été-漢/1 =.png") == b"first"


def test_a_file_lies_where_the_store_says(on_disk):
    on_disk.put("pictures/batch=a/1.png", b"first")
    assert Path(on_disk.where("pictures/batch=a/1.png")).read_bytes() == b"first"


def test_the_async_methods_do_the_same(store):
    async def work() -> tuple[bool, bool, bytes]:
        await store.put_async("one", b"1")
        created = await store.create_async("two", b"2"), await store.create_async("two", b"3")
        return *created, await store.get_async("two")

    assert asyncio.run(work()) == (True, False, b"2")
    assert store.get("one") == b"1"


def test_what_is_listed_and_removed_is_what_lies_below_a_folder(store):
    async def work():
        for name in ("in/a", "in/b", "in/deep/c", "inner/d"):
            await store.put_async(name, b"1")
        store.requests.clear()
        listed = {found.path: found.size for found in await store.objects_async("in")}
        await store.delete_async(["in/a", "in/missing", "in/b"])
        await store.delete_async([])
        assert store.requests == {"list": 1, "delete": 1}
        return listed, [found.path for found in await store.objects_async("in")]

    listed, left = asyncio.run(work())
    assert listed == {"in/a": 1, "in/b": 1, "in/deep/c": 1}
    assert left == ["in/deep/c"]
    assert asyncio.run(store.objects_async("nothing")) == []


@given(contents=st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_the_last_put_stays(contents):
    store = Store.open("memory://")
    for content in contents:
        store.put("a/b", content)
    assert store.get("a/b") == contents[-1]


def test_create_writes_only_where_nothing_is(store):
    assert store.create("claim", b"mine")
    assert not store.create("claim", b"yours")
    assert store.get("claim") == b"mine"


@pytest.mark.parametrize(
    "store", ["on_disk", "in_memory"], indirect=True
)  # S3: tests/chaos/test_seaweedfs.py
def test_of_many_threads_that_create_one_object_one_wins(store):
    names = [f"thread {number}".encode() for number in range(32)]
    with ThreadPoolExecutor(max_workers=16) as threads:
        won = list(threads.map(lambda name: store.create("claim", name), names))
    assert won.count(True) == 1
    assert store.get("claim") == names[won.index(True)]


CLAIM_ALL = """
import sys
from ideogram_pipeline.storage import Store
store = Store.open(sys.argv[1])
store.exists("nothing")  # so that all is imported when the race starts
print("ready", flush=True)
sys.stdin.readline()
mine = sys.argv[2].encode()
print(*(number for number in range(100) if store.create(f"claims/{number}", mine)))
"""


def test_of_two_processes_that_create_the_same_objects_one_wins_each(on_disk):
    claimers = [python(CLAIM_ALL, on_disk, str(number)) for number in range(2)]
    for claimer in claimers:
        assert claimer.stdout.readline() == "ready\n"
    for claimer in claimers:
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    won = [set(claimer.communicate()[0].split()) for claimer in claimers]
    assert won[0].isdisjoint(won[1])
    assert won[0] | won[1] == {str(number) for number in range(100)}


def test_a_reader_sees_a_write_whole_or_not_at_all(store):
    letters = [letter * MEGABYTE for letter in (b"a", b"b")]
    store.put("table", letters[0])
    with ThreadPoolExecutor(max_workers=1) as writer:
        writing = writer.submit(lambda: [store.put("table", letters[turn % 2]) for turn in range(20)])
        seen = [store.get("table")]
        while not writing.done():
            seen.append(store.get("table"))
    assert all(content in letters for content in seen)


WRITE_FOREVER = """
import sys
from itertools import cycle
from ideogram_pipeline.storage import Store
store = Store.open(sys.argv[1])
for letter in cycle((b"a", b"b")):
    store.put("table", letter * 12_000_000)
    print(letter, flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_object_and_nothing_else(shared):
    writer = python(WRITE_FOREVER, shared)
    for _ in range(3):
        assert writer.stdout.readline()
    writer.kill()
    writer.communicate()
    assert shared.get("table") in (b"a" * 12_000_000, b"b" * 12_000_000)
    assert [found.path for found in shared.objects("")] == ["table"]


def test_a_missing_object_is_named(store):
    with pytest.raises(FileNotFoundError, match="no-such-table"):
        store.get("tables/no-such-table")
    assert not store.exists("tables/no-such-table")


def test_deleting_twice_is_no_error(store):
    store.put("a", b"")
    store.delete("a")
    store.delete("a")
    assert not store.exists("a")


def test_a_listing_shows_what_lies_below_a_folder(store):
    for path, content in {"a/b/1": b"x", "a/2": b"xyz", "other": b""}.items():
        store.put(path, content)
    assert {found.path: found.size for found in store.objects("a")} == {"a/b/1": 1, "a/2": 3}
    assert list(store.objects("nothing")) == []


def test_folders_are_those_directly_below_by_name(store):
    for path in ("outcomes/batch=été-漢/x", "outcomes/batch=b/deep/y", "outcomes/file"):
        store.put(path, b"")
    assert store.folders("outcomes") == ["batch=b", "batch=été-漢"]
    assert store.folders("nothing") == []


def test_an_etag_changes_with_the_content(store):
    store.put("a", b"short")
    before = next(store.objects("")).etag
    store.put("a", b"longer than before")
    assert next(store.objects("")).etag != before


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StoreError, match="taken"):
        Store.open(str(tmp_path / "taken"))


def test_a_store_of_unknown_kind_is_refused():
    with pytest.raises(StoreError, match=r"ftp://host/pictures.*can't be opened"):
        Store.open("ftp://host/pictures")


def test_no_path_leaves_the_root(store, tmp_path):
    with pytest.raises(StoreError, match=r"Can't write"):
        store.put("../outside", b"")
    assert not (tmp_path / "outside").exists()
    assert list(store.objects("")) == []


@pytest.mark.parametrize("size", [0, 1, MEGABYTE, 12 * MEGABYTE])
def test_parts_are_written_as_one_object(store, size):
    content = os.urandom(size)
    store.put("page", b"before")
    store.put_parts("page", (content[start : start + 70_000] for start in range(0, size, 70_000)))
    assert store.get("page") == content


def test_parts_that_end_early_leave_what_was_there(store):
    def parts():
        yield from [b"x" * MEGABYTE] * 12
        raise KeyboardInterrupt

    store.put("page", b"before")
    with pytest.raises(KeyboardInterrupt):
        store.put_parts("page", parts())
    assert store.get("page") == b"before"
    assert [found.path for found in store.objects("")] == ["page"]


def test_what_is_read_in_parts_is_whole_and_in_order(store):
    content = os.urandom(3 * MEGABYTE)
    store.put("page", content)
    assert b"".join(store.parts("page")) == content
    with pytest.raises(FileNotFoundError, match="no-such-page"):
        next(store.parts("no-such-page"))


def test_what_is_larger_than_asked_for_is_not_read(store):
    store.put("table", b"x" * (MEGABYTE + 1))
    assert len(store.get("table", max_bytes=MEGABYTE + 1)) == MEGABYTE + 1
    with pytest.raises(StoreError, match="larger than 1 MiB"):
        store.get("table", max_bytes=MEGABYTE)


def test_a_medium_that_refuses_is_a_store_error_with_the_path(on_disk):
    with pytest.raises(StoreError, match=r"Can't create .*xxx"):
        on_disk.create("x" * 300, b"")


def python(program: str, store: Store, *arguments: str) -> subprocess.Popen[str]:
    """Start a process of its own that runs a program on the store."""
    command = [sys.executable, "-c", program, store.url, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_create_whose_success_was_not_seen_is_still_this_callers(store):
    assert asyncio.run(store.create_async("claim", b"mine, 12:00:01.5"))
    assert asyncio.run(store.create_async("claim", b"mine, 12:00:01.5"))
    assert not asyncio.run(store.create_async("claim", b"yours"))


def test_what_the_medium_failed_for_a_moment_is_repeated(on_disk):
    async def write_while_the_folder_is_away() -> bool:
        on_disk.folder.rename(on_disk.folder.with_name("away"))
        asyncio.get_running_loop().call_later(0.3, on_disk.folder.with_name("away").rename, on_disk.folder)
        return await on_disk.create_async("claim", b"mine")

    assert asyncio.run(write_while_the_folder_is_away())
    assert on_disk.get("claim") == b"mine"


def test_nothing_is_written_into_a_folder_that_took_the_stores_place(on_disk):
    async def write_after_an_exchange() -> None:
        on_disk.folder.rename(on_disk.folder.with_name("away"))
        on_disk.folder.mkdir()
        with stamina.set_testing(True, attempts=2), pytest.raises(StoreError, match="replaced by another"):
            await on_disk.create_async("claim", b"mine")

    asyncio.run(write_after_an_exchange())
    assert list(on_disk.folder.iterdir()) == []


@pytest.fixture
def flushed(monkeypatch) -> list[Path]:
    """What is flushed to the disk from now on, in order."""
    paths, fsync = [], os.fsync

    def watched(descriptor):
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return paths


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells which file a descriptor is")
def test_a_created_object_and_every_name_that_leads_to_it_are_on_the_disk(on_disk, flushed):
    root = on_disk.folder
    asyncio.run(on_disk.create_async("ledger/one/1.json", b"{}"))
    assert flushed == [root / "ledger/one/1.json", root / "ledger/one", root / "ledger", root]
    flushed.clear()
    asyncio.run(on_disk.create_async("ledger/one/2.json", b"{}"))
    assert flushed == [root / "ledger/one/2.json", root / "ledger/one"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells which file a descriptor is")
def test_a_folder_that_was_forgotten_is_flushed_again(on_disk, flushed, monkeypatch):
    monkeypatch.setattr("ideogram_pipeline.storage.store._REMEMBERED", 2)
    root = on_disk.folder
    for folder in ("one", "two"):
        asyncio.run(on_disk.create_async(f"ledger/{folder}/1.json", b"{}"))
    flushed.clear()
    asyncio.run(on_disk.create_async("ledger/one/2.json", b"{}"))
    assert flushed == [root / "ledger/one/2.json", root / "ledger/one", root / "ledger", root]


def test_the_etag_of_one_object_is_that_of_the_listing(store):
    store.put("a", b"one")
    assert store.etag("a") == next(store.objects("")).etag
    with pytest.raises(FileNotFoundError):
        store.etag("b")

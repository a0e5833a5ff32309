"""What a killed process leaves half-written on a local disk: hidden, swept by a later process, and in nobody's way."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from ideogram_pipeline.generation import catalog, files
from ideogram_pipeline.storage import Store


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


def left_by(killed, *paths):
    """Write half-written files as a process left them that was killed, some seconds before this one began."""
    for path in paths:
        file = killed.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
        os.utime(file, (time.time() - 86_400,) * 2)


def test_half_written_files_of_a_killed_process_are_swept_by_the_next(store):
    store.put("images/batch=a/p1.png", b"whole")
    left_by(
        store, "images/batch=a/p1.png#1", "ledger/batch=a/f/1-reserved.json#12", "images/batch=b/p1.png#1"
    )
    (store.folder / "images/batch=a/p2.png#1").write_bytes(b"somebody writes it at this moment")
    assert files.sweep(store, "a") == 2
    assert store.leftovers("") == ["images/batch=a/p2.png#1", "images/batch=b/p1.png#1"]
    assert store.get("images/batch=a/p1.png") == b"whole"


def test_half_written_files_are_swept_wherever_they_lie(store):
    """Those beside the folders of the batches once stayed for ever: catalog.json#1, gallery/index.json#1, claims/."""
    places = ("", "gallery/", "gallery/static/", "claims/", "ledger_gaps/", "gallery/batch=a/thumbnails/")
    left_by(store, *(f"{place}index.json#1" for place in places))
    others = ["dagster/history.db#1", "gallery/batch=b/index.html#1", "sandbox/state.sqlite#1"]
    left_by(store, *others)
    assert files.sweep(store, "a") == len(places)
    assert sorted(store.leftovers("")) == others


def test_what_people_call_so_is_not_swept(store):
    left_by(store, "images/batch=a/take #1.png", "images/batch=a/#", "images/batch=a/.hidden.new")
    assert files.sweep(store, "a") == 0


def test_a_killed_write_leaves_what_leftovers_names(store):
    """The names are those of the library that writes: seen in a process that is killed while it does."""
    program = (
        "import sys, obstore\n"
        "from ideogram_pipeline.storage import Store\n"
        "store = Store.open(sys.argv[1])\n"
        "def parts():\n"
        "    yield b'x' * 10_000_000\n"
        "    print('half', flush=True)\n"
        "    sys.stdin.read()\n"
        "store.put_parts('catalog/00.parquet', parts())\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, str(store.folder)], **pipes) as writer:
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert store.leftovers("catalog") == ["catalog/00.parquet#1"]
    assert list(store.objects("catalog")) == []


def test_a_half_written_catalog_file_never_breaks_who_reads_the_folder(store):
    rows = pd.DataFrame({"a": [1]})
    rows.to_parquet(store.folder / "one.parquet")
    store.put_whole("catalog/00.parquet", (store.folder / "one.parquet").read_bytes())
    hidden = f"catalog/.{'0' * 32}.new"
    left_by(store, hidden, f"{hidden}#1")
    assert pd.read_parquet(store.folder / "catalog").equals(rows)
    left_by(store, "catalog/00.parquet#1")  # of an earlier version
    assert len(store.leftovers("catalog")) == 3
    catalog.refresh(store)
    assert store.leftovers("catalog") == []


def test_a_file_that_is_written_whole_has_the_mark_that_a_listing_shows(store):
    mark = store.put_whole("catalog/00.parquet", b"1")
    assert [found.etag for found in store.objects("catalog")] == [mark]
    assert store.put_whole("catalog/00.parquet", b"2") != mark
    assert store.get("catalog/00.parquet") == b"2"

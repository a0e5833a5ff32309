"""Tables as they were read: each reading comes back as it was, whatever is read after it."""

import json
import os
import time
from dataclasses import replace

import pytest

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files, readings
from ideogram_pipeline.generation.buckets import bucket
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.references import ReferencesTable
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection


def prompt(number: int, batch: str, **cells: object) -> PromptRow:
    return PromptRow(prompt_id=f"p{number}", batch=batch, row_number=number, prompt="x", **cells)


def rejection(number: int, batch: str = "") -> Rejection:
    return Rejection(
        file="p.csv", row_number=number, row_id=f"p{number}", batch=batch, column="seed", reason="no number"
    )


TABLE = PromptsTable(
    rows=(
        prompt(2, "b"),
        prompt(3, "a", num_images=3, reference_ids=("face",), style_codes=("AAFF5733",)),
        prompt(4, "b", strength=0.5, expand_prompt=True, extra='{"campaign": "é"}'),
    ),
    rejections=(rejection(5, "a"), rejection(6, "c")),
)


@pytest.fixture
def store(store):
    """A store into which a references table was read, so that a prompts table is all that is missing."""
    readings.write_references(store, ReferencesTable((), ()))
    return store


def kept(store, batch, url=""):
    rows, rejections = readings.newest_tables(store, url, "").read_prompts(batch)
    return list(rows), list(rejections)


def test_a_batch_is_read_without_the_others_in_the_order_of_the_table(store):
    readings.write_prompts(store, TABLE)
    assert kept(store, "b") == ([TABLE.rows[0], TABLE.rows[2]], [])
    assert kept(store, "a") == ([TABLE.rows[1]], [TABLE.rejections[0]])
    assert kept(store, "nothing") == ([], [])


def test_batches_are_counted_in_pictures_and_include_those_with_rejections_only(store):
    readings.write_prompts(store, TABLE)
    assert files.batches(store) == {"a": 3, "b": 2, "c": 0}


def test_a_table_that_was_never_read_is_no_empty_one(store):
    with pytest.raises(ConfigurationError, match=r"prompts table .* never read .*refresh_tables"):
        kept(store, "a")


def named(store):
    return {found.path: found.etag for found in store.objects("tables")}


def test_only_the_files_of_batches_that_changed_are_written(store):
    readings.write_prompts(store, TABLE)
    before = named(store)
    edited = (TABLE.rows[0].model_copy(update={"prompt": "y"}), *TABLE.rows[1:])
    readings.write_prompts(store, replace(TABLE, rows=edited))
    after = named(store)
    assert {path: after[path] for path in before} == before
    new = sorted(path.rpartition("-")[0] for path in after.keys() - before)
    assert new == [f"tables/prompts/{bucket('b')}", f"tables/readings/prompts/{readings.table_key('')}"]
    assert kept(store, "b")[0][0].prompt == "y"


def test_a_table_that_is_read_again_as_it_was_writes_nothing(store):
    name = readings.write_prompts(store, TABLE)
    before = named(store)
    assert readings.write_prompts(store, TABLE) == name
    assert named(store) == before


def test_a_file_of_a_reading_that_was_damaged_or_lost_is_made_anew(store):
    name = readings.write_prompts(store, TABLE)
    for path in named(store):
        store.put(path, b"") if "rejected" in path else store.delete(path)
    with pytest.raises(ConfigurationError, match="never read"):
        readings.newest_name(store, "", "")
    assert files.batches(store) == {}
    readings.write_references(store, ReferencesTable((), ()))
    assert readings.write_prompts(store, TABLE) == name
    assert kept(store, "a") == ([TABLE.rows[1]], [TABLE.rejections[0]])


def test_a_reading_whose_index_is_damaged_stops_nothing_for_good(store):
    name = readings.write_prompts(store, TABLE)
    store.put(f"tables/readings/prompts/{name}.json", b"{")
    with pytest.raises(ConfigurationError, match=r"damaged.*refresh_tables"):
        kept(store, "a")
    assert files.batches(store) == {}
    assert readings.write_prompts(store, TABLE) != name
    assert kept(store, "a") == ([TABLE.rows[1]], [TABLE.rejections[0]])


def test_a_run_works_the_reading_it_was_started_with(store):
    mine = (
        f"{readings.write_prompts(store, TABLE)} {readings.write_references(store, ReferencesTable((), ()))}"
    )
    readings.write_prompts(store, replace(TABLE, rows=(prompt(9, "b"),)))
    assert list(readings.tables_named(store, mine).read_prompts("b")[0]) == [TABLE.rows[0], TABLE.rows[2]]
    assert kept(store, "b")[0] == [prompt(9, "b")]


def test_two_tables_on_one_store_keep_their_own_rows(store):
    readings.write_prompts(store, TABLE)
    readings.write_prompts(store, replace(TABLE, rows=(prompt(9, "b"), prompt(10, "d")), url="other.csv"))
    assert kept(store, "b")[0] == [TABLE.rows[0], TABLE.rows[2]]
    assert kept(store, "b", "other.csv")[0] == [prompt(9, "b")]
    assert files.batches(store) == {"a": 3, "b": 3, "c": 0, "d": 1}


def test_a_table_is_the_same_one_however_its_path_is_written(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    spelt = ("p.csv", "../data/p.csv", str(tmp_path / "data" / "p.csv"))
    assert len({readings.table_key(url) for url in spelt}) == 1
    assert readings.table_key("s3://bucket/p.csv") != readings.table_key("s3://bucket/q.csv")


def age(store, path):
    past = time.time() - readings.KEEP_READINGS.total_seconds() - 60
    os.utime(store.where(path), (past, past))


def test_what_no_reading_names_any_more_goes_and_runs_of_then_are_refused(store):
    first = (
        f"{readings.write_prompts(store, TABLE)} {readings.write_references(store, ReferencesTable((), ()))}"
    )
    for path in named(store):
        age(store, path)
    readings.write_prompts(store, replace(TABLE, rows=TABLE.rows[:2]))
    assert kept(store, "a") == ([TABLE.rows[1]], [TABLE.rejections[0]])
    assert kept(store, "b") == ([TABLE.rows[0]], [])
    assert len([path for path in named(store) if path.startswith("tables/prompts/")]) == len(
        {bucket(batch) for batch in ("a", "b")}
    )
    with pytest.raises(ConfigurationError, match=r"no longer whole in the store.*new run"):
        readings.tables_named(store, first)


def test_a_store_of_an_earlier_version_is_read_until_its_tables_are_read_again(tmp_path):
    store = Store.open(str(tmp_path / "old"))
    path = f"tables/prompts/{bucket('a')}.parquet"
    parquet.write(store, path, PromptRow, [TABLE.rows[1]])
    parquet.write(store, "tables/references.parquet", Reference, [FACE])
    parquet.write(store, "tables/rejected_references.parquet", Rejection, [rejection(3)])
    short = {"images": 3, "digest": "d", "named": ["face"]}
    index = {"batches": {"a": short}, "files": {path: {"sha256": "0", "etag": "0"}}}
    store.put("tables/batches.json", json.dumps(index).encode())
    tables = readings.newest_tables(store, "p.csv", "r.csv")
    assert list(tables.read_prompts("a")[0]) == [TABLE.rows[1]]
    assert tables.read_references(["face", "p3"]) == ({"face": FACE}, {"p3": rejection(3)})
    assert files.batches(store) == {"a": 3}
    readings.write_prompts(store, replace(TABLE, url="p.csv"))
    readings.write_references(store, ReferencesTable((FACE,), (), "r.csv"))
    old = {path, "tables/batches.json", "tables/references.parquet", "tables/rejected_references.parquet"}
    assert old.isdisjoint(named(store))
    assert list(files.batches(store)) == ["a", "b", "c"]


def test_a_batch_that_left_the_table_leaves_no_rows(store, prompts_table):
    readings.write_prompts(store, TABLE)
    readings.write_prompts(store, prompts_table("b"))
    assert list(files.batches(store)) == ["b"]
    assert kept(store, "a") == ([], [])


FACE = Reference(
    reference_id="face",
    row_number=2,
    uri="face.png",
    sha256="0" * 64,
    kind="png",
    width=64,
    height=48,
    bytes=100,
)


def test_references_come_back_by_id(store):
    readings.write_prompts(store, TABLE)
    readings.write_references(store, ReferencesTable((FACE,), (rejection(3),)))
    tables = readings.newest_tables(store, "", "")
    assert tables.read_references(["face", "p3", "nobody"]) == ({"face": FACE}, {"p3": rejection(3)})
    assert tables.read_references([]) == ({}, {})

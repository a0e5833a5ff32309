"""What other programs read of a store, by the calls that docs/loading.md gives."""

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset
import pytest

from ideogram_pipeline.generation import catalog, files
from ideogram_pipeline.generation.edges import edge_rows

BATCHES = ["007", "2026-11-30", "1e5", "null"]
IDS = ["steam-train-01", "dev", "contest-1", "a.val", "x9test", "test_2", "пример-eval", "b1"]


@pytest.fixture
def numbered(store, work_batch):
    """Batches whose names other programs take for numbers, dates and nothing at all."""
    for batch in BATCHES:
        worked = work_batch([{"prompt_id": f"p-{batch}", "prompt": "a cat"}], batch=batch)
        files.write_edges(store, batch, edge_rows(worked.ledger.entries))
    catalog.refresh(store)
    return store


def load(cache, **where):
    return datasets.load_dataset("imagefolder", cache_dir=str(cache), **where)


def test_an_id_with_train_or_test_in_it_costs_an_image_folder_nothing(store, work_batch, tmp_path):
    work_batch([{"prompt_id": one, "prompt": f"scene {one}"} for one in IDS], batch="my-test")
    loaded = load(tmp_path, data_dir=store.where("images/batch=my-test"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": len(IDS)}
    assert {row["prompt_id"]: row["prompt"] for row in loaded["train"]} == {
        one: f"scene {one}" for one in IDS
    }
    assert {"image", "fingerprint", "cost_usd", "batch"} <= set(loaded["train"].column_names)


def test_all_batches_are_one_image_folder_whatever_they_are_called(store, work_batch, tmp_path):
    work_batch([{"prompt_id": "eval", "prompt": "one"}], batch="my-test")
    work_batch([{"prompt_id": "b", "prompt": "two"}, {"prompt_id": "c", "prompt": "three"}], batch="train")
    loaded = load(tmp_path, data_files=store.where("images/**"))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 3}
    assert {(row["batch"], row["prompt"]) for row in loaded["train"]} == {
        ("my-test", "one"),
        ("train", "two"),
        ("train", "three"),
    }


def test_pictures_that_an_earlier_version_named_load_by_the_documented_call(store, work_batch, tmp_path):
    work_batch([{"prompt_id": "steam-train-01", "prompt": "one"}, {"prompt_id": "b", "prompt": "two"}])
    rows = files.read_images(store, "drop")
    for row in rows:
        if "Train" in row.file_name:
            old = row.file_name.replace("Train", "train")
            store.put(f"images/batch=drop/{old}", store.get(f"images/batch=drop/{row.file_name}"))
            store.delete(f"images/batch=drop/{row.file_name}")
    named = [row.model_copy(update={"file_name": row.file_name.replace("Train", "train")}) for row in rows]
    files.write_results(store, "drop", named, files.read_outcomes(store, "drop"))
    assert (
        "prompt" not in load(tmp_path / "1", data_dir=store.where("images/batch=drop"))["train"].column_names
    )
    loaded = load(tmp_path / "2", data_files=store.where("images/batch=drop/*"))
    assert sorted(loaded["train"]["prompt"]) == ["one", "two"]


@pytest.mark.parametrize(
    "pattern", ["images/*/metadata", "outcomes/*/outcomes", "lineage/*/edges", "catalog/*"]
)
def test_a_batch_is_read_as_it_is_called(numbered, pattern):
    pattern = f"{pattern}.parquet"
    found = duckdb.sql(
        f"select distinct batch from read_parquet('{numbered.where(pattern)}', hive_partitioning = false)"
    ).fetchall()
    assert sorted(batch for (batch,) in found) == sorted(BATCHES)
    frame = pl.read_parquet(numbered.where(pattern), hive_partitioning=False)
    assert sorted(set(frame["batch"])) == sorted(BATCHES)


@pytest.mark.parametrize("folder", ["outcomes", "lineage", "catalog"])
def test_a_folder_is_read_whole(numbered, folder):
    where = numbered.where(folder)
    assert sorted(set(pd.read_parquet(where, partitioning=None)["batch"])) == sorted(BATCHES)
    table = pyarrow.dataset.dataset(where, partitioning=None).to_table()
    assert sorted(set(table["batch"].to_pylist())) == sorted(BATCHES)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_file_alone_says_its_batch_too(numbered, batch):
    for path in (files.metadata_path(batch), files.outcomes_path(batch), files.edges_path(batch)):
        assert set(pd.read_parquet(numbered.where(path), partitioning=None)["batch"]) == {batch}
        assert set(pl.read_parquet(numbered.where(path), hive_partitioning=False)["batch"]) == {batch}
    assert {row.batch for row in files.plans(numbered, batch)[0].rows} == {batch}

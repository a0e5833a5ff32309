"""Pictures for training: read by the libraries that people train with."""

import hashlib

import datasets
import pytest
import webdataset
from PIL import Image

from ideogram_pipeline import export as exporting
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.export import export
from ideogram_pipeline.generation import files


@pytest.fixture
def worked(store, work_batch):
    """Two batches of 3 and 2 pictures."""
    rows = [{"prompt_id": f"a{number}", "prompt": f"scene {number}"} for number in range(4)]
    work_batch(rows, endings={"a2": "refused"}, batch="one")
    work_batch([{"prompt_id": "b.1", "prompt": "a storm", "num_images": 2}], batch="two")
    return store


def digests(store, batch):
    return {row.sha256 for row in files.images(store, batch)}


def test_a_batch_folder_is_an_image_folder_as_it_lies(worked, tmp_path):
    folder = worked.where("images/batch=one")
    loaded = datasets.load_dataset("imagefolder", data_dir=folder, cache_dir=str(tmp_path), split="train")
    rows = {row.prompt_id: row for row in files.images(worked, "one")}
    assert {row["prompt_id"] for row in loaded} == set(rows)
    for row in loaded:
        assert row["image"].size == (rows[row["prompt_id"]].width, rows[row["prompt_id"]].height)
        assert row["fingerprint"] == rows[row["prompt_id"]].fingerprint


def test_webdataset_reads_the_shards(worked, tmp_path):
    written = export(worked, tmp_path / "shards", "webdataset", batches=["one"])
    assert (written.images, written.missing) == (3, ())
    samples = list(webdataset.WebDataset(list(written.parts), shardshuffle=False).decode("pil"))
    assert len(samples) == 3
    for sample in samples:
        assert isinstance(sample["png"], Image.Image)
        assert sample["txt"] == sample["json"]["prompt"]
    assert {sample["json"]["sha256"] for sample in samples} == digests(worked, "one")


def test_datasets_reads_the_parquet_with_pictures(worked, tmp_path):
    written = export(worked, tmp_path / "parquet", "parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=list(written.parts), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert written.images == len(loaded) == 5
    assert isinstance(loaded[0]["image"], Image.Image)
    raw = loaded.cast_column("image", datasets.Image(decode=False))
    found = {hashlib.sha256(row["image"]["bytes"]).hexdigest() for row in raw}
    assert found == digests(worked, "one") | digests(worked, "two")


@pytest.mark.parametrize("into", ["webdataset", "parquet"])
def test_large_exports_are_parts_and_the_same_every_time(worked, tmp_path, monkeypatch, into):
    monkeypatch.setattr(exporting, "PART_BYTES", 1)
    monkeypatch.setattr(exporting, "GROUP_BYTES", 1)
    told = []
    first = export(worked, tmp_path / "first", into, told=told.append)
    again = export(worked, tmp_path / "again", into)
    assert len(first.parts) == 5
    assert told == [1, 2, 3, 4, 5]
    for one, other in zip(first.parts, again.parts, strict=True):
        with open(one, "rb") as left, open(other, "rb") as right:
            assert left.read() == right.read()
    assert not [path for path in (tmp_path / "first").iterdir() if "unfinished" in path.name]


def test_a_picture_that_is_not_there_is_named_and_the_others_are_written(worked, tmp_path):
    row = next(iter(files.images(worked, "one")))
    worked.delete(f"images/batch=one/{row.file_name}")
    written = export(worked, tmp_path / "out", "webdataset")
    assert (written.images, written.missing) == (4, (f"images/batch=one/{row.file_name}",))


def test_a_folder_that_holds_something_is_refused_and_left_alone(worked, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        export(worked, tmp_path, "parquet")
    with pytest.raises(ConfigurationError, match="'three' was never run; there are one, two"):
        export(worked, tmp_path / "new", "parquet", batches=["three"])
    assert (tmp_path / "mine.txt").read_text() == "mine"

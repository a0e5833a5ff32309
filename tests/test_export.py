"""Pictures for training: read by the libraries that people train with."""

import hashlib
from datetime import UTC, datetime

import datasets
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from ideogram_pipeline import export as exporting
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.export import Selection, export
from ideogram_pipeline.generation import catalog, files, readings
from ideogram_pipeline.tables.reviews import ReviewsTable
from ideogram_pipeline.tables.rows import Review


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
    written = export(worked, tmp_path / "shards", "webdataset", Selection(worked, ["one"]))
    assert (written.images, written.missing) == (3, ())
    samples = list(webdataset.WebDataset(list(written.parts), shardshuffle=False).decode("pil"))
    assert len(samples) == 3
    for sample in samples:
        assert isinstance(sample["png"], Image.Image)
        assert sample["txt"] == sample["json"]["prompt"]
    assert {sample["json"]["sha256"] for sample in samples} == digests(worked, "one")


def test_datasets_reads_the_parquet_with_pictures(worked, tmp_path):
    written = export(worked, tmp_path / "parquet", "parquet", Selection(worked))
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
    first = export(worked, tmp_path / "first", into, Selection(worked), told=told.append)
    again = export(worked, tmp_path / "again", into, Selection(worked))
    assert len(first.parts) == 5
    assert told == [1, 2, 3, 4, 5]
    for one, other in zip(first.parts, again.parts, strict=True):
        with open(one, "rb") as left, open(other, "rb") as right:
            assert left.read() == right.read()
    assert not [path for path in (tmp_path / "first").iterdir() if "unfinished" in path.name]


def test_a_picture_that_is_not_there_is_named_and_the_others_are_written(worked, tmp_path):
    row = next(iter(files.images(worked, "one")))
    worked.delete(f"images/batch=one/{row.file_name}")
    written = export(worked, tmp_path / "out", "webdataset", Selection(worked))
    assert (written.images, written.missing) == (4, (f"images/batch=one/{row.file_name}",))


def test_a_folder_that_holds_something_is_refused_and_left_alone(worked, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        export(worked, tmp_path, "parquet", Selection(worked))
    with pytest.raises(ConfigurationError, match="'three' was never run; there are one, two"):
        export(worked, tmp_path / "new", "parquet", Selection(worked, ["three"]))
    assert (tmp_path / "mine.txt").read_text() == "mine"


def review(store, prompt_id, verdict, *, batch="one", url="reviews.csv"):
    row = next(row for row in files.images(store, batch) if row.prompt_id == prompt_id)
    said = Review(
        image=f"images/batch={batch}/{row.file_name}",
        row_number=2,
        sha256=row.sha256,
        review=verdict,
        reviewed_at=datetime(2026, 11, 30, tzinfo=UTC),
    )
    return ReviewsTable((said,), (), url)


def exported(store, folder, *batches, into="parquet", **chosen):
    written = export(store, folder, into, Selection(store, batches, **chosen))
    return written, {row["prompt_id"]: row["current"] for row in rows_of(written)}


def rows_of(written):
    return [row for part in written.parts for row in pq.read_table(part).to_pylist()]


def test_a_rejected_picture_is_exported_only_where_it_is_asked_for(worked, tmp_path):
    files.write_reviews(worked, review(worked, "a1", "rejected"))
    written, rows = exported(worked, tmp_path / "1", "one")
    assert (sorted(rows), written.rejected) == (["a0", "a3"], 1)
    written, rows = exported(worked, tmp_path / "2", "one", with_rejected=True)
    assert (sorted(rows), written.rejected) == (["a0", "a1", "a3"], 0)
    written, rows = exported(worked, tmp_path / "3", "one", reviews=review(worked, "a1", "picked"))
    assert (sorted(rows), written.rejected) == (["a0", "a1", "a3"], 0)
    written, rows = exported(worked, tmp_path / "4", "one", reviews=review(worked, "a3", "rejected", url="b"))
    assert (sorted(rows), written.rejected) == (["a0"], 2)


def test_a_rejection_of_other_bytes_says_nothing_of_a_picture(worked, tmp_path):
    said = review(worked, "a1", "rejected")
    other = said.reviews[0].model_copy(update={"sha256": "0" * 64})
    _, rows = exported(worked, tmp_path / "1", "one", reviews=ReviewsTable((other,), (), "b"))
    assert sorted(rows) == ["a0", "a1", "a3"]


def test_a_batch_that_left_the_table_is_not_exported_as_current(worked, tmp_path, prompts_table):
    readings.write_prompts(worked, prompts_table("two"))
    _, rows = exported(worked, tmp_path / "1")
    assert rows == {"b.1": True}
    with pytest.raises(ConfigurationError, match="No prompts table has the batch 'one' any more"):
        Selection(worked, ["one"])
    _, rows = exported(worked, tmp_path / "2", all_takes=True)
    assert rows == {"a0": False, "a1": False, "a3": False, "b.1": True}


def test_a_batch_that_left_the_table_says_so_itself_and_takes_it_back_when_it_returns(worked, prompts_table):
    def current():
        return {(row.batch, row.current) for batch in ("one", "two") for row in files.images(worked, batch)}

    readings.write_prompts(worked, prompts_table("one", "two"))
    catalog.refresh(worked)
    assert current() == {("one", True), ("two", True)}
    readings.write_prompts(worked, prompts_table("two"))
    catalog.refresh(worked)
    assert current() == {("one", False), ("two", True)}
    assert catalog.refresh(worked).rewritten == 0
    catalog.refresh(worked, anew=True)
    assert current() == {("one", False), ("two", True)}
    readings.write_prompts(worked, prompts_table("one", "two"))
    catalog.refresh(worked)
    assert current() == {("one", True), ("two", True)}
    assert catalog.refresh(worked).rewritten == 0


def test_datasets_loads_shards_whose_first_samples_lack_what_later_ones_have(store, work_batch, tmp_path):
    rows = [{"prompt_id": f"a{number}", "prompt": "x"} for number in range(6)]
    late = {
        "prompt_id": "z",
        "prompt": "y",
        "negative_prompt": "fog",
        "style_codes": "0123abcd|00ff00ff",
        "seed": 7,
    }
    work_batch([*rows, late], kinds={"a5": "JPEG", "z": "WEBP"})
    written = export(store, tmp_path / "shards", "webdataset", Selection(store))
    loaded = datasets.load_dataset(
        "webdataset", data_files=list(written.parts), cache_dir=str(tmp_path / "cache"), split="train"
    )
    assert [row["png"].size for row in loaded] == [(64, 48)] * 7
    said = [row["json"] for row in loaded]
    assert [one["negative_prompt"] for one in said] == [""] * 6 + ["fog"]
    assert [one["format"] for one in said] == ["png"] * 5 + ["jpeg", "webp"]
    assert said[6]["style_codes"] == '["0123abcd", "00ff00ff"]'
    assert said[0]["style_codes"] == "[]"
    assert (said[6]["seed"], said[0]["cost_usd"]) == (7, "0.06")
    decoded = list(webdataset.WebDataset(list(written.parts), shardshuffle=False).decode("pil"))
    assert [one["png"].size for one in decoded] == [(64, 48)] * 7


def test_a_folder_with_nothing_but_hidden_files_is_as_good_as_empty(worked, tmp_path):
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / ".DS_Store").touch()
    assert exported(worked, folder)[0].images == 5

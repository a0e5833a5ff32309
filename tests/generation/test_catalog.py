"""The catalog: every picture of every batch, found from the store's root, each exactly once at every moment."""

import json
import re
from collections import Counter

import pandas as pd
import pyarrow.parquet as pq
import pytest

from ideogram_pipeline.generation import catalog, files, readings
from ideogram_pipeline.generation.buckets import BUCKETS, bucket
from ideogram_pipeline.generation.rows import CatalogRow
from ideogram_pipeline.storage import Store, parquet

LIGHTHOUSE = {"prompt_id": "a", "prompt": "a lighthouse"}
NEIGHBOURS = [name for name in (f"drop-{number}" for number in range(2_000)) if bucket(name) == "00"][:3]
"""Batches whose rows lie in one file."""


def everything(store: Store) -> Counter[str]:
    """Count the pictures as somebody sees them who reads the whole folder now."""
    return Counter(pd.read_parquet(store.where(catalog.FOLDER))["path"])


class Watched(Store):
    """A store that looks at the catalog, as a reader would, after each of its writes and removals."""

    def put(self, path: str, content: bytes) -> str:
        etag = super().put(path, content)
        self._look()
        return etag

    def delete(self, path: str) -> None:
        super().delete(path)
        self._look()

    def _look(self) -> None:
        self.__dict__.setdefault("seen", []).append(everything(self))


def test_every_picture_is_found_from_the_root(store, work_batch):
    work_batch([LIGHTHOUSE | {"num_images": 2}], batch="one")
    work_batch([LIGHTHOUSE, {"prompt_id": "b", "prompt": "x"}], batch="two", endings={"b": "refused"})
    summary = catalog.refresh(store)
    rows = [row for batch in ("one", "two") for row in catalog.read(store, catalog.path(batch), [batch])]
    assert len({row.path for row in rows}) == 3
    assert all(store.exists(row.path) for row in rows)
    assert (summary.batches, summary.images, summary.cost_usd) == (2, 3, 0.18)


def test_the_rows_are_those_of_their_batch_with_their_types(store, work_batch):
    work_batch([LIGHTHOUSE | {"extra": "{}"}], batch="one")
    catalog.refresh(store)
    assert list(catalog.read(store, catalog.path("one"))) == [
        CatalogRow(**row.model_dump(), path=f"images/batch=one/{row.file_name}")
        for row in files.read_images(store, "one")
    ]
    written = pq.read_schema(store.where(catalog.path("one")))
    assert written.equals(parquet.arrow_schema(CatalogRow))


def test_nothing_is_rewritten_where_nothing_changed(store, work_batch):
    work_batch([LIGHTHOUSE])
    first = catalog.refresh(store)
    second = catalog.refresh(store)
    assert (first.rewritten, second.rewritten) == (1, 0)
    assert first.digest == second.digest


def test_only_a_file_with_a_batch_that_changed_is_rewritten(store, work_batch):
    work_batch([LIGHTHOUSE], batch="one")
    work_batch([LIGHTHOUSE], batch="two")
    before = catalog.refresh(store)
    work_batch([LIGHTHOUSE | {"prompt": "a lighthouse at night"}], batch="two")
    after = catalog.refresh(store)
    assert (after.rewritten, after.images) == (1, 3)
    assert after.digest != before.digest


def test_a_batch_that_was_run_again_and_brought_nothing_new_leaves_the_file_alone(store, work_batch):
    work_batch([LIGHTHOUSE])
    before = catalog.refresh(store)
    work_batch([LIGHTHOUSE])
    after = catalog.refresh(store)
    assert (after.rewritten, after.digest) == (0, before.digest)


def test_many_small_batches_share_few_files(store, work_batch):
    for batch in NEIGHBOURS:
        work_batch([LIGHTHOUSE], batch=batch)
    catalog.refresh(store)
    assert [found.path for found in store.objects(catalog.FOLDER)] == ["catalog/00.parquet"]
    assert len(everything(store)) == len(NEIGHBOURS)
    assert {bucket(f"b{number}") for number in range(5_000)} == {f"{name:02x}" for name in range(BUCKETS)}


def test_a_reader_finds_every_row_once_after_each_write(store, work_batch):
    watched = Watched.open(store.url)
    first, second, third = NEIGHBOURS
    work_batch([LIGHTHOUSE], batch=first)
    catalog.refresh(store)
    known = set(everything(store))
    for batch in (second, third, "elsewhere"):
        work_batch([LIGHTHOUSE], batch=batch)
        catalog.refresh(watched)
        assert all(known <= seen.keys() and max(seen.values()) == 1 for seen in watched.seen)
        known = set(everything(store))
        watched.seen.clear()
    assert len(known) == 4


class Strict(Store):
    """A store in which no file that readers of the catalog see may be written in its place."""

    def put(self, path: str, content: bytes) -> str:
        assert not re.fullmatch(r"catalog/[^.].*", path)
        return super().put(path, content)


def test_a_file_of_the_catalog_gets_its_name_once_it_is_written(store, work_batch):
    """A process that is killed while it writes would else leave a file that breaks who reads the folder."""
    work_batch([LIGHTHOUSE], batch="one")
    assert catalog.refresh(Strict.open(store.url)).images == 1
    assert sum(everything(store).values()) == 1


def test_a_batch_that_left_the_table_asks_for_no_picture_any_more(store, work_batch, prompts_table):
    work_batch([LIGHTHOUSE], batch="one")
    readings.write_prompts(store, prompts_table("one", "two"))
    catalog.refresh(store)
    assert next(catalog.read(store, catalog.path("one"))).current
    readings.write_prompts(store, prompts_table("two"))
    catalog.refresh(store)
    assert not next(catalog.read(store, catalog.path("one"))).current


@pytest.mark.parametrize(
    "harm",
    [
        lambda store, path: store.delete(path),
        lambda store, path: store.put(path, b"cut off"),
        lambda store, path: store.put(path, store.get(path)),
        lambda store, _: store.delete(catalog.INDEX),
        lambda store, _: store.put(catalog.INDEX, b"{"),
    ],
    ids=["deleted", "damaged", "written by another", "index deleted", "index damaged"],
)
def test_what_is_not_as_it_was_left_is_made_again(store, work_batch, harm):
    work_batch([LIGHTHOUSE])
    before = catalog.refresh(store)
    harm(store, catalog.path("drop"))
    after = catalog.refresh(store)
    assert (after.digest, after.rewritten) == (before.digest, 1)
    assert len(everything(store)) == 1


def test_a_file_that_no_batch_belongs_to_goes_before_its_rows_stand_twice(store, work_batch):
    work_batch([LIGHTHOUSE])
    catalog.refresh(store)
    store.put("catalog/drop.parquet", store.get(catalog.path("drop")))
    catalog.refresh(store)
    assert everything(store).total() == 1


def test_one_refresh_more_costs_the_same_however_many_batches_there_are(store, work_batch):
    """Store operations are counted: what is read and written is what changed, and the listings."""
    counted = []
    for number in (3, 30):
        for batch in range(number):
            work_batch([LIGHTHOUSE], batch=f"b{batch}")
        catalog.refresh(store)
        work_batch([LIGHTHOUSE], batch="new" if number == 3 else "newer")
        counting = Store.open(store.url)
        catalog.refresh(counting)
        counted.append(counting.requests)
    assert counted[0] == counted[1]


def test_a_store_without_pictures_has_an_empty_catalog(store):
    summary = catalog.refresh(store)
    assert (summary.batches, summary.images, summary.rewritten) == (0, 0, 0)


def test_files_with_the_columns_of_another_version_are_made_again(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "a lighthouse"}])
    catalog.refresh(store)
    index = json.loads(store.get(catalog.INDEX))
    store.put(catalog.INDEX, json.dumps(index | {"columns": index["columns"][:-1]}).encode())
    assert catalog.refresh(store).rewritten == 1
    assert catalog.refresh(store).rewritten == 0

"""The catalog: every picture of every batch, found from the store's root."""

from ideogram_pipeline.generation import catalog
from ideogram_pipeline.generation.rows import CatalogRow
from ideogram_pipeline.storage import parquet

LIGHTHOUSE = {"prompt_id": "a", "prompt": "a lighthouse"}


def test_every_picture_is_found_from_the_root(store, work_batch):
    work_batch([LIGHTHOUSE | {"num_images": 2}], batch="one")
    work_batch([LIGHTHOUSE, {"prompt_id": "b", "prompt": "x"}], batch="two", endings={"b": "refused"})
    summary = catalog.refresh(store)
    rows = [
        row for batch in ("one", "two") for row in parquet.read(store, f"catalog/{batch}.parquet", CatalogRow)
    ]
    assert len({row.path for row in rows}) == 3
    assert all(store.exists(row.path) for row in rows)
    assert (summary.batches, summary.images, summary.cost_usd) == (2, 3, 0.18)


def test_nothing_is_rewritten_where_nothing_changed(store, work_batch):
    work_batch([LIGHTHOUSE])
    first = catalog.refresh(store)
    second = catalog.refresh(store)
    assert (first.rewritten, second.rewritten) == (1, 0)
    assert first.digest == second.digest


def test_only_a_batch_that_changed_is_rewritten(store, work_batch):
    work_batch([LIGHTHOUSE], batch="one")
    work_batch([LIGHTHOUSE], batch="two")
    before = catalog.refresh(store)
    work_batch([LIGHTHOUSE | {"prompt": "a lighthouse at night"}], batch="two")
    after = catalog.refresh(store)
    assert (after.rewritten, after.images) == (1, 3)
    assert after.digest != before.digest


def test_a_store_without_pictures_has_an_empty_catalog(store):
    summary = catalog.refresh(store)
    assert (summary.batches, summary.images, summary.rewritten) == (0, 0, 0)

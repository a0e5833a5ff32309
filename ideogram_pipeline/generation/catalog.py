"""The catalog: the picture rows of all batches in one folder, a file a batch, each rewritten only when it changes."""

from __future__ import annotations

import hashlib
from collections.abc import Container
from dataclasses import dataclass

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.rows import CatalogRow
from ideogram_pipeline.storage import Store, parquet

FOLDER = "catalog"


@dataclass(frozen=True, slots=True)
class CatalogSummary:
    """What a catalog holds."""

    images: int
    """Pictures."""
    batches: int
    """Batches, one file each."""
    rewritten: int
    """Files that had changed."""
    cost_usd: float
    """US dollars of all pictures whose cost is known."""
    bytes: int
    """Length of all picture files together."""
    digest: str
    """Changes when, and only when, a row does."""


def path(batch: str) -> str:
    """Return where a batch's part of the catalog lies."""
    return f"{FOLDER}/{batch}.parquet"


def read(store: Store, batch: str) -> list[CatalogRow]:
    """Return a batch's part of the catalog as it is."""
    return list(parquet.read(store, path(batch), CatalogRow))


def batch_rows(store: Store, batch: str, asked_for: Container[str]) -> list[CatalogRow]:
    """Return a batch's part of the catalog as it should be; `asked_for`: the batches of the prompts table."""
    folder = files.metadata_path(batch).rpartition("/")[0]
    return [
        CatalogRow(
            **row.model_dump(exclude={"current"}),
            current=row.current and batch in asked_for,
            path=f"{folder}/{row.file_name}",
        )
        for row in files.read_images(store, batch)
    ]


def refresh(store: Store) -> CatalogSummary:
    """Bring the catalog up to date with the batches' metadata."""
    images, rewritten, cost, size = 0, 0, 0.0, 0
    whole = hashlib.sha256()
    batches, asked_for = files.batches_with_results(store), files.batches(store)
    for batch in batches:
        rows = batch_rows(store, batch, asked_for)
        content = parquet.encode(CatalogRow, rows)
        if not store.exists(path(batch)) or store.get(path(batch)) != content:
            store.put(path(batch), content)
            rewritten += 1
        whole.update(content)
        images += len(rows)
        cost += sum(row.cost_usd or 0.0 for row in rows)
        size += sum(row.bytes for row in rows)
    return CatalogSummary(images, len(batches), rewritten, round(cost, 6), size, whole.hexdigest())

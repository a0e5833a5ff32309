"""On the catalog: is it the sum of its batches, and are its pictures all of the backend that the store is for?"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg

from ideogram_pipeline.checks.findings import Verdict
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource

if TYPE_CHECKING:
    from ideogram_pipeline.generation.rows import CatalogRow
    from ideogram_pipeline.storage import Store

CHECKS = {
    "catalog_complete": "The catalog has every picture of every batch, as its batch has it, and no other. Run "
    "`publish` again; a file of the catalog without a batch is to be deleted.",
    "one_backend": "All pictures are of the backend that the store is for: what the sandbox drew never stands among "
    "fal's, nor the reverse. Find out how the rows came here, and keep each backend's pictures in a store of its own.",
}
"""The checks and what they mean."""


def define(pipeline: Pipeline) -> dg.AssetChecksDefinition:
    """Return the checks on a pipeline's catalog."""
    asset = pipeline.key("image_catalog")

    @dg.multi_asset_check(
        name=pipeline.name("checks_on_catalog"),
        specs=[dg.AssetCheckSpec(name, asset=asset, description=meaning) for name, meaning in CHECKS.items()],
    )
    @pipeline.with_own_resources
    def checks_on_catalog(store: StoreResource) -> Iterator[dg.AssetCheckResult]:
        for verdict in verdicts(store.open(), store.backend):
            yield verdict.of(asset)

    return checks_on_catalog


def verdicts(store: "Store", backend: str) -> tuple[Verdict, Verdict]:
    """Compare the catalog with its batches, one after the other, and its rows with the store's backend."""
    from ideogram_pipeline.generation import catalog, files

    asked_for = files.batches(store)
    batches = files.batches_with_results(store)
    files_there = {found.path for found in store.objects(catalog.FOLDER)}
    differing: list[tuple[str, str]] = []
    strangers: list[tuple[str, str]] = []
    images = 0
    for batch in batches:
        expected = {row.path: row for row in catalog.batch_rows(store, batch, asked_for)}
        there: dict[str, CatalogRow] = {}
        if catalog.path(batch) in files_there:
            there = {row.path: row for row in catalog.read(store, batch)}
        images += len(there)
        differing += [(path, "is missing from the catalog") for path in expected.keys() - there.keys()]
        differing += [(path, "is in no batch") for path in there.keys() - expected.keys()]
        both = expected.keys() & there.keys()
        differing += [(path, "is not as its batch has it") for path in both if there[path] != expected[path]]
        strangers += [
            (path, f"is of the backend {row.backend}")
            for path, row in (expected | there).items()
            if row.backend != backend
        ]
    extra = files_there - {catalog.path(batch) for batch in batches}
    differing += [(path, "belongs to no batch that was run") for path in extra]
    complete = Verdict(
        "catalog_complete",
        sorted(differing),
        "Run `publish` again; delete a file of the catalog that belongs to no batch.",
        dg.AssetCheckSeverity.ERROR,
        {"pictures": images, "batches": len(batches)},
    )
    one_backend = Verdict(
        "one_backend",
        sorted(strangers),
        f"This store is for pictures of the backend {backend}. Find out how the others came here, and move them out.",
        dg.AssetCheckSeverity.ERROR,
        {"pictures": images},
    )
    return complete, one_backend

"""The pictures of all batches as one Parquet dataset."""

from datetime import timedelta

import dagster as dg

from ideogram_pipeline import memory
from ideogram_pipeline.assets.columns import catalog_sources, described
from ideogram_pipeline.assets.holding import holding
from ideogram_pipeline.assets.retries import CRASHES, retried_after_crashes
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource

CODE_VERSION = "2"
"""Changes with the catalog's columns."""
FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=1), fail_window=timedelta(days=7))
"""People who query the catalog may count on yesterday's pictures; after a week something stands still."""


def define(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """Return the asset of a pipeline's catalog."""
    from ideogram_pipeline.generation.rows import CatalogRow

    @dg.asset(
        key=pipeline.key("image_catalog"),
        group_name=pipeline.name("catalog"),
        owners=pipeline.owners,
        kinds={"parquet"},
        code_version=CODE_VERSION,
        metadata=described(pipeline, CatalogRow, catalog_sources(), "catalog"),
        deps=[pipeline.key("generated_images")],
        io_manager_key=pipeline.name("frames"),
        retry_policy=CRASHES,
        freshness_policy=FRESHNESS,
    )
    @pipeline.with_own_resources
    @retried_after_crashes
    @holding
    def image_catalog(store: StoreResource) -> dg.MaterializeResult[None]:
        """Every picture of every batch: `catalog/*.parquet`, at most 256 files, opened at once by DuckDB and pandas."""
        from ideogram_pipeline.generation import catalog

        opened = store.open()
        summary = catalog.refresh(opened)
        memory.give_back()
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": summary.images,
                "bytes": summary.bytes,
                "batches": summary.batches,
                "files_rewritten": summary.rewritten,
                "cost_usd": summary.cost_usd,
                "path": dg.MetadataValue.path(opened.where(catalog.FOLDER)),
            },
            data_version=dg.DataVersion(summary.digest),
        )

    return [image_catalog]

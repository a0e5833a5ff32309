"""The pictures of all batches as one Parquet dataset."""

import dagster as dg

from ideogram_pipeline.assets.images import generated_images
from ideogram_pipeline.resources import StoreResource


@dg.asset(group_name="catalog", kinds={"parquet"}, code_version="1", deps=[generated_images])
def image_catalog(store: StoreResource) -> dg.MaterializeResult[None]:
    """Every picture of every batch: `catalog/*.parquet`, one file a batch, opened as a whole by DuckDB and pandas."""
    from ideogram_pipeline.generation import catalog

    opened = store.open()
    summary = catalog.refresh(opened)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": summary.images,
            "batches": summary.batches,
            "batches_rewritten": summary.rewritten,
            "cost_usd": summary.cost_usd,
            "path": dg.MetadataValue.path(opened.where(catalog.FOLDER)),
        },
        data_version=dg.DataVersion(summary.digest),
    )

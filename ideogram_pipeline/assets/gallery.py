"""The pages people look at."""

import dagster as dg

from ideogram_pipeline.assets.catalog import image_catalog
from ideogram_pipeline.resources import StoreResource


@dg.asset(group_name="catalog", kinds={"html"}, code_version="1", deps=[image_catalog])
def gallery(store: StoreResource) -> dg.MaterializeResult[None]:
    """A page per batch and an index: every row with its picture, reference, prompt, seed, cost and state."""
    from ideogram_pipeline.gallery.pages import write_gallery

    opened = store.open()
    summary = write_gallery(opened, thumbnails=store.thumbnails)
    return dg.MaterializeResult(
        metadata={
            "batches": summary.batches,
            "rows": summary.rows,
            "images": summary.images,
            "path": dg.MetadataValue.path(opened.where(summary.index)),
        },
        data_version=dg.DataVersion(summary.digest),
    )

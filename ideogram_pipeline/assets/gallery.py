"""The pages people look at."""

import dagster as dg

from ideogram_pipeline import memory
from ideogram_pipeline.assets.holding import holding
from ideogram_pipeline.assets.retries import CRASHES, retried_after_crashes
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource

CODE_VERSION = "2"
"""Changes with what the pages show."""


def define(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """Return the asset of a pipeline's gallery."""

    @dg.asset(
        key=pipeline.key("gallery"),
        group_name=pipeline.name("catalog"),
        owners=pipeline.owners,
        kinds={"html"},
        code_version=CODE_VERSION,
        metadata={"dagster/uri": pipeline.uri("gallery")},
        deps=[pipeline.key("image_catalog"), *([pipeline.key("reviews")] if pipeline.has_reviews else [])],
        retry_policy=CRASHES,
    )
    @pipeline.with_own_resources
    @retried_after_crashes
    @holding
    def gallery(store: StoreResource) -> dg.MaterializeResult[None]:
        """A page per batch and character and an index: every row with its picture, reference, facts and review."""
        from ideogram_pipeline.gallery.pages import write_gallery
        from ideogram_pipeline.generation import files

        memory.give_back()
        opened = store.open()
        summary = write_gallery(opened, thumbnails=store.thumbnails, reviews=files.all_reviews(opened))
        return dg.MaterializeResult(
            metadata={
                "batches": summary.batches,
                "characters": summary.characters,
                "rows": summary.rows,
                "images": summary.images,
                "path": dg.MetadataValue.path(opened.where(summary.index)),
            },
            data_version=dg.DataVersion(summary.digest),
        )

    return [gallery]

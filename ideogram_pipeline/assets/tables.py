"""The tables people write, checked row by row and kept as typed Parquet."""

from collections import Counter
from collections.abc import Iterable
from functools import partial

import dagster as dg
from pydantic import BaseModel

from ideogram_pipeline import digests
from ideogram_pipeline.assets import metadata
from ideogram_pipeline.assets.columns import described
from ideogram_pipeline.assets.holding import holding
from ideogram_pipeline.assets.retries import CRASHES, retried_after_crashes
from ideogram_pipeline.partitions import register
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource, TablesResource
from ideogram_pipeline.texts import shown

PROMPTS_VERSION = "1"
"""Changes with the columns of the prompts table or what they mean."""
REFERENCES_VERSION = "2"
"""Changes with the columns of the references table or what they mean."""

REVIEWS_VERSION = "1"
"""Changes with the columns of the reviews table or what they mean."""

VERSION = "table_version"
"""Names the metadata that says which state of the file a materialization has read."""
READING = "reading"
"""Names the metadata that says as which reading a materialization has kept its table in the store."""
READINGS_TAG = "ideogram_pipeline/tables"
"""Names the readings of prompts and references that a run works; without it a run takes the newest of its tables."""


def define(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """Return the assets of a pipeline's tables; reviews are one of them only where there is such a table."""
    from ideogram_pipeline.tables.rows import PromptRow, Reference, Review

    @dg.asset(
        key=pipeline.key("prompts"),
        group_name=pipeline.name("tables"),
        owners=pipeline.owners,
        kinds={"parquet"},
        code_version=PROMPTS_VERSION,
        metadata=described(pipeline, PromptRow, {}, "tables/prompts"),
        retry_policy=CRASHES,
    )
    @pipeline.with_own_resources
    @retried_after_crashes
    @holding
    def prompts(
        context: dg.AssetExecutionContext, store: StoreResource, tables: TablesResource
    ) -> dg.MaterializeResult[None]:
        """The prompts table: one row a request. Rows that can't be used are kept beside it, each with its reason."""
        from ideogram_pipeline.generation import readings
        from ideogram_pipeline.generation.lost_ledgers import paid_batches
        from ideogram_pipeline.tables.prompts import read_prompts
        from ideogram_pipeline.tables.versions import prompts_version

        opened = store.open()
        # first: what changes now is read again
        version = prompts_version(tables.prompts, tables.defaults, tables.extra_columns)
        table = read_prompts(
            tables.prompts,
            tables.defaults,
            extra_columns=tables.extra_columns,
            paid_batches=partial(paid_batches, opened),
        )
        reading = readings.write_prompts(opened, table)
        register(context.instance, pipeline.batches, table.batches)
        for rejection in table.rejections[:20]:
            context.log.warning(shown(rejection))
        return dg.MaterializeResult(
            metadata={
                "rows": len(table.rows),
                "dagster/row_count": len(table.rows),
                "rejected": len(table.rejections),
                **metadata.rejections(table.rejections),
                "batches": len(table.batches),
                "table": dg.MetadataValue.path(tables.prompts),
                VERSION: version,
                READING: reading,
                "path": dg.MetadataValue.path(opened.where("tables/prompts")),
            },
            data_version=_digest([*table.rows, *table.rejections]),
        )

    @dg.asset(
        key=pipeline.key("references"),
        group_name=pipeline.name("tables"),
        owners=pipeline.owners,
        kinds={"parquet"},
        code_version=REFERENCES_VERSION,
        metadata=described(pipeline, Reference, {}, "tables/references"),
        retry_policy=CRASHES,
    )
    @pipeline.with_own_resources
    @retried_after_crashes
    @holding
    def references(
        context: dg.AssetExecutionContext, store: StoreResource, tables: TablesResource
    ) -> dg.MaterializeResult[None]:
        """The references table with every picture opened: size, kind and digest. The bytes lie under their digest."""
        from ideogram_pipeline.generation import readings
        from ideogram_pipeline.tables.erased import refused
        from ideogram_pipeline.tables.references import read_references
        from ideogram_pipeline.tables.versions import references_version

        opened = store.open()
        version = references_version(tables.references, tables.extra_columns)
        table = read_references(
            tables.references,
            opened,
            erased=refused(opened),
            private_hosts=tables.private_hosts,
            extra_columns=tables.extra_columns,
        )
        reading = readings.write_references(opened, table)
        for rejection in table.rejections[:20]:
            context.log.warning(shown(rejection))
        return dg.MaterializeResult(
            metadata={
                "rows": len(table.references),
                "dagster/row_count": len(table.references),
                "rejected": len(table.rejections),
                **metadata.rejections(table.rejections),
                "bytes": sum(reference.bytes for reference in table.references),
                "table": dg.MetadataValue.path(tables.references),
                VERSION: version,
                READING: reading,
                "path": dg.MetadataValue.path(opened.where("tables/references")),
            },
            data_version=_digest([*table.references, *table.rejections]),
        )

    @dg.asset(
        key=pipeline.key("reviews"),
        group_name=pipeline.name("tables"),
        owners=pipeline.owners,
        kinds={"parquet"},
        code_version=REVIEWS_VERSION,
        metadata=described(pipeline, Review, {}, "tables/reviews"),
        retry_policy=CRASHES,
    )
    @pipeline.with_own_resources
    @retried_after_crashes
    @holding
    def reviews(
        context: dg.AssetExecutionContext, store: StoreResource, tables: TablesResource
    ) -> dg.MaterializeResult[None]:
        """What people think of pictures: which are picked, and which rejected. The gallery exports it."""
        from ideogram_pipeline.generation import files
        from ideogram_pipeline.tables.reviews import read_reviews

        assert tables.reviews is not None
        table = read_reviews(tables.reviews, extra_columns=tables.extra_columns)
        files.write_reviews(store.open(), table)
        for rejection in table.rejections[:20]:
            context.log.warning(shown(rejection))
        counted = Counter(review.review for review in table.reviews)
        return dg.MaterializeResult(
            metadata={
                "rows": len(table.reviews),
                "dagster/row_count": len(table.reviews),
                "picked": counted["picked"],
                "not_picked": counted["rejected"],
                "rejected": len(table.rejections),
                **metadata.rejections(table.rejections),
                "table": dg.MetadataValue.path(tables.reviews),
            },
            data_version=_digest([*table.reviews, *table.rejections]),
        )

    return [prompts, references, *([reviews] if pipeline.has_reviews else [])]


def _digest(rows: Iterable[BaseModel]) -> dg.DataVersion:
    return dg.DataVersion(digests.of_lines(row.model_dump_json() for row in rows))

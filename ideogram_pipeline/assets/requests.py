"""The plan of a batch: what will be asked of fal, what it will cost, and what needs no asking."""

import hashlib

import dagster as dg

from ideogram_pipeline.assets import metadata
from ideogram_pipeline.assets.columns import described, request_sources
from ideogram_pipeline.assets.retries import CRASHES, retried_after_crashes
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource

CODE_VERSION = "1"
"""Changes with the plan's columns or the rules by which a row becomes a request."""


def define(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """Return the asset of a pipeline's plans."""
    from ideogram_pipeline.generation.planner import PlannedRow

    @dg.asset(
        key=pipeline.key("generation_requests"),
        group_name=pipeline.name("generation"),
        owners=pipeline.owners,
        kinds={"parquet"},
        code_version=CODE_VERSION,
        metadata=described(pipeline, PlannedRow, request_sources(), "plans"),
        partitions_def=pipeline.batches,
        deps=[pipeline.key("prompts"), pipeline.key("references")],
        retry_policy=CRASHES,
    )
    @pipeline.with_own_resources
    @retried_after_crashes
    def generation_requests(
        context: dg.AssetExecutionContext, store: StoreResource
    ) -> dg.MaterializeResult[None]:
        """A request for every row of the batch: joined, checked, fingerprinted, priced; or why it can't be sent."""
        from ideogram_pipeline.generation import files
        from ideogram_pipeline.generation.ledger import Ledger
        from ideogram_pipeline.generation.planner import plan_batch

        opened = store.open()
        batch = context.partition_key
        rows, rejections = files.read_prompts(opened, batch)
        plan = plan_batch(
            batch, rows, rejections, files.read_references(opened), Ledger(opened, batch).entries
        )
        files.write_plan(opened, plan)
        return dg.MaterializeResult(
            metadata={
                **metadata.of_plan(plan),
                "path": dg.MetadataValue.path(opened.where(files.plan_path(batch))),
            },
            data_version=_identity([f"{row.prompt_id} {row.fingerprint or row.reason}" for row in plan.rows]),
        )

    return [generation_requests]


def _identity(lines: list[str]) -> dg.DataVersion:
    """What the plan asks for, and not how much of it was done before."""
    return dg.DataVersion(hashlib.sha256("\n".join(lines).encode()).hexdigest())

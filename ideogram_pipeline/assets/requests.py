"""The plan of a batch: what will be asked of fal, what it will cost, and what needs no asking."""

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from ideogram_pipeline import digests, memory
from ideogram_pipeline.assets import metadata
from ideogram_pipeline.assets.columns import described, request_sources
from ideogram_pipeline.assets.holding import holding
from ideogram_pipeline.assets.retries import CRASHES, retried_after_crashes
from ideogram_pipeline.assets.tables import READINGS_TAG
from ideogram_pipeline.errors import ConfigurationError, DamagedFile
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource, TablesResource

if TYPE_CHECKING:
    from ideogram_pipeline.generation.planner import Plan
    from ideogram_pipeline.generation.readings import Tables
    from ideogram_pipeline.storage import Store

CODE_VERSION = "2"
"""Changes with the plan's columns or the rules by which a row becomes a request."""


class RequestsConfig(dg.Config):
    """What is asked for in this run. Without any of it: whatever the prompts table asks for and isn't there yet."""

    regenerate: bool = Field(
        default=False,
        description="Ask for a new take of every row: the same again with another seed, which is paid for. A row whose "
        "last request has not ended is first brought to its end. A retry of the run asks for no further take.",
    )
    only_failed: bool = Field(
        default=False,
        description="Work only the rows that an earlier run left without a picture. With `regenerate`, rows that were "
        "refused or failed for good are asked for again; without, they stay as they are.",
    )
    limit: int | None = Field(
        default=None,
        description="Pay for at most so many rows, the first in the order of the table. A retry of the run pays for "
        "the same ones.",
    )
    regenerate_rejected: bool = Field(
        default=False,
        description="Ask for a new take of the rows of which a picture is rejected in the reviews table, and pay for "
        "no other row. Where a request has several pictures, one that is rejected is enough, and all are made anew.",
    )
    prompt_ids: list[str] = Field(
        default=[], description="Work only these rows of the batch; all of them if none is named."
    )


def define(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """Return the asset of a pipeline's plans."""
    from ideogram_pipeline.generation.rows import PlannedRow

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
    @holding
    def generation_requests(
        context: dg.AssetExecutionContext,
        config: RequestsConfig,
        store: StoreResource,
        tables: TablesResource,
    ) -> dg.MaterializeResult[None]:
        """A request for every row of the batch: joined, checked, fingerprinted, priced; or why it can't be sent."""
        from ideogram_pipeline.generation import files
        from ideogram_pipeline.generation.choice import Choice, Decisions
        from ideogram_pipeline.generation.ledger import Ledger
        from ideogram_pipeline.generation.planner import TO_PAY, plan_batch
        from ideogram_pipeline.telemetry import span

        memory.give_back()
        opened = store.open()
        batch = context.partition_key
        files.sweep(opened, batch)
        read = _tables(context.run, opened, tables)
        rows, rejections = read.read_prompts(batch)
        root_run_id = context.run.root_run_id or context.run.run_id
        with span("plan", batch=batch, run_id=context.run.run_id, rows=len(rows)):
            plan = plan_batch(
                batch,
                rows,
                rejections,
                read.read_references(files.named_by(rows)),
                Ledger(opened, batch).entries,
                choice=Choice(**config.model_dump()),
                left_without=files.left_without_picture(opened, batch),
                rejected=(
                    files.rejected_requests(
                        opened, batch, files.read_reviews(opened, tables.reviews, batch).values()
                    )
                    if config.regenerate_rejected
                    else ()
                ),
                decisions=Decisions(opened, batch, root_run_id),
                pass_urls=tables.pass_urls,
            )
        plan = replace(plan, reading=read.prompts_reading)
        files.write_plan(opened, plan, root_run_id=root_run_id)
        picked = []
        if any(map(plan.count, TO_PAY)):
            with suppress(ConfigurationError, DamagedFile):  # there are no reviews
                reviews = files.read_reviews(opened, tables.reviews, batch).values()
                picked = files.picked_to_replace(opened, plan, reviews)
        memory.give_back()
        return dg.MaterializeResult(
            metadata={
                **metadata.of_plan(plan),
                **metadata.replaced(picked),
                "path": dg.MetadataValue.path(opened.where(files.plan_path(batch, plan.reading))),
            },
            data_version=_identity(plan),
        )

    return [generation_requests]


def _tables(run: dg.DagsterRun, store: "Store", tables: TablesResource) -> "Tables":
    """Return the tables that a run was started with; the newest readings of its own where nobody said which."""
    from ideogram_pipeline.generation import readings

    name = run.tags.get(READINGS_TAG)
    return readings.tables_named(
        store, name or readings.newest_name(store, tables.prompts, tables.references)
    )


def _identity(plan: "Plan") -> dg.DataVersion:
    """What the plan asks for, and not how much of it was done before."""
    asked = (f"{row.prompt_id} {row.fingerprint or row.reason}" for row in plan.rows)
    return dg.DataVersion(digests.of_lines(asked))

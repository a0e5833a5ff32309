"""The pictures of a batch: the one stage that pays."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field

from ideogram_pipeline import __version__, logs, memory
from ideogram_pipeline.assets import metadata
from ideogram_pipeline.assets.bridge import Interruption, run_in_thread
from ideogram_pipeline.assets.columns import described, image_sources
from ideogram_pipeline.assets.holding import holding
from ideogram_pipeline.assets.retries import CRASHES, retried_after_crashes, terminated
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import (
    BudgetResource,
    FalResource,
    LikenessResource,
    MarksResource,
    Progress,
    StoreResource,
)

if TYPE_CHECKING:
    from ideogram_pipeline.generation.outcomes import Outcome, Outcomes

REASONS = 20
"""Rows without a picture whose reason the log and the metadata name."""
RUN_TAG = "ideogram_pipeline/run"
"""Names the command that several Dagster runs belong to, so that they share one budget."""
CODE_VERSION = "3"
"""Changes with the columns of the pictures' rows or the way pictures are made."""


class ImagesConfig(dg.Config):
    """What this run may do."""

    max_spend_usd: float | None = Field(
        default=None,
        description="Dollars that this run, with its retries, may spend, if that is less than IDEOGRAM_BUDGET_USD.",
    )


def define(pipeline: Pipeline) -> list[dg.AssetsDefinition]:
    """Return the asset of a pipeline's pictures."""
    from ideogram_pipeline.generation.rows import ImageRow

    pool = pipeline.name("fal")

    @dg.asset(
        key=pipeline.key("generated_images"),
        group_name=pipeline.name("generation"),
        owners=pipeline.owners,
        kinds={"fal", "parquet"},
        code_version=CODE_VERSION,
        metadata=described(pipeline, ImageRow, image_sources(), "images"),
        partitions_def=pipeline.batches,
        deps=[pipeline.key("generation_requests")],
        retry_policy=CRASHES,
        pool=pool,
        io_manager_key=pipeline.name("frames"),
    )
    @pipeline.with_own_resources
    @retried_after_crashes
    @holding
    def generated_images(
        context: dg.AssetExecutionContext,
        *,
        config: ImagesConfig,
        store: StoreResource,
        marks: MarksResource,
        likeness: LikenessResource,
        fal: FalResource,
        budget: BudgetResource,
        progress: dg.ResourceParam[Progress],
    ) -> dg.MaterializeResult[None]:
        """The batch's pictures with their metadata, and an outcome for every row. Nothing is paid for twice."""
        from ideogram_pipeline.generation import files
        from ideogram_pipeline.generation.books import RunFacts
        from ideogram_pipeline.generation.edges import edge_rows
        from ideogram_pipeline.generation.engine import Engine
        from ideogram_pipeline.generation.ledger import Ledger
        from ideogram_pipeline.generation.outcomes import NotReached, Reused, Unknown, caught_up
        from ideogram_pipeline.generation.records import image_rows, outcome_rows
        from ideogram_pipeline.telemetry import span

        opened = store.open()
        marking, faces = marks.open(), likeness.open()
        batch = context.partition_key
        run_id = context.run.run_id
        root_run_id = context.run.root_run_id or run_id
        plan = files.read_plan(opened, batch, root_run_id=root_run_id)
        ledger = Ledger(opened, batch)
        context.log.info(_ceiling(context.instance, pool, fal.max_in_flight))
        progress.begin(batch, plan.tally.images_at_work)
        facts = RunFacts(run_id=run_id, backend=fal.backend, code_version=__version__)

        with fal.connect(opened) as make_client:

            async def work(interruption: Interruption) -> "tuple[Outcomes, float]":
                async with make_client() as client:
                    engine = Engine(
                        client,
                        opened,
                        ledger,
                        run=facts,
                        max_in_flight=fal.max_in_flight,
                        max_wait_s=fal.max_wait_s,
                        inline_bytes=fal.inline_references,
                        thumbnails=store.thumbnails,
                        budget=budget.open(opened, spending_run(context.run), config.max_spend_usd),
                        observer=progress,
                        webhook_url=fal.webhook_url,
                        marking=marking,
                        faces=faces,
                    )
                    with (
                        logs.of_run(run_id),
                        span("generate", batch=batch, run_id=run_id, rows=len(plan.requests)),
                    ):
                        async with interruption.before_leaving(engine.cancel_queued):
                            return await engine.run(plan.requests), float(engine.spent_usd)

            outcomes, spent_usd = run_in_thread(work, is_terminated=lambda: terminated(context))
        memory.give_back()

        ledger.look_again([outcome.request.fingerprint for outcome in outcomes.of_kind(NotReached, Unknown)])
        reused = 0

        def ended() -> "Iterator[Outcome]":
            nonlocal reused
            for outcome in outcomes:
                now = caught_up(outcome, ledger.entries)
                reused += isinstance(now, Reused)
                yield now

        results = files.write_results(
            opened,
            batch,
            image_rows(plan, ledger.entries),
            outcome_rows(plan, ended(), ledger.entries),
        )
        files.write_edges(opened, batch, edge_rows(ledger.entries))
        ledger.keep_copy()
        memory.give_back()
        without = (row for row in results.outcomes if row.state != "generated")
        reasons = [
            logs.shown(f"{row.prompt_id}: {row.state}: {row.reason}") for row in islice(without, REASONS)
        ]
        for reason in reasons:
            context.log.warning(reason)
        preview = metadata.preview(opened, results.images, thumbnails=store.thumbnails)
        context.log.info(f"requests to the store: {metadata.requests(opened)}")
        return dg.MaterializeResult(
            metadata={
                "preview": preview,
                "reasons": dg.MetadataValue.md(
                    "\n".join(f"- {reason}" for reason in reasons) or "every row is there"
                ),
                **metadata.of_pictures(results.outcomes, results.images, reused=reused),
                "spent_usd": spent_usd,
                "store_requests": opened.requests.total(),
                "store_requests_per_image": round(opened.requests.total() / max(len(results.images), 1), 2),
                "backend": fal.backend,
                "path": dg.MetadataValue.path(opened.where(f"images/batch={batch}")),
                "outcomes": dg.MetadataValue.path(opened.where(files.outcomes_path(batch))),
            },
            data_version=dg.DataVersion(results.digest),
        )

    return [generated_images]


def spending_run(run: dg.DagsterRun) -> str:
    """Return the id under which a run spends: its command's, else that of the run it repeats, or its own."""
    return run.tags.get(RUN_TAG) or run.root_run_id or run.run_id


def _ceiling(instance: dg.DagsterInstance, pool: str, in_flight: int) -> str:
    """Say how many requests fal may have from us at a time: a pool counts runs, and each has many in flight."""
    limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    limit = limits.get(pool, instance.get_concurrency_config().pool_config.default_pool_limit)
    if limit is None:
        return f"{in_flight} requests in flight in each run; the pool {pool!r} has no limit on runs"
    return (
        f"pool {pool!r}: {limit} runs x {in_flight} requests in flight = at most {limit * in_flight} with fal"
    )

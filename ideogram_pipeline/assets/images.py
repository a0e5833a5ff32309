"""The pictures of a batch: the one stage that pays."""

import dagster as dg
from pydantic import Field

from ideogram_pipeline import __version__
from ideogram_pipeline.assets import metadata
from ideogram_pipeline.assets.bridge import Interruption, run_in_thread
from ideogram_pipeline.assets.columns import described, image_sources
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
from ideogram_pipeline.texts import shown

REASONS = 20
"""So many reasons for which rows have no picture stand in the log and the metadata."""
RUN_TAG = "ideogram_pipeline/run"
"""Names the command that several Dagster runs belong to, so that they share one budget."""
CODE_VERSION = "5"
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
        from ideogram_pipeline.generation.batch import WorkedBatch, WorkOptions, work
        from ideogram_pipeline.generation.books import RunFacts
        from ideogram_pipeline.generation.reasons import without_pictures

        opened = store.open()
        marking, faces = marks.open(), likeness.open()
        batch = context.partition_key
        run_id = context.run.run_id
        plan = files.read_plan(opened, batch, root_run_id=context.run.root_run_id or run_id)
        context.log.info(_ceiling(context.instance, pool, fal.max_in_flight))
        progress.begin(batch, plan.tally.images_at_work)
        options = WorkOptions(
            run=RunFacts(run_id=run_id, backend=fal.backend, code_version=__version__),
            budget=budget.open(opened, spending_run(context.run), config.max_spend_usd),
            observer=progress,
            marking=marking,
            max_in_flight=fal.max_in_flight,
            max_wait_s=fal.max_wait_s,
            inline_bytes=fal.inline_references,
            thumbnails=store.thumbnails,
            faces=faces,
            webhook_url=fal.webhook_url,
        )
        with fal.connect(opened) as make_client:

            async def pay(interruption: Interruption) -> WorkedBatch:
                leaving = interruption.before_leaving
                return await work(opened, plan, make_client, options, leaving=leaving)

            worked = run_in_thread(pay, is_terminated=lambda: terminated(context))
        own = worked.own
        why = without_pictures(own.outcomes)
        for reason in why[:REASONS]:
            context.log.warning(shown(reason))
        preview = metadata.preview(opened, own.images, thumbnails=store.thumbnails)
        context.log.info(f"requests to the store: {metadata.requests(opened)}")
        return dg.MaterializeResult(
            metadata={
                "preview": preview,
                **metadata.reasons(why[:REASONS]),
                "waiting": shown(worked.waiting.advice) if worked.waiting else metadata.NOTHING,
                **metadata.of_pictures(own.outcomes, own.images, reused=worked.reused),
                "spent_usd": worked.spent_usd,
                "store_requests": opened.requests.total(),
                "store_requests_per_image": round(opened.requests.total() / max(len(own.images), 1), 2),
                "backend": fal.backend,
                "path": dg.MetadataValue.path(opened.where(f"images/batch={batch}")),
                "outcomes": dg.MetadataValue.path(opened.where(files.outcomes_path(batch))),
            },
            data_version=dg.DataVersion(worked.results.digest),
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

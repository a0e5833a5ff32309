"""The jobs of a pipeline: what is run together, in the order of a working day."""

from typing import TYPE_CHECKING

import dagster as dg

from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import FalResource, StoreResource
from ideogram_pipeline.texts import shown
from ideogram_pipeline.threads import result_of

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

    Job = UnresolvedAssetJobDefinition | dg.JobDefinition


def define(pipeline: Pipeline, executor: dg.ExecutorDefinition) -> "list[Job]":
    """Return the jobs, whose steps the `executor` executes."""

    def job(name: str, assets: tuple[str, ...], description: str) -> "UnresolvedAssetJobDefinition":
        return dg.define_asset_job(
            pipeline.name(name),
            dg.AssetSelection.assets(*map(pipeline.key, assets)),
            description=description,
            executor_def=executor,
        )

    return [
        job(
            "refresh_tables",
            pipeline.tables,
            "Read the tables; their batches become partitions.",
        ),
        job(
            "generate_batch",
            ("generation_requests", "generated_images"),
            "Plan one batch and pay for what is new in it.",
        ),
        job("publish", ("image_catalog", "gallery"), "Bring catalog and gallery up to date."),
        _reconcile_unknown(pipeline, executor),
    ]


def _reconcile_unknown(pipeline: Pipeline, executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    name = pipeline.name("reconcile_unknown")
    description = (
        "Look at fal for submits that were never answered. What is found, the batch's next run fetches."
    )

    @dg.op(name=f"{name}_op", description=description)
    @pipeline.with_own_resources
    def look(context: dg.OpExecutionContext, store: StoreResource, fal: FalResource) -> None:
        from ideogram_pipeline.generation.ledger import Ledger, batches
        from ideogram_pipeline.generation.reconcile import Unanswered, reconcile_batch
        from ideogram_pipeline.generation.runs import working

        opened = store.open()
        with fal.connect(opened) as make_client:

            async def work() -> list[Unanswered]:
                found: list[Unanswered] = []
                async with make_client() as client:
                    for batch in batches(opened):
                        with working(opened, context.run_id, batch):
                            found += await reconcile_batch(client, opened, Ledger(opened, batch))
                return found

            results = result_of(work())
        for one in results:
            context.log.info(shown(f"{one.batch} {one.prompt_id}: {one.found or one.reason}"))
        found = sum(one.found is not None for one in results)
        context.add_output_metadata({"found": found, "unknown": len(results) - found})

    @dg.job(name=name, description=description, executor_def=executor)
    def reconcile_unknown() -> None:
        look()

    return reconcile_unknown

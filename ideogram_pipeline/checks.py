"""Asset checks: what a batch's rows say about its money."""

import warnings

import dagster as dg

from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource


def define(pipeline: Pipeline) -> list[dg.AssetChecksDefinition]:
    """Return the checks of a pipeline's assets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitioned checks are new in Dagster 1.13

        @dg.asset_check(asset=pipeline.key("generated_images"), partitions_def=pipeline.batches)
        @pipeline.with_own_resources
        def no_unanswered_submits(
            context: dg.AssetCheckExecutionContext, store: StoreResource
        ) -> dg.AssetCheckResult:
            """No row is `unknown`: every submit was answered, so that what the batch cost is known."""
            from ideogram_pipeline.generation import files

            outcomes = files.read_outcomes(store.open(), context.partition_key)
            unknown = [row for row in outcomes if row.state == "unknown"]
            reasons = "\n".join(f"- {row.prompt_id}: {row.reason}" for row in unknown[:20])
            return dg.AssetCheckResult(
                passed=not unknown,
                severity=dg.AssetCheckSeverity.WARN,
                description="`ideogram-pipeline reconcile` looks for them at fal." if unknown else None,
                metadata={"unknown": len(unknown), "rows": dg.MetadataValue.md(reasons or "none")},
            )

    return [no_unanswered_submits]

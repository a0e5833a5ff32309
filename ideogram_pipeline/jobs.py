"""The jobs of a pipeline: what is run together, in the order of a working day."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from ideogram_pipeline.pipeline import Pipeline

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def define(pipeline: Pipeline) -> list[UnresolvedAssetJobDefinition]:
    """Return the jobs. Their steps share a process: starting another costs more than most of them do."""

    def job(name: str, assets: tuple[str, ...], description: str) -> UnresolvedAssetJobDefinition:
        return dg.define_asset_job(
            pipeline.name(name),
            dg.AssetSelection.assets(*map(pipeline.key, assets)),
            description=description,
            executor_def=dg.in_process_executor,
        )

    return [
        job(
            "refresh_tables",
            ("prompts", "references"),
            "Read both tables; their batches become partitions.",
        ),
        job(
            "generate_batch",
            ("generation_requests", "generated_images"),
            "Plan one batch and pay for what is new in it.",
        ),
        job("publish", ("image_catalog", "gallery"), "Bring catalog and gallery up to date."),
    ]

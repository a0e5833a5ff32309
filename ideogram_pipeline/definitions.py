"""The code location that Dagster loads: a table of contents of all that there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ideogram_pipeline import automation, checks, jobs
from ideogram_pipeline.assets import catalog, gallery, images, requests, tables
from ideogram_pipeline.executors import executor
from ideogram_pipeline.frames import FramesIOManager
from ideogram_pipeline.logs import configure as configure_logs
from ideogram_pipeline.memory import tune_heaps
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import build_resources
from ideogram_pipeline.settings import Settings

STAGES = (tables, requests, images, catalog, gallery)
"""The modules that define assets, in the order of the graph."""


def build_definitions(settings: Settings, *, overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Assemble the pipeline that the settings describe; `overrides` replaces resources by name.

    With a `key_prefix` it is a guest in its code location: nothing of it is named as anything of another pipeline, and
    assets that are run by themselves, without a job, use the location's executor and not one of ours.
    """
    configure_logs(settings.log_format)
    tune_heaps()
    pipeline = Pipeline.of(settings)
    resources = {**build_resources(settings), **(overrides or {})}
    resources.setdefault("frames", FramesIOManager(store=resources["store"]))
    schedules = automation.schedules(pipeline, settings)  # says which setting a malformed time stands in
    assets = [asset for stage in STAGES for asset in stage.define(pipeline)]
    chosen = executor(settings)
    own_jobs = jobs.define(pipeline, chosen)
    return dg.Definitions(
        assets=automation.conditioned(pipeline, settings, assets),
        asset_checks=checks.define(pipeline),
        jobs=own_jobs,
        sensors=automation.sensors(pipeline, settings, own_jobs),
        schedules=schedules,
        resources={pipeline.name(name): resource for name, resource in resources.items()},
        executor=None if pipeline.prefix else chosen,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The project as the environment configures it."""
    return build_definitions(Settings.from_environment())

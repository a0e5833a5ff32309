"""The code location that Dagster loads: a table of contents of the assets, checks, jobs and resources there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from ideogram_pipeline import checks, jobs
from ideogram_pipeline.assets import catalog, gallery, images, requests, tables
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import build_resources
from ideogram_pipeline.settings import Settings

STAGES = (tables, requests, images, catalog, gallery)
"""The modules that define assets, in the order of the graph."""


def build_definitions(settings: Settings, *, overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Assemble the pipeline that the settings describe; `overrides` replaces resources by name.

    Without a `key_prefix` it is the code location's own: its resources stand on Dagster's page of resources, and its
    executor is everyone's. With one it is a guest: its resources are bound to its own assets and checks, so that any
    number of pipelines, and whatever else is there, can be merged with `dg.Definitions.merge`.
    """
    pipeline = Pipeline.of(settings)
    resources = {**build_resources(settings), **(overrides or {})}
    assets = [asset for stage in STAGES for asset in stage.define(pipeline)]
    asset_checks = checks.define(pipeline)
    if pipeline.prefix:
        return dg.Definitions(
            assets=dg.with_resources(assets, resources),
            asset_checks=dg.with_resources(asset_checks, resources),
            jobs=jobs.define(pipeline),
        )
    return dg.Definitions(
        assets=assets,
        asset_checks=asset_checks,
        jobs=jobs.define(pipeline),
        resources=resources,
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The project as the environment configures it."""
    return build_definitions(Settings.from_environment())

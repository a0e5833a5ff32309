"""The code location that Dagster loads: which assets, jobs and resources there are."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import dagster as dg

from ideogram_pipeline.assets.catalog import image_catalog
from ideogram_pipeline.assets.gallery import gallery
from ideogram_pipeline.assets.images import generated_images
from ideogram_pipeline.assets.requests import generation_requests
from ideogram_pipeline.assets.tables import prompts, references
from ideogram_pipeline.checks import no_unanswered_submits
from ideogram_pipeline.resources import (
    BudgetResource,
    FalResource,
    LogProgress,
    StoreResource,
    TablesResource,
)
from ideogram_pipeline.settings import Settings

refresh_tables = dg.define_asset_job(
    "refresh_tables", [prompts, references], description="Read both tables; their batches become partitions."
)
generate_batch = dg.define_asset_job(
    "generate_batch",
    [generation_requests, generated_images],
    description="Plan one batch and pay for what is new in it.",
)
publish = dg.define_asset_job(
    "publish", [image_catalog, gallery], description="Bring catalog and gallery up to date."
)


def build_resources(settings: Settings) -> dict[str, Any]:
    """Configure the resources, by the names under which assets ask for them."""
    return {
        "store": StoreResource(url=settings.store, backend=settings.backend, thumbnails=settings.thumbnails),
        "tables": TablesResource(prompts=settings.prompts, references=settings.references),
        "fal": FalResource(
            backend=settings.backend,
            key=dg.EnvVar("FAL_KEY") if settings.fal_key else None,
            queue_url=settings.fal_queue_url,
            rest_url=settings.fal_rest_url,
            api_url=settings.fal_api_url,
            max_in_flight=settings.max_in_flight,
            inline_references=settings.inline_references,
        ),
        "budget": BudgetResource(
            per_run_usd=_number(settings.budget_usd),
            per_day_usd=_number(settings.budget_usd_per_day),
            allow_unknown_prices=settings.allow_unknown_prices,
        ),
        "progress": LogProgress(),
    }


def build_definitions(settings: Settings, *, overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Assemble the project for given settings; `overrides` replaces resources by name."""
    return dg.Definitions(
        assets=[prompts, references, generation_requests, generated_images, image_catalog, gallery],
        asset_checks=[no_unanswered_submits],
        jobs=[refresh_tables, generate_batch, publish],
        resources={**build_resources(settings), **(overrides or {})},
        executor=dg.in_process_executor,
    )


def _number(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)


@dg.definitions
def defs() -> dg.Definitions:
    """The project as the environment configures it."""
    return build_definitions(Settings.from_environment())

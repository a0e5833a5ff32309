"""The component: a pipeline as a `defs.yaml` describes it, for projects that have other things as well."""

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.settings import Backend, Settings
from ideogram_pipeline.tables.prompts import check_defaults


class GenerationComponent(dg.Component, dg.Model, dg.Resolvable):
    """Pictures for a table of prompts, through fal's Ideogram V3 endpoints; every picture is paid for once.

    What is left out is as the environment (`IDEOGRAM_...`, `FAL_...`) says. The key stands only there: `FAL_KEY`.
    Relative paths start at the project's root.
    """

    prompts: str = Field(description="Prompts table: CSV, JSONL, Parquet or Excel; a path or URL.")
    references: str = Field(description="References table, in the same formats.")
    store: str = Field(
        description="Folder or URL (s3://, az://; gs:// is untried) that keeps everything; each pipeline has its own."
    )
    key_prefix: str = Field(
        default="", description="Goes before all names; needed where a code location has several pipelines."
    )
    backend: Backend | None = Field(
        default=None, description="`fal`, which costs money, or `sandbox`, a local stand-in that draws."
    )
    defaults: dict[str, Any] = Field(
        default={},
        description="Values for absent or blank cells of the prompts table, such as `rendering_speed: TURBO`.",
    )
    budget_usd: float | None = Field(default=None, gt=0, description="Dollars that one run may spend.")
    budget_usd_per_day: float | None = Field(
        default=None, gt=0, description="Dollars that all runs on the store may spend in one UTC day."
    )
    max_in_flight: int | None = Field(
        default=None, ge=1, le=1000, description="Requests with fal at a time, per run."
    )
    max_failed_fraction: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Share of a batch's rows without a picture above which a run fails.",
    )
    owners: list[str] | None = Field(
        default=None, description="Who answers for the assets: e-mail addresses and `team:...`."
    )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the pipeline's definitions.

        Raises:
            ConfigurationError: a value is malformed or contradicts another.
        """
        check_defaults(self.defaults)
        given = {name: value for name, value in self if value is not None}
        for name in ("prompts", "references", "store"):
            given[name] = _from(context.project_root, given[name])
        for name in ("budget_usd", "budget_usd_per_day"):
            if name in given:
                given[name] = str(
                    given[name]
                )  # the decimal that was written, not its nearest binary fraction
        return build_definitions(Settings.from_environment(**given))


def _from(root: Path, place: str) -> str:
    return place if "://" in place else str(root / Path(place).expanduser())

"""The main job from start to end, through Dagster: the same assets, jobs and events as in its UI."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
from dagster._core.errors import DagsterAssetCheckFailedError
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.assets.images import RUN_TAG
from ideogram_pipeline.assets.retries import Interrupted, Unmendable
from ideogram_pipeline.assets.tables import READING, READINGS_TAG
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.errors import ConfigurationError, PipelineError, StoreError
from ideogram_pipeline.generation import files as stored
from ideogram_pipeline.generation import lost_ledgers, readings
from ideogram_pipeline.generation.choice import Choice
from ideogram_pipeline.generation.planner import Plan
from ideogram_pipeline.memory import lasting
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import Progress, build_resources, fal_resource
from ideogram_pipeline.settings import Settings

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class RunSummary(BaseModel):
    """What a run did, over all its batches."""

    model_config = ConfigDict(frozen=True)

    rows: int = Field(description="Rows of the prompts table.")
    generated: int = Field(description="Rows paid for and stored in this run.")
    reused: int = Field(description="Rows whose pictures were there.")
    rejected: int = Field(description="Rows that can't be sent.")
    refused: int = Field(description="Rows that the model refused.")
    failed: int = Field(description="Rows without a picture for another reason.")
    unknown: int = Field(description="Rows whose submit was never answered.")
    not_reached: int = Field(description="Rows the run stopped before.")
    images: int = Field(description="Pictures in the store for these rows.")
    spent_usd: float = Field(description="Dollars settled in this run.")
    estimated_usd: float = Field(description="Dollars that the plan expected.")
    seconds: float = Field(description="Wall time.")
    store: str = Field(description="Where everything lies.")
    reasons: tuple[str, ...] = Field(
        default=(), exclude=True, description="Why the first rows have no picture."
    )
    waiting: tuple[str, ...] = Field(
        default=(), exclude=True, description="The request of each batch that has been with fal the longest."
    )

    @property
    def complete(self) -> bool:
        """Whether every row has its pictures."""
        return self.generated + self.reused == self.rows


def run(
    settings: Settings,
    batches: Sequence[str],
    *,
    progress: Progress,
    expect: Callable[[Mapping[str, int]], None],
    choice: Choice | None = None,
    max_spend_usd: float | None = None,
) -> RunSummary:
    """Refresh the tables, run the batches one after the other (all of them if none is named), publish.

    `choice` is what is asked of each batch, `max_spend_usd` what all of them together may spend. `expect` is told how
    many pictures the rows of each batch ask for, once that is known.

    Raises:
        PipelineError: a table, setting or the store is at fault, or a ledger lacks what was paid for; nothing more is
            submitted.
    """
    started = time.monotonic()
    with lasting():
        store = build_resources(settings)["store"].open()
        fal_resource(settings).check()
        instance = instance_of(settings)
        definitions = build_definitions(settings, overrides={"progress": progress})
    command = uuid4().hex
    pipeline = Pipeline.of(settings)

    def execute(
        job: str, batch: str | None = None, config: Mapping[str, Any] | None = None, **tags: str
    ) -> _Recorded:
        run_id = str(uuid4())
        try:
            with _failures(instance.root_directory):
                definitions.resolve_job_def(pipeline.name(job)).execute_in_process(
                    run_id=run_id,
                    instance=instance,
                    partition_key=batch,
                    run_config={**_QUIET, "ops": config or {}},
                    tags={RUN_TAG: command, **tags},
                )
        except DagsterAssetCheckFailedError:
            pass  # what was made before is recorded
        except Interrupted:
            raise KeyboardInterrupt from None
        except Unmendable as failure:
            raise failure.__cause__ or failure from None
        with _failures(instance.root_directory):
            return _recorded(instance, run_id)

    with lasting():
        refreshed = execute("refresh_tables")
    read = " ".join(
        str(refreshed.materialized[pipeline.key(table)].metadata[READING].value)
        for table in ("prompts", "references")
    )
    in_table = readings.tables_named(store, read).prompts.batches
    images = {batch: short.images for batch, short in in_table.items()}
    chosen = list(dict.fromkeys(batches)) or list(images)
    for batch in chosen:
        if batch not in images:
            raise ConfigurationError(
                f"No row of {settings.prompts} is in the batch {batch!r}; it has {', '.join(images) or 'none'}."
            )
    if lost := lost_ledgers.missing_of(store, chosen):
        raise ConfigurationError(f"{lost[0]} {lost_ledgers.LOST_LEDGER} Nothing was submitted.")
    expect({batch: images[batch] for batch in chosen})
    totals: dict[str, float] = {}
    reasons: list[str] = []
    waiting: list[str] = []
    config = _config(definitions, pipeline, choice or Choice(), max_spend_usd)
    for batch in chosen:
        result = execute("generate_batch", batch, config, **{READINGS_TAG: read})
        if pipeline.key("generated_images") not in result.materialized:
            plan = stored.read_plan(store, batch, root_run_id=result.run_id)
            for name, count in _stopped(plan).items():
                totals[name] = totals.get(name, 0) + count
            reasons += [f"{batch}: {verdict}" for verdict in _failed_checks(instance, result.run_id)]
            continue
        reasons += _lines(result, pipeline.key("generated_images"), "reasons")
        waiting += _lines(result, pipeline.key("generated_images"), "waiting")
        for asset in ("generation_requests", "generated_images"):
            for name, value in _numbers(result, pipeline.key(asset)).items():
                if asset == "generated_images" or name == "estimated_usd":
                    totals[name] = totals.get(name, 0) + value
    execute("publish")
    counts = {
        name: totals.get(name, 0)
        for name, field in RunSummary.model_fields.items()
        if field.annotation in (int, float) and name != "seconds"
    }
    return RunSummary.model_validate(
        {
            **counts,
            "seconds": round(time.monotonic() - started, 3),
            "store": settings.store,
            "reasons": reasons,
            "waiting": waiting,
        }
    )


def _stopped(plan: Plan) -> dict[str, float]:
    """Return the totals of a batch that a check stopped before anything was paid."""
    there, rejected = plan.count("reused"), plan.count("rejected")
    return {
        "rows": len(plan.rows),
        "reused": there,
        "rejected": rejected,
        "not_reached": len(plan.rows) - there - rejected,
        "images": plan.tally.images_reused,
        "estimated_usd": plan.cost_usd,
    }


def _failed_checks(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    """Return what the checks that stopped a run say."""
    records = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    evaluations = [
        record.dagster_event.asset_check_evaluation_data for record in records if record.dagster_event
    ]
    return [
        f"{found.check_name}: {found.description}"
        for found in evaluations
        if found.blocking and not found.passed and found.severity is dg.AssetCheckSeverity.ERROR
    ]


def _config(
    definitions: dg.Definitions, pipeline: Pipeline, choice: Choice, max_spend_usd: float | None
) -> dict[str, Any]:
    """Return what Dagster's launchpad would say for the job that generates a batch."""
    given = {
        "generation_requests": {**asdict(choice), "prompt_ids": [*choice.prompt_ids]},
        "generated_images": {"max_spend_usd": max_spend_usd},
    }
    ops = {asset: definitions.resolve_assets_def(pipeline.key(asset)).op.name for asset in given}
    return {ops[asset]: {"config": config} for asset, config in given.items()}


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What a run recorded of each asset, whether it failed after that or not."""

    run_id: str
    materialized: Mapping[dg.AssetKey, dg.AssetMaterialization]


def _recorded(instance: dg.DagsterInstance, run_id: str) -> _Recorded:
    records = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    found = [record.asset_materialization for record in records]
    return _Recorded(run_id, {one.asset_key: one for one in found if one})


def _numbers(result: _Recorded, asset: dg.AssetKey) -> dict[str, float]:
    return {
        name: entry.value
        for name, entry in result.materialized[asset].metadata.items()
        if isinstance(entry, dg.IntMetadataValue | dg.FloatMetadataValue) and entry.value is not None
    }


def _lines(result: _Recorded, asset: dg.AssetKey, name: str) -> list[str]:
    """Return the lines of a list in an asset's metadata."""
    text = str(result.materialized[asset].metadata[name].value)
    return [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")]


def instance_of(settings: Settings) -> dg.DagsterInstance:
    """Return Dagster's instance: the one `DAGSTER_HOME` names, else one of the store's own."""
    home = Path(os.environ.get("DAGSTER_HOME") or dagster_home(settings)).expanduser().resolve()
    try:
        home.mkdir(parents=True, exist_ok=True)
        config = home / "dagster.yaml"
        if not config.exists():
            config.write_bytes(files("ideogram_pipeline").joinpath("dagster.yaml").read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"DAGSTER_HOME can't be {str(home)!r}: {error.strerror}. Set it to a folder."
        ) from None
    os.environ["DAGSTER_HOME"] = str(home)
    # two instances that make their tables at once are in each other's way
    with _failures(str(home)), FileLock(home / ".starting.lock"):
        return dg.DagsterInstance.get()


@contextmanager
def _failures(home: str) -> Iterator[None]:
    """Say in one line that a disk failed under Dagster's records; what our store said before it comes first."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        earlier = error.__context__
        while earlier:
            if isinstance(earlier, PipelineError):
                raise earlier from None
            earlier = earlier.__context__
        line = str(error).split("\n", 1)[0]
        raise StoreError(
            f"Dagster's records in {home!r}, or the store, can't be read or written: {line}. Mend the disk and run "
            "again: what was submitted is in the ledger."
        ) from error


def dagster_home(settings: Settings) -> Path:
    """Return where Dagster keeps its runs if `DAGSTER_HOME` doesn't say: in the store, or beside it if it is remote."""
    root = Path("var") if "://" in settings.store else Path(settings.store).expanduser()
    return (root / "dagster").resolve()

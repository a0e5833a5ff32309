"""What starts runs by itself: sensors, schedules and conditions. All are off unless the settings switch one way on.

Two sensors share the work. One sees that a table was changed and has it read again, in a run, which may open pictures
for as long as it takes. The other sees what the checked tables in the store ask for that was not worked, and requests a
run for each batch: so a batch is never run on tables that are half read. A clock can take the first one's place, and
declarative automation the place of both.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import BaseModel, ValidationError

from ideogram_pipeline.assets.tables import VERSION
from ideogram_pipeline.errors import ConfigurationError, DamagedFile, PipelineError
from ideogram_pipeline.pipeline import Pipeline
from ideogram_pipeline.resources import StoreResource, TablesResource
from ideogram_pipeline.settings import Automation, Settings

if TYPE_CHECKING:
    from ideogram_pipeline.generation.changes import Step
    from ideogram_pipeline.generation.ledger import Ledger
    from ideogram_pipeline.generation.planner import Plan
    from ideogram_pipeline.generation.readings import Tables
    from ideogram_pipeline.jobs import Job

RUNS_PER_TICK = 20
"""Batches that a tick requests at most; the next ticks request the others."""
LOOK_FOR_S = 15.0
"""After so long a tick leaves the other batches to the next: Dagster gives it 60 s."""
EVERY_S = 30
"""How often the sensors look."""
_CHUNK = 500


class Cursor(BaseModel):
    """What `new_batches` remembers from tick to tick."""

    tables: str = ""
    """The state in which the checked tables in the store were last read."""
    left: dict[str, str] = {}
    """The digests of the batches in them that are still to be looked at."""
    seen: dict[str, str] = {}
    """The digest of every batch that was looked at."""

    @classmethod
    def of(cls, written: str | None) -> "Cursor":
        """Read a cursor; one that can't be read counts as none, which costs time and no money."""
        try:
            return cls.model_validate_json(written or "{}")
        except ValidationError:
            return cls()


def sensors(pipeline: Pipeline, settings: Settings, jobs: "Sequence[Job]") -> list[dg.SensorDefinition]:
    """Return the sensors of a pipeline, which request runs of its `jobs`."""
    return [
        _new_tables(pipeline, settings),
        _new_batches(pipeline, settings, jobs),
        _conditions(pipeline, settings),
    ]


def schedules(pipeline: Pipeline, settings: Settings) -> list[dg.ScheduleDefinition]:
    """Return the schedules of a pipeline.

    Raises:
        ConfigurationError: a time is not written as cron writes it.
    """

    def schedule(
        name: str, job: str, setting: str, on: Sequence[Automation], text: str
    ) -> dg.ScheduleDefinition:
        cron = str(getattr(settings, setting))
        try:
            return dg.ScheduleDefinition(
                name=pipeline.name(name),
                job_name=pipeline.name(job),
                cron_schedule=cron,
                execution_timezone=settings.schedule_timezone,
                default_status=dg.DefaultScheduleStatus[_status(settings, on)],
                description=f"{text} {_switch(on)}",
            )
        except dg.DagsterInvalidDefinitionError:
            raise ConfigurationError(
                f"IDEOGRAM_{setting.upper()}: {cron!r} is no cron schedule; write five fields, such as '0 6 * * *' for "
                "six o'clock every day."
            ) from None

    return [
        schedule(
            "scheduled_refresh",
            "refresh_tables",
            "schedule_cron",
            ("schedule",),
            "Reads the tables by the clock; the sensor `new_batches` then runs what is stale.",
        ),
        schedule(
            "scheduled_reconcile",
            "reconcile_unknown",
            "reconcile_cron",
            ("sensor", "schedule", "conditions"),
            "Looks at fal for submits that were never answered. Submits nothing.",
        ),
    ]


def conditioned(
    pipeline: Pipeline, settings: Settings, assets: Sequence[dg.AssetsDefinition]
) -> list[dg.AssetsDefinition]:
    """Return the assets with the conditions under which the sensor `conditions` runs them; no other one looks at them.

    A batch is run when it is added, and once: one that failed, or whose rows were changed, waits for a person. What was
    missing when the sensor was switched on waits as well, so that switching it on costs nothing.
    """
    tables = dg.AutomationCondition.on_cron(settings.schedule_cron, settings.schedule_timezone)
    batches = dg.AutomationCondition.on_missing()
    # eager() would wait until no batch at all is missing
    pages = (
        dg.AutomationCondition.eager()
        .without(~dg.AutomationCondition.any_deps_missing())
        .with_label("eager_while_batches_are_missing")
    )
    conditions = {
        **dict.fromkeys(pipeline.tables, tables),
        "generation_requests": batches,
        "generated_images": batches,
        "image_catalog": pages,
        "gallery": pages,
    }
    by_key = {pipeline.key(name): condition for name, condition in conditions.items()}
    return list(
        dg.map_asset_specs(
            lambda spec: spec.replace_attributes(automation_condition=by_key[spec.key]), list(assets)
        )
    )


def _conditions(pipeline: Pipeline, settings: Settings) -> dg.SensorDefinition:
    names = (*pipeline.tables, "generation_requests", "generated_images", "image_catalog", "gallery")
    return dg.AutomationConditionSensorDefinition(
        pipeline.name("conditions"),
        target=dg.AssetSelection.assets(*map(pipeline.key, names)),
        default_status=dg.DefaultSensorStatus[_status(settings, ("conditions",))],
        minimum_interval_seconds=EVERY_S,
        description="Declarative automation: reads the tables by the clock, runs each batch that was added, and brings "
        f"catalog and gallery up to date. Leave `new_batches` off beside it. {_switch(('conditions',))}",
    )


def _new_tables(pipeline: Pipeline, settings: Settings) -> dg.SensorDefinition:
    @dg.sensor(
        name=pipeline.name("new_tables"),
        job_name=pipeline.name("refresh_tables"),
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus[_status(settings, ("sensor",))],
        description="Has the tables read again when one of them, or a picture named in them, was changed. "
        + _switch(("sensor",)),
    )
    @pipeline.with_own_resources
    def new_tables(
        context: dg.SensorEvaluationContext, tables: TablesResource
    ) -> dg.RunRequest | dg.SkipReason:
        from ideogram_pipeline.tables.prompts import read_prompts
        from ideogram_pipeline.tables.versions import prompts_version, references_version

        try:
            now = {
                "prompts": prompts_version(tables.prompts, tables.defaults, tables.extra_columns),
                "references": references_version(tables.references, tables.extra_columns),
            }
            read = {name: _latest(context.instance, pipeline.key(name)) for name in now}
            changed = [name for name in now if read[name].version != now[name]]
            if not changed:
                return dg.SkipReason("Both tables are as they were last read.")
            read_prompts(tables.prompts, tables.defaults, extra_columns=tables.extra_columns)
        except PipelineError as error:
            return dg.SkipReason(f"Nothing is read: {error}")
        # A table that is changed back is read again; one whose reading failed waits for the next change, or a person.
        return dg.RunRequest(
            run_key=" ".join(f"{name}:{read[name].storage_id}:{now[name][:16]}" for name in changed)
        )

    return new_tables


def _new_batches(pipeline: Pipeline, settings: Settings, jobs: "Sequence[Job]") -> dg.SensorDefinition:
    refresh, generate, publish = map(pipeline.name, ("refresh_tables", "generate_batch", "publish"))
    on: Sequence[Automation] = ("sensor", "schedule")

    @dg.sensor(
        name=pipeline.name("new_batches"),
        jobs=[job for job in jobs if job.name in (generate, publish)],
        minimum_interval_seconds=EVERY_S,
        default_status=dg.DefaultSensorStatus[_status(settings, on)],
        description=f"Runs each batch that has something to do, once for each content, {RUNS_PER_TICK} a tick; then "
        f"publishes. Never removes a batch. Leave `conditions` off beside it. {_switch(on)}",
    )
    @pipeline.with_own_resources
    def new_batches(
        context: dg.SensorEvaluationContext, store: StoreResource, tables: TablesResource
    ) -> dg.SensorResult | dg.SkipReason:
        from ideogram_pipeline.generation import readings

        instance = context.instance
        if _unfinished(instance, refresh):
            return dg.SkipReason("The tables are being read.")
        cursor = Cursor.of(context.cursor)
        try:
            opened = store.open()
            newest = readings.newest_name(opened, tables.prompts, tables.references)
            if newest == cursor.tables and not cursor.left:
                return _publish(pipeline, instance, generate, publish)
            read = readings.tables_named(opened, newest)
            digests = cursor.left if newest == cursor.tables else _digests(read)
            step = _look(read, digests, cursor.seen)
        except PipelineError as error:
            return dg.SkipReason(f"Nothing is looked at: {error}")
        known = set(instance.get_dynamic_partitions(pipeline.name("ideogram_batches")))
        new = [batch for batch in digests if batch not in known]
        return dg.SensorResult(
            run_requests=[
                dg.RunRequest(
                    run_key=f"{batch}:{digests[batch]}:{newest}", job_name=generate, partition_key=batch
                )
                for batch in step.to_run
            ],
            dynamic_partitions_requests=[
                pipeline.batches.build_add_request(new[start : start + _CHUNK])
                for start in range(0, len(new), _CHUNK)
            ],
            cursor=Cursor(tables=newest, left=dict(step.left), seen=dict(step.seen)).model_dump_json(),
        )

    return new_batches


def _digests(read: "Tables") -> dict[str, str]:
    """Return the digest of every batch of the checked tables."""
    from ideogram_pipeline.generation.changes import batch_digests

    batches = read.prompts.batches
    named = {name for short in batches.values() for name in short.named}
    return batch_digests(batches, read.read_references(named))


def _look(read: "Tables", digests: Mapping[str, str], seen: Mapping[str, str]) -> "Step":
    """Look at the batches whose content is not what was seen, as long as a tick may last."""
    from ideogram_pipeline.generation import files
    from ideogram_pipeline.generation.changes import look
    from ideogram_pipeline.generation.ledger import Ledger
    from ideogram_pipeline.generation.planner import plan_batch

    until = time.monotonic() + LOOK_FOR_S

    def has_work(batch: str) -> bool:
        rows, rejections = read.read_prompts(batch)
        references = read.read_references(files.named_by(rows))
        ledger = Ledger(read.store, batch)
        plan = plan_batch(batch, rows, rejections, references, ledger.entries)
        return plan.has_work or not _is_recorded(read, plan, ledger)

    return look(
        digests, seen, has_work=has_work, at_most=RUNS_PER_TICK, goes_on=lambda: time.monotonic() < until
    )


def _is_recorded(read: "Tables", plan: "Plan", ledger: "Ledger") -> bool:
    """Return whether the outcomes of a batch are those of just these rows, and of those that other tables have in it.

    A row that was rejected, taken out or changed back costs nothing, and is to be seen all the same.
    """
    from ideogram_pipeline.generation import files
    from ideogram_pipeline.generation.recording import asked_together

    try:
        outcomes = files.read_outcomes(read.store, plan.batch)
    except (FileNotFoundError, DamagedFile):
        return False  # a run writes them anew
    asked = asked_together(read.store, ledger, replace(plan, reading=read.prompts_reading))
    recorded = {(row.prompt_id, row.fingerprint) for row in outcomes}
    return recorded == {(row.prompt_id, row.fingerprint) for row in asked.rows}


def _publish(
    pipeline: Pipeline, instance: dg.DagsterInstance, generate: str, publish: str
) -> dg.SensorResult | dg.SkipReason:
    """Request catalog and gallery once the batches that are being worked have ended."""
    newest = _latest(instance, pipeline.key("generated_images")).storage_id
    if newest <= _latest(instance, pipeline.key("gallery")).storage_id:
        return dg.SkipReason("Every batch was looked at, and everything is published.")
    if _unfinished(instance, generate) or _unfinished(instance, publish):
        return dg.SkipReason("Every batch was looked at; runs are under way.")
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=f"publish:{newest}", job_name=publish)])


@dataclass(frozen=True, slots=True)
class _Materialization:
    storage_id: int = 0
    """Grows from event to event; 0 where there was none."""
    version: str = ""
    """Which state of its file a table's materialization has read."""


def _latest(instance: dg.DagsterInstance, key: dg.AssetKey) -> _Materialization:
    records = instance.fetch_materializations(key, limit=1).records
    if not records or not records[0].asset_materialization:
        return _Materialization()
    version = records[0].asset_materialization.metadata.get(VERSION)
    return _Materialization(records[0].storage_id, str(version.value) if version else "")


def _unfinished(instance: dg.DagsterInstance, job: str) -> bool:
    finished = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    statuses = [status for status in dg.DagsterRunStatus if status not in finished]
    return instance.get_runs_count(dg.RunsFilter(job_name=job, statuses=statuses)) > 0


def _status(settings: Settings, on: Sequence[Automation]) -> str:
    return "RUNNING" if settings.automation in on else "STOPPED"


def _switch(on: Sequence[Automation]) -> str:
    return f"Off unless IDEOGRAM_AUTOMATION is {' or '.join(on)}, or somebody switches it on."

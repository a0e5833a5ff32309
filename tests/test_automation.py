"""What starts runs by itself: what the sensors see, what they request, and what the conditions do."""

from uuid import uuid4

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ideogram_pipeline import automation
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation.changes import look
from ideogram_pipeline.generation.runs import BeingErased, erasing
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

pytestmark = pytest.mark.slow

DIGESTS = st.dictionaries(st.text("abc", min_size=1, max_size=2), st.sampled_from("xyz"))


class Project:
    """Two batches on an instance of its own, whose sensors tick when they are told to."""

    def __init__(self, folder, instance, **settings):
        self.folder, self.instance = folder, instance
        Image.new("RGB", (64, 64), "teal").save(folder / "ada.png")
        (folder / "references.csv").write_text("reference_id,uri\nada,ada.png\n")
        self.rows = {"a1": ("one", "a lighthouse", "ada"), "b1": ("two", "a market", "")}
        self.write()
        self.settings = Settings(
            store=str(folder / "store"),
            prompts=str(folder / "prompts.csv"),
            references=str(folder / "references.csv"),
            **settings,
        )
        self.definitions = build_definitions(self.settings)
        self.prefix = f"{self.settings.key_prefix}_" if self.settings.key_prefix else ""
        self.cursors = {}

    def write(self):
        lines = [f"{prompt_id},{','.join(cells)}" for prompt_id, cells in self.rows.items()]
        (self.folder / "prompts.csv").write_text(
            "\n".join(["prompt_id,batch,prompt,reference_id", *lines]) + "\n"
        )

    def run(self, job, batch=None):
        return self.definitions.resolve_job_def(self.prefix + job).execute_in_process(
            instance=self.instance, partition_key=batch
        )

    def tick(self, name):
        """Tick a sensor as the daemon does: what it adds is added, what it remembers is remembered."""
        name = self.prefix + name
        repository = self.definitions.get_repository_def()
        sensor = repository.get_sensor_def(name)
        context = dg.SensorEvaluationContext(
            instance_ref=self.instance.get_ref() if self.instance.is_persistent else None,
            instance=self.instance,
            cursor=self.cursors.get(name),
            repository_def=repository,
            resources={key: self.definitions.resources[key] for key in sensor.required_resource_keys},
        )
        with context, dg.partition_loading_context(dynamic_partitions_store=self.instance):
            tick = sensor.evaluate_tick(context)
        self.cursors[name] = tick.cursor
        for request in tick.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        return tick

    def wanted(self):
        """Return the batches that a tick of `new_batches` requests."""
        return [request.partition_key for request in self.tick("new_batches").run_requests]

    @property
    def batches(self):
        return self.instance.get_dynamic_partitions(f"{self.prefix}ideogram_batches")


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    with dg.DagsterInstance.ephemeral() as instance:
        yield lambda **settings: Project(tmp_path, instance, **settings)


@pytest.fixture
def project(make):
    return make()


# --- the tables


def test_tables_are_read_when_they_were_changed(project):
    assert len(project.tick("new_tables").run_requests) == 1
    project.run("refresh_tables")
    assert project.tick("new_tables").run_requests == []
    project.rows["a2"] = ("one", "a harbour", "")
    project.write()
    assert len(project.tick("new_tables").run_requests) == 1


def test_tables_that_were_not_read_yet_are_not_requested_twice(project):
    first, second = (project.tick("new_tables").run_requests for _ in range(2))
    assert first[0].run_key == second[0].run_key


def test_a_table_that_is_changed_back_is_read_again(project):
    keys = []
    for color in ("teal", "red", "teal", "red"):
        Image.new("RGB", (64, 64), color).save(project.folder / "ada.png")
        project.rows["a1"] = ("one", f"a {color} lighthouse", "ada")
        project.write()
        (request,) = project.tick("new_tables").run_requests
        keys.append(request.run_key)
        project.run("refresh_tables")
    assert len(set(keys)) == 4


def test_a_changed_reference_picture_has_the_tables_read_again(project):
    project.run("refresh_tables")
    Image.new("RGB", (32, 32), "red").save(project.folder / "ada.png")
    (request,) = project.tick("new_tables").run_requests
    assert request.run_key.startswith("references:")


@pytest.mark.parametrize("name", ["prompts.csv", "references.csv"])
def test_a_table_that_is_missing_is_a_reason_and_no_empty_table(project, name):
    project.run("refresh_tables")
    (project.folder / name).unlink()
    tick = project.tick("new_tables")
    assert tick.run_requests == []
    assert f"{name}: there is no such file" in tick.skip_message
    assert project.batches == ["one", "two"]


def test_a_table_that_cannot_be_read_is_a_reason(project):
    project.run("refresh_tables")
    (project.folder / "prompts.csv").write_text("prompt_id;prompt\n")
    assert "the column 'prompt_id' is missing" in project.tick("new_tables").skip_message


# --- the batches


def test_a_batch_is_requested_once(project):
    assert "never read" in project.tick("new_batches").skip_message
    project.run("refresh_tables")
    assert project.wanted() == ["one", "two"]
    assert project.wanted() == []


def test_only_a_batch_that_asks_for_something_else_is_requested_again(project):
    project.run("refresh_tables")
    assert project.wanted() == ["one", "two"]
    for batch in ("one", "two"):
        project.run("generate_batch", batch)
    project.rows = {"c1": ("three", "a bridge", ""), **project.rows, "b1": ("two", "a fair", "")}
    project.write()
    project.run("refresh_tables")
    assert project.wanted() == ["three", "two"]


def test_a_batch_whose_reference_was_changed_is_requested_again(project):
    project.run("refresh_tables")
    project.wanted()
    for batch in ("one", "two"):
        project.run("generate_batch", batch)
    Image.new("RGB", (64, 64), "red").save(project.folder / "ada.png")
    project.run("refresh_tables")
    assert project.wanted() == ["one"]


def test_a_batch_with_damaged_outcomes_is_requested_and_keeps_no_other_from_it(project):
    project.run("refresh_tables")
    for batch in ("one", "two"):
        project.run("generate_batch", batch)
    assert project.wanted() == []
    (outcomes,) = (project.folder / "store" / "outcomes").glob("batch=one/*")
    outcomes.write_bytes(b"PAR1")
    project.cursors.clear()
    assert project.wanted() == ["one"]


def test_a_batch_that_was_run_by_hand_is_not_requested(project):
    project.run("refresh_tables")
    project.run("generate_batch", "one")
    assert project.wanted() == ["two"]


def test_the_batches_of_another_table_on_the_store_are_not_requested(project):
    others = project.folder / "others.csv"
    others.write_text("prompt_id,batch,prompt\nz1,one,a volcano\nz2,three,an island\n")
    settings = project.settings.model_copy(update={"prompts": str(others)})
    definitions = build_definitions(settings)
    project.run("refresh_tables")
    for job, batch in (("refresh_tables", None), ("generate_batch", "one")):
        definitions.resolve_job_def(job).execute_in_process(instance=project.instance, partition_key=batch)
    assert project.wanted() == ["one", "two"]
    project.run("generate_batch", "one")
    project.cursors.clear()
    assert project.wanted() == ["two"]


def test_a_row_that_leaves_the_table_removes_no_batch(project):
    project.run("refresh_tables")
    project.wanted()
    del project.rows["b1"]
    project.write()
    project.run("refresh_tables")
    assert project.wanted() == []
    assert project.batches == ["one", "two"]


def test_more_batches_than_a_tick_takes_are_requested_by_the_next_ones(project):
    project.rows = {f"p{n}": (f"batch-{n}", "a scene", "") for n in range(45)}
    project.write()
    project.run("refresh_tables")
    ticks = [project.wanted() for _ in range(4)]
    assert [len(tick) for tick in ticks] == [20, 20, 5, 0]
    assert sorted(batch for tick in ticks for batch in tick) == sorted(f"batch-{n}" for n in range(45))


def test_batches_that_the_instance_does_not_know_are_registered(project):
    project.run("refresh_tables")
    with dg.instance_for_test() as other:
        project.instance = other
        project.wanted()
        assert project.batches == ["one", "two"]


def test_a_cursor_that_cannot_be_read_counts_as_none(project):
    project.run("refresh_tables")
    project.run("generate_batch", "one")
    project.cursors["new_batches"] = "{{"
    assert project.wanted() == ["two"]


def test_no_batch_is_requested_while_the_tables_are_being_read(project):
    project.run("refresh_tables")
    project.instance.add_run(
        dg.DagsterRun(
            job_name="refresh_tables",
            run_id=str(uuid4()),
            status=dg.DagsterRunStatus.STARTED,
        )
    )
    assert project.tick("new_batches").skip_message == "The tables are being read."


def test_what_the_batches_brought_is_published_once_they_have_ended(project):
    project.run("refresh_tables")
    project.wanted()
    assert "published" in project.tick("new_batches").skip_message
    for batch in ("one", "two"):
        project.run("generate_batch", batch)
    first, second = (project.tick("new_batches").run_requests for _ in range(2))
    assert [request.job_name for request in first] == ["publish"]
    assert [request.run_key for request in first] == [request.run_key for request in second]
    project.run("publish")
    assert project.wanted() == []


def test_two_pipelines_have_sensors_of_their_own(make):
    project = make(key_prefix="acme")
    assert len(project.tick("new_tables").run_requests) == 1
    project.run("refresh_tables")
    (first, _) = project.tick("new_batches").run_requests
    assert (first.job_name, first.partition_key) == ("acme_generate_batch", "one")


@given(
    digests=DIGESTS,
    seen=DIGESTS,
    with_work=st.sets(st.text("abc", min_size=1, max_size=2)),
    at_most=st.integers(1, 5),
    patience=st.integers(0, 4),
)
def test_many_looks_run_every_changed_batch_with_work_once(digests, seen, with_work, at_most, patience):
    looked_at, requested, known = [], [], seen
    for _ in range(len(digests) + 1):
        left = iter(range(patience))
        step = look(
            digests,
            known,
            has_work=lambda batch: looked_at.append(batch) or batch in with_work,
            at_most=at_most,
            goes_on=lambda left=left: next(left, None) is not None,
        )
        assert len(step.to_run) <= at_most
        requested += step.to_run
        known = step.seen
        if not step.left:
            break
    assert not step.left
    changed = [batch for batch, digest in digests.items() if seen.get(batch) != digest]
    assert looked_at == changed
    assert requested == [batch for batch in changed if batch in with_work]
    assert known == {**seen, **digests}


# --- the clock


def test_what_is_switched_on_follows_from_the_settings():
    def running(**settings):
        definitions = build_definitions(Settings(**settings))
        return {
            each.name
            for each in (*definitions.sensors, *definitions.schedules)
            if each.default_status.name == "RUNNING"
        }

    assert running() == set()
    assert running(automation="sensor") == {"new_tables", "new_batches", "scheduled_reconcile"}
    assert running(automation="schedule") == {"scheduled_refresh", "new_batches", "scheduled_reconcile"}
    assert running(automation="conditions") == {"conditions", "scheduled_reconcile"}


def test_schedules_tick_when_and_where_the_settings_say():
    definitions = build_definitions(
        Settings(schedule_cron="15 7 * * 1-5", reconcile_cron="@hourly", schedule_timezone="Europe/Berlin")
    )
    refresh, reconcile = definitions.schedules
    assert (refresh.cron_schedule, reconcile.cron_schedule) == ("15 7 * * 1-5", "@hourly")
    assert refresh.execution_timezone == reconcile.execution_timezone == "Europe/Berlin"


@pytest.mark.parametrize("name", ["schedule_cron", "reconcile_cron"])
@pytest.mark.parametrize("cron", ["daily", "61 * * * *", "* * * *"])
def test_a_time_that_is_none_is_named(name, cron):
    with pytest.raises(ConfigurationError, match=f"IDEOGRAM_{name.upper()}"):
        build_definitions(Settings(**{name: cron}))


def test_a_time_zone_that_does_not_exist_is_named(monkeypatch):
    for zone in ("Mars/Olympus", "../etc", ""):
        monkeypatch.setenv("IDEOGRAM_SCHEDULE_TIMEZONE", zone)
        if zone:
            with pytest.raises(ConfigurationError, match="IDEOGRAM_SCHEDULE_TIMEZONE"):
                Settings.from_environment()


def test_the_reconciling_job_runs_where_nothing_is_unanswered(project):
    project.run("refresh_tables")
    project.run("generate_batch", "one")
    assert project.run("reconcile_unknown").success


def test_the_reconciling_job_leaves_alone_what_is_being_erased(project):
    project.run("refresh_tables")
    project.run("generate_batch", "one")
    store = Store.open(project.settings.store)
    with erasing(store, ["one"]), pytest.raises(BeingErased, match="nothing was submitted or changed"):
        project.run("reconcile_unknown")


# --- the conditions


class Conditions:
    """Evaluates the conditions tick by tick."""

    def __init__(self, project):
        self.project, self.cursor = project, None

    def __call__(self):
        result = dg.evaluate_automation_conditions(
            self.project.definitions, self.project.instance, cursor=self.cursor
        )
        self.cursor = result.cursor
        names = ("generation_requests", "generated_images", "image_catalog", "gallery")
        return {
            name: found
            for name in names
            if (found := {str(key) for key in result.get_requested_partitions(dg.AssetKey(name))})
        }


def test_conditions_leave_alone_what_was_missing_when_they_were_switched_on(project):
    project.run("refresh_tables")
    assert Conditions(project)() == {}


def test_conditions_run_a_batch_that_was_added_once(project):
    project.run("refresh_tables")
    tick = Conditions(project)
    tick()
    project.rows["c1"] = ("three", "a bridge", "")
    project.write()
    project.run("refresh_tables")
    assert tick() == {"generation_requests": {"three"}, "generated_images": {"three"}}
    assert tick() == {}


def test_conditions_leave_a_failed_batch_to_people(project):
    project.run("refresh_tables")
    tick = Conditions(project)
    tick()
    project.rows["c1"] = ("three", "a bridge", "")
    project.write()
    project.run("refresh_tables")
    tick()
    (project.folder / "store" / "store.json").write_bytes(b"damaged")
    job = project.definitions.resolve_job_def("generate_batch")
    assert not job.execute_in_process(
        instance=project.instance, partition_key="three", raise_on_error=False
    ).success
    assert [tick(), tick()] == [{}, {}]


def test_conditions_publish_what_a_batch_brought_while_others_are_missing(project):
    project.run("refresh_tables")
    tick = Conditions(project)
    tick()
    project.run("generate_batch", "one")
    assert set(tick()) == {"image_catalog", "gallery"}
    project.run("publish")
    assert tick() == {}
    project.run("generate_batch", "one")
    assert set(tick()) == {"image_catalog", "gallery"}


def test_no_other_sensor_evaluates_the_conditions(project):
    repository = project.definitions.get_repository_def()
    assert {sensor.name for sensor in repository.sensor_defs} == {"new_tables", "new_batches", "conditions"}


def test_a_tick_leaves_the_rest_to_the_next_when_its_time_is_over(project, monkeypatch):
    monkeypatch.setattr(automation, "LOOK_FOR_S", 0.0)
    project.run("refresh_tables")
    assert [project.wanted() for _ in range(3)] == [["one"], ["two"], []]

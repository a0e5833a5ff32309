"""What a run is asked for at its launch, through Dagster: the launchpad's words, the bill, and how the run ends."""

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

from ideogram_pipeline.assets.retries import RUN_RETRIES_TAG, Unmendable
from ideogram_pipeline.assets.tables import READINGS_TAG
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.generation import files
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.sandbox.control import Change
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

pytestmark = pytest.mark.slow

IMAGES = dg.AssetKey("generated_images")


@pytest.fixture
def sandbox():
    with running_sandbox(SandboxSettings(latency_scale=0)) as running:
        yield running


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def strict(project, sandbox):
    """The project as it is by default: every row must have its picture."""
    return project.model_copy(update={"fal_queue_url": sandbox.url, "max_failed_fraction": 0.0})


@pytest.fixture
def launch(strict, instance):
    """Run a batch as the launchpad does, and return the run's result."""

    def run(batch, settings=strict, *, prefix="", tags=None, raise_on_error=False, spend=None, **asked):
        definitions = build_definitions(settings)
        job = definitions.resolve_job_def(f"{prefix}refresh_tables")
        job.execute_in_process(instance=instance)
        before = f"{prefix.rstrip('_')}__" if prefix else ""
        config = {
            f"{before}generation_requests": {"config": asked},
            f"{before}generated_images": {"config": {"max_spend_usd": spend} if spend else {}},
        }
        return definitions.resolve_job_def(f"{prefix}generate_batch").execute_in_process(
            instance=instance,
            partition_key=batch,
            run_config={"ops": config},
            tags=tags,
            raise_on_error=raise_on_error,
        )

    return run


def counts(result):
    (event,) = [event for event in result.get_asset_materialization_events() if event.asset_key == IMAGES]
    metadata = event.materialization.metadata
    return {
        name: metadata[name].value
        for name in ("generated", "reused", "rejected", "refused", "not_reached")
        if metadata[name].value
    }


def test_every_option_explains_itself_in_the_launchpad(project):
    job = build_definitions(project).resolve_job_def("generate_batch")
    ops = job.run_config_schema.config_type.fields["ops"].config_type.fields
    options = {
        name: field.description
        for asset in ("generation_requests", "generated_images")
        for name, field in ops[asset].config_type.fields["config"].config_type.fields.items()
    }
    assert set(options) == {
        "regenerate",
        "only_failed",
        "regenerate_rejected",
        "limit",
        "prompt_ids",
        "max_spend_usd",
    }
    assert all(options.values())


def test_without_any_option_a_run_needs_no_configuration(launch, sandbox):
    assert counts(launch("two")) == {"generated": 1}
    assert counts(launch("two")) == {"reused": 1}
    assert sandbox.stats().accepted == 1


def generate_batch():
    return build_definitions(Settings.from_environment()).resolve_job_def("generate_batch")


@pytest.mark.slow
def test_a_new_take_is_paid_once_by_a_run_and_its_re_executions(strict, sandbox, tmp_path, monkeypatch):
    for name in ("store", "prompts", "references"):
        monkeypatch.setenv(f"IDEOGRAM_{name.upper()}", getattr(strict, name))
    monkeypatch.setenv("FAL_QUEUE_URL", sandbox.url)
    job = ReconstructableJob.for_file(__file__, "generate_batch")
    asked = {"ops": {"generation_requests": {"config": {"regenerate": True}}}}
    tags = {"dagster/partition": "one"}

    def execute(instance, **options):
        with dg.execute_job(job, instance, run_config=asked, **options) as result:
            return result.run_id, result.success

    with dg.DagsterInstance.local_temp(
        str(tmp_path), overrides={"telemetry": {"enabled": False}}
    ) as instance:
        build_definitions(strict).resolve_job_def("refresh_tables").execute_in_process(instance=instance)
        execute(instance, tags=tags)
        assert sandbox.stats().accepted == 2
        first, succeeded = execute(instance, tags=tags)
        assert not succeeded, "one row is rejected"
        assert sandbox.stats().accepted == 4
        whole = dg.ReexecutionOptions(first)
        second, _ = execute(instance, reexecution_options=whole)
        execute(instance, reexecution_options=dg.ReexecutionOptions.from_failure(second, instance))
        assert sandbox.stats().accepted == 4
        assert instance.get_run_by_id(second).root_run_id == first
        execute(instance, tags=tags)
        assert sandbox.stats().accepted == 6


def test_a_limit_and_a_line_of_the_runs_own_hold(launch, strict, sandbox):
    assert counts(launch("one", limit=1)) == {"generated": 1, "rejected": 1, "not_reached": 1}
    assert sandbox.stats().accepted == 1
    result = launch("one", spend=0.05)
    assert counts(result) == {"reused": 1, "rejected": 1, "not_reached": 1}
    assert sandbox.stats().accepted == 1
    rows = files.read_outcomes(Store.open(strict.store), "one")
    assert [row.reason for row in rows if "max_spend_usd" in row.reason]


@pytest.mark.parametrize(
    ("asked", "says"), [({"limit": 0}, "limit is 0"), ({"spend": -1.0}, "max_spend_usd is -1")]
)
def test_an_option_that_makes_no_sense_is_told_at_once(launch, asked, says):
    with pytest.raises(Unmendable, match=says):
        launch("two", raise_on_error=True, **asked)


def test_options_reach_a_pipeline_with_a_prefix(launch, strict, sandbox):
    guest = strict.model_copy(update={"key_prefix": "acme", "max_failed_fraction": 1.0})
    result = launch("one", guest, prefix="acme_", limit=1)
    assert result.success
    assert sandbox.stats().accepted == 1


def test_a_run_with_a_row_too_many_without_a_picture_fails_after_all_is_recorded(launch, instance, strict):
    result = launch("one")
    assert not result.success
    assert counts(result) == {"generated": 2, "rejected": 1}
    assert len(files.read_outcomes(Store.open(strict.store), "one")) == 3
    (whole,) = [one for one in result.get_asset_check_evaluations() if one.check_name == "batch_is_whole"]
    description = whole.description
    assert "1 of 3 rows" in description
    assert "1 rejected" in description
    assert r"a3: rejected: reference\_id: there is no reference 'nobody'" in description
    assert instance.get_materialized_partitions(IMAGES) == {"one"}
    (event,) = [event for event in result.get_asset_materialization_events() if event.asset_key == IMAGES]
    assert {"dagster/data_version", "dagster/code_version"} <= set(event.materialization.tags)
    assert any(name.startswith("dagster/input_data_version/") for name in event.materialization.tags)
    assert [event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY"] == []
    assert instance.get_run_by_id(result.run_id).tags[RUN_RETRIES_TAG] == "false"


def test_running_a_batch_again_that_failed_pays_only_for_what_is_missing(launch, sandbox):
    sandbox.change(Change(faults=(Fault("locked_balance", match="harbour"),)))
    assert not launch("one").success
    paid = sandbox.stats().accepted
    sandbox.change(Change(faults=()))
    launch("one")
    assert sandbox.stats().accepted == 2 >= paid
    launch("one")
    assert sandbox.stats().accepted == 2


@pytest.mark.parametrize(("bearable", "succeeds"), [(0.33, False), (0.34, True), (1.0, True)])
def test_up_to_the_bearable_fraction_a_run_succeeds_and_warns(launch, strict, instance, bearable, succeeds):
    result = launch("one", strict.model_copy(update={"max_failed_fraction": bearable}))
    assert result.success is succeeds
    warnings = [record for record in instance.all_logs(result.run_id) if "a3: rejected" in record.message]
    assert warnings


def test_rows_left_out_by_choice_fail_no_run(launch, project, sandbox):
    lines = ["prompt_id,batch,prompt", *(f"c{number},three,scene {number}" for number in range(3))]
    with open(project.prompts, "w") as table:
        table.write("\n".join(lines))
    result = launch("three", limit=1)
    assert result.success
    assert counts(result) == {"generated": 1, "not_reached": 2}
    assert sandbox.stats().accepted == 1


def test_a_downstream_of_a_failed_batch_sees_its_pictures(launch, strict, instance):
    assert not launch("one").success
    published = build_definitions(strict).resolve_job_def("publish").execute_in_process(instance=instance)
    (catalog,) = [
        event.materialization
        for event in published.get_asset_materialization_events()
        if event.asset_key == dg.AssetKey("image_catalog")
    ]
    assert catalog.metadata["dagster/row_count"].value == 2


def test_a_run_whose_tables_are_no_longer_kept_is_refused_before_it_plans(launch, sandbox):
    gone = {READINGS_TAG: "0123456789ab-1 0123456789ab-1"}
    with pytest.raises(Unmendable, match=r"no longer whole in the store.*Start a new run"):
        launch("two", raise_on_error=True, tags=gone)
    assert sandbox.stats().accepted == 0


def test_a_run_of_the_ui_works_the_tables_of_its_code_location_whatever_else_was_read(
    launch, strict, project, instance, sandbox, tmp_path
):
    (tmp_path / "others.csv").write_text("prompt_id,batch,prompt\nz1,two,a volcano\nz2,two,an island\n")
    launch("two")
    other = strict.model_copy(update={"prompts": str(tmp_path / "others.csv")})
    build_definitions(other).resolve_job_def("refresh_tables").execute_in_process(instance=instance)
    job = build_definitions(strict).resolve_job_def("generate_batch")
    assert counts(job.execute_in_process(instance=instance, partition_key="two")) == {"reused": 1}
    assert sandbox.stats().accepted == 1
    assert counts(launch("two", other)) == {"generated": 2}
    recorded = files.read_outcomes(Store.open(strict.store), "two")
    assert sorted(row.prompt_id for row in recorded) == ["b1", "z1", "z2"]

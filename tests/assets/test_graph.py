"""The assets in Dagster, on an instance of its own: what they leave in the store and what they tell."""

import base64
import re

import dagster as dg
import pandas as pd
import pytest

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.partitions import register
from ideogram_pipeline.resources import FalResource, StoreResource
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from ideogram_pipeline.settings import Settings

pytestmark = pytest.mark.slow

BATCHES = dg.DynamicPartitionsDefinition(name="ideogram_batches")


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def execute(project, instance):
    """Run a job of the project and return its materializations' metadata by asset."""

    def run(job, batch=None, settings=project):
        result = (
            build_definitions(settings)
            .resolve_job_def(job)
            .execute_in_process(instance=instance, partition_key=batch)
        )
        events = result.get_asset_materialization_events()
        return {event.asset_key.to_user_string(): event.materialization for event in events}

    return run


def value(materialization, name):
    return materialization.metadata[name].value


def test_the_graph_runs_from_the_tables_to_the_gallery(project):
    graph = build_definitions(project).resolve_asset_graph()
    edges = {
        (parent.to_user_string(), key.to_user_string())
        for key in graph.get_all_asset_keys()
        for parent in graph.get(key).parent_keys
    }
    assert edges == {
        ("prompts", "generation_requests"),
        ("references", "generation_requests"),
        ("generation_requests", "generated_images"),
        ("generated_images", "image_catalog"),
        ("image_catalog", "gallery"),
    }


def test_reading_the_tables_registers_their_batches_as_partitions(execute, instance):
    materialized = execute("refresh_tables")
    assert instance.get_dynamic_partitions("ideogram_batches") == ["one", "two"]
    assert value(materialized["prompts"], "rows") == 4
    assert value(materialized["references"], "rows") == 1


def test_registering_twice_adds_nothing(instance):
    assert register(instance, BATCHES, ["one", "two"]) == ["one", "two"]
    assert register(instance, BATCHES, ["two", "three"]) == ["three"]
    assert instance.get_dynamic_partitions("ideogram_batches") == ["one", "two", "three"]


def test_a_batch_is_planned_paid_and_recorded(execute, project):
    execute("refresh_tables")
    materialized = execute("generate_batch", "one")
    requests, images = materialized["generation_requests"], materialized["generated_images"]
    assert (value(requests, "new"), value(requests, "rejected")) == (2, 1)
    assert value(requests, "estimated_usd") == pytest.approx(0.10 + 0.09)
    counts = {name: value(images, name) for name in ("rows", "generated", "reused", "rejected", "images")}
    assert counts == {"rows": 3, "generated": 2, "reused": 0, "rejected": 1, "images": 2}
    assert value(images, "spent_usd") == pytest.approx(0.19)
    outcomes = pd.read_parquet(f"{project.store}/outcomes/batch=one/outcomes.parquet")
    assert dict(zip(outcomes["prompt_id"], outcomes["state"], strict=True)) == {
        "a1": "generated",
        "a2": "generated",
        "a3": "rejected",
    }
    assert "nobody" in outcomes["reason"][2]


def test_metadata_carries_what_was_sent_and_the_tables_other_columns(execute, project):
    execute("refresh_tables")
    execute("generate_batch", "one")
    metadata = pd.read_parquet(f"{project.store}/images/batch=one/metadata.parquet")
    row = metadata.iloc[0]
    assert metadata.columns[0] == "file_name"
    assert (row["prompt_id"], row["endpoint"], row["rendering_speed"]) == ("a1", "character", "TURBO")
    assert row["extra"] == '{"mood": "calm"}'
    assert (row["backend"], row["cost_source"]) == ("sandbox", "price_list")
    assert list(row["reference_ids"]) == ["ada"]


def test_the_preview_is_a_small_picture_inside_the_metadata(execute):
    execute("refresh_tables")
    markdown = value(execute("generate_batch", "one")["generated_images"], "preview")
    sheet = re.fullmatch(r"!\[.*\]\(data:image/webp;base64,(.*)\)", markdown)
    assert base64.b64decode(sheet[1])[8:12] == b"WEBP"
    assert len(markdown) <= 64_000


def test_an_unchanged_rerun_keeps_every_data_version(execute):
    def versions():
        materialized = {**execute("refresh_tables"), **execute("generate_batch", "one"), **execute("publish")}
        return {name: entry.tags["dagster/data_version"] for name, entry in materialized.items()}

    first = versions()
    assert len(first) == 6
    assert versions() == first


def test_the_catalog_holds_all_batches_and_the_gallery_shows_them(execute, project, tmp_path):
    execute("refresh_tables")
    for batch in ("one", "two"):
        execute("generate_batch", batch)
    published = execute("publish")
    catalog = pd.read_parquet(f"{project.store}/catalog")
    assert sorted(catalog["prompt_id"]) == ["a1", "a2", "b1"]
    assert all((tmp_path / "store" / path).is_file() for path in catalog["path"])
    assert value(published["gallery"], "images") == 3
    assert (tmp_path / "store" / "gallery" / "index.html").is_file()


def test_a_standing_sandbox_is_used_where_its_address_is_given(execute, project):
    with running_sandbox(SandboxSettings(latency_scale=0)) as sandbox:
        settings = project.model_copy(update={"fal_queue_url": sandbox.url})
        execute("refresh_tables", settings=settings)
        execute("generate_batch", "one", settings=settings)
        execute("generate_batch", "one", settings=settings)
        assert sandbox.stats().submits == 2


def test_the_backend_fal_works_against_any_host_that_speaks_its_protocol(execute, project, monkeypatch):
    monkeypatch.setenv("FAL_KEY", "planted-id:planted-secret")
    with running_sandbox(SandboxSettings(latency_scale=0, key="planted-id:planted-secret")) as sandbox:
        monkeypatch.setenv("IDEOGRAM_BACKEND", "fal")
        for host in ("QUEUE", "REST", "API"):
            monkeypatch.setenv(f"FAL_{host}_URL", sandbox.url)
        for name in ("store", "prompts", "references"):
            monkeypatch.setenv(f"IDEOGRAM_{name.upper()}", getattr(project, name))
        settings = Settings.from_environment(max_failed_fraction=1)
        execute("refresh_tables", settings=settings)
        images = execute("generate_batch", "one", settings=settings)["generated_images"]
        assert value(images, "generated") == 2
        assert sandbox.stats().misplaced_keys == 0
    metadata = pd.read_parquet(f"{project.store}/images/batch=one/metadata.parquet")
    assert set(metadata["backend"]) == {"fal"}


def test_a_store_is_never_shared_by_drawn_and_real_pictures(tmp_path):
    StoreResource(url=str(tmp_path), backend="sandbox").open()
    with pytest.raises(ConfigurationError, match="IDEOGRAM_STORE"):
        StoreResource(url=str(tmp_path), backend="fal").open()


def test_a_store_is_never_shared_by_two_pipelines(tmp_path):
    StoreResource(url=str(tmp_path), backend="sandbox", pipeline="acme").open()
    with pytest.raises(ConfigurationError, match=r"'acme'.*store of its own"):
        StoreResource(url=str(tmp_path), backend="sandbox").open()


def test_a_store_made_before_pipelines_had_names_is_the_nameless_ones(tmp_path):
    (tmp_path / "store.json").write_text('{"backend": "sandbox"}')
    StoreResource(url=str(tmp_path), backend="sandbox").open()


def test_the_key_is_not_shown_by_the_resource_that_holds_it():
    assert "planted" not in repr(FalResource(backend="fal", key="planted-id:planted-secret"))


def test_the_key_is_configured_by_the_name_of_its_variable_and_not_by_its_value(project, monkeypatch):
    monkeypatch.setenv("FAL_KEY", "planted-id:planted-secret")
    settings = project.model_copy(update={"fal_key": Settings().fal_key})
    assert "planted" not in repr(build_definitions(settings).resources)


def test_the_run_says_how_many_requests_fal_may_have_from_all_runs_together(execute, instance):
    execute("refresh_tables")
    execute("generate_batch", "one")
    instance.event_log_storage.set_concurrency_slots("fal", 2)
    execute("generate_batch", "one")
    messages = [
        record.message
        for run in instance.get_runs()
        for record in instance.all_logs(run.run_id)
        if "in flight" in record.message
    ]
    assert "pool 'fal': 2 runs x 64 requests in flight = at most 128 with fal" in messages[0]
    assert "no limit on runs" in messages[1]

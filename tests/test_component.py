"""Pipelines as `defs.yaml` files: the example project, loaded and run as Dagster would."""

import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from ideogram_pipeline import GenerationComponent
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation.readings import newest_tables
from ideogram_pipeline.storage import Store

ROOT = Path(__file__).parents[1]
PIPELINES = ("characters", "scenes")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A copy of the example project, whose two pipelines share a code location."""
    (tmp_path / "data").mkdir()
    shutil.copy(ROOT / "data" / "astronaut.png", tmp_path / "data")
    project = shutil.copytree(
        ROOT / "examples" / "two_pipelines",
        tmp_path / "examples" / "two_pipelines",
        ignore=shutil.ignore_patterns("var", "__pycache__"),
    )
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == "two_pipelines"]:
        del sys.modules[name]


@pytest.fixture
def definitions(example):
    return dg.load_from_defs_folder(path_within_project=example / "two_pipelines")


def build(**fields):
    given = {"prompts": "prompts.csv", "references": "references.csv", "store": "var", **fields}
    context = dg.ComponentTree.for_test().load_context
    return GenerationComponent.resolve_from_dict(given).build_defs(context)


def test_two_pipelines_share_a_code_location_and_no_name(definitions):
    dg.Definitions.validate_loadable(definitions)
    for pipeline in PIPELINES:
        keys = {key.path[1] for key in definitions.resolve_all_asset_keys() if key.path[0] == pipeline}
        assert keys == {
            "prompts",
            "references",
            "generation_requests",
            "generated_images",
            "image_catalog",
            "gallery",
        }
        for job in ("refresh_tables", "generate_batch", "publish"):
            selected = definitions.resolve_job_def(f"{pipeline}_{job}").asset_layer.selected_asset_keys
            assert {key.path[0] for key in selected} == {pipeline}
        for resource in ("store", "tables", "fal", "budget", "limits", "progress", "frames"):
            assert f"{pipeline}_{resource}" in definitions.resources


def test_two_pipelines_run_in_one_process_without_touching_each_other(definitions, example):
    with dg.DagsterInstance.ephemeral() as instance:

        def execute(job, batch=None):
            return definitions.resolve_job_def(job).execute_in_process(instance=instance, partition_key=batch)

        execute("characters_refresh_tables")
        assert not (example / "var" / "scenes").exists()
        execute("scenes_refresh_tables")
        assert instance.get_dynamic_partitions("characters_ideogram_batches") == ["ada"]
        assert instance.get_dynamic_partitions("scenes_ideogram_batches") == ["autumn"]
        assert instance.get_dynamic_partitions("ideogram_batches") == []
        result = execute("scenes_generate_batch", "autumn")
        checked = {check.asset_key: check.passed for check in result.get_asset_check_evaluations()}
        assert checked == {
            dg.AssetKey(["scenes", "generation_requests"]): True,
            dg.AssetKey(["scenes", "generated_images"]): True,
        }
        execute("scenes_publish")
    assert not (example / "var" / "characters" / "ledger").exists()
    catalog = pd.read_parquet(example / "var" / "scenes" / "catalog")
    assert sorted(catalog["prompt_id"]) == ["harbour", "market"]
    assert set(catalog["rendering_speed"]) == {"QUALITY"}
    assert set(catalog["negative_prompt"]) == {"text, watermark"}


def test_defaults_fill_only_what_a_table_leaves_empty(definitions, example):
    with dg.DagsterInstance.ephemeral() as instance:
        definitions.resolve_job_def("characters_refresh_tables").execute_in_process(instance=instance)
    store = Store.open(str(example / "var" / "characters"))
    tables = definitions.resources["characters_tables"]
    rows, _ = newest_tables(store, tables.prompts, tables.references).read_prompts("ada")
    assert [(row.batch, row.rendering_speed, row.image_size) for row in rows] == [
        ("ada", "TURBO", "square_hd")
    ] * 2


def test_a_component_without_a_prefix_has_the_plain_names():
    definitions = build()
    assert dg.AssetKey("generated_images") in definitions.resolve_all_asset_keys()
    names = {"store", "tables", "fal", "budget", "limits", "progress", "frames", "marks", "likeness"}
    assert set(definitions.resources) == names


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"defaults": {"rendering_sped": "TURBO"}}, "'rendering_sped'.*did you mean 'rendering_speed'"),
        ({"defaults": {"mood": "calm"}}, "no column 'mood'.*prompt, endpoint"),
        ({"defaults": {"num_images": "many"}}, r"defaults: num_images: .*found 'many'"),
        ({"defaults": {"prompt_id": "a"}}, "prompt_id of its own"),
        ({"key_prefix": "Not a slug"}, "IDEOGRAM_KEY_PREFIX"),
        ({"backend": "fal"}, "FAL_KEY is not set"),
    ],
)
def test_a_mistake_in_a_defs_file_is_named(fields, says, monkeypatch):
    monkeypatch.delenv("FAL_KEY", raising=False)
    with pytest.raises(ConfigurationError, match=says):
        build(**fields)


def test_a_field_that_does_not_exist_is_refused():
    with pytest.raises(Exception, match="budget_eur"):
        build(budget_eur=5)


def test_what_is_left_out_is_as_the_environment_says(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("IDEOGRAM_BUDGET_USD", "3")
    resources = build(key_prefix="a", budget_usd=0.1).resources
    assert resources["a_fal"].max_in_flight == 7
    assert resources["a_budget"].per_run_usd == 0.1


def test_every_field_is_described():
    assert all(field.description for field in GenerationComponent.model_fields.values())


def test_the_package_itself_stays_light():
    code = "import sys, ideogram_pipeline; assert 'dagster' not in sys.modules; ideogram_pipeline.GenerationComponent"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_dagsters_own_command_accepts_the_example(example, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("PYTHONPATH", f"{example}:{ROOT}")
    for command in (["check", "defs"], ["list", "defs", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "dagster_dg_cli.cli", *command],
            cwd=example,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "characters/generated_images" in done.stdout

"""The files of a deployment: Dagster's own code reads them, a linter reads the Dockerfile, and none holds a key."""

import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest
import yaml
from dagster._cli.api import api_cli
from dagster._core.instance.ref import InstanceRef
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster_aws.s3.compute_log_manager import S3ComputeLogManager
from dagster_celery.cli import get_validated_config
from dagster_cloud_cli.config.models import load_dagster_cloud_yaml
from dagster_dg_cli.cli.utils import create_temp_dagster_cloud_yaml_file
from dagster_dg_core.config import DgRawCliConfig
from dagster_dg_core.context import DgContext
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import create_engine

from ideogram_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = ROOT / "Dockerfile"
CLOUD = ROOT / "dagster_cloud.yaml"
VALUES = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
SHIPPED = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
POSTGRES = {
    "DAGSTER_PG_HOST": "127.0.0.1",
    "DAGSTER_PG_PORT": "5432",
    "DAGSTER_PG_USERNAME": "dagster",
    "DAGSTER_PG_PASSWORD": "5ecre7",
    "DAGSTER_PG_DB": "dagster",
    "DAGSTER_COMPUTE_LOG_BUCKET": "logs",
}


def cloud():
    return load_dagster_cloud_yaml(CLOUD.read_text())


def test_the_cloud_file_names_the_code_location_and_takes_the_key_from_a_secret():
    (location,) = cloud().locations
    assert location.location_name == "ideogram_pipeline"
    assert location.code_source.module_name == "ideogram_pipeline.definitions"
    assert "FAL_KEY" not in json.dumps(location.container_context)
    context = K8sContainerContext.create_from_config(location.container_context)
    for started in (context.server_k8s_config, context.run_k8s_config):
        container = started.container_config
        assert {"secret_ref": {"name": "ideogram-pipeline"}} in container["env_from"]
        known = {f"IDEOGRAM_{name.upper()}" for name in Settings.model_fields}
        assert {variable["name"] for variable in container["env"]} <= known


def test_the_files_that_replace_the_cloud_file_say_the_same(tmp_path):
    context = DgContext.for_project_environment(ROOT, DgRawCliConfig())
    written = Path(create_temp_dagster_cloud_yaml_file(context, str(tmp_path)))
    made = load_dagster_cloud_yaml(written.read_text())
    for location in made.locations:
        location.build.directory = str(Path(location.build.directory).relative_to(ROOT)) or "."
    assert made == cloud()


def test_dagsters_own_command_finds_nothing_wrong_with_the_cloud_file():
    checked = subprocess.run(
        [
            str(Path(sys.executable).parent / "dagster-cloud"),
            *("ci", "check", "--dagster-cloud-connect-check", "skip", "--project-dir", str(ROOT)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Checked OK" in checked.stdout + checked.stderr, checked.stderr


def test_the_instance_that_several_machines_share_is_one_that_dagster_takes(tmp_path, postgres_variables):
    (tmp_path / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text())
    instance = InstanceRef.from_dir(str(tmp_path))
    assert instance.settings["run_retries"] == {
        **SHIPPED["run_retries"],
        "retry_on_asset_or_op_failure": False,
    }
    assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
    assert isinstance(instance.compute_log_manager, S3ComputeLogManager)
    # SQLAlchemy takes the address for the driver that dagster-postgres brings
    address = pg_url_from_config(SHIPPED["storage"]["postgres"] | {"postgres_db": postgres_database()})
    assert create_engine(address).dialect.driver == "psycopg2"


def test_the_laptops_instance_and_the_shared_one_differ_in_where_things_lie_alone():
    laptop = yaml.safe_load((ROOT / "ideogram_pipeline" / "dagster.yaml").read_text())
    laptop["concurrency"]["runs"] = SHIPPED["concurrency"]["runs"]
    assert {name: SHIPPED[name] for name in laptop} == laptop
    assert SHIPPED.keys() - laptop.keys() == {"storage", "compute_logs", "run_coordinator"}


def test_celerys_workers_find_their_broker_in_the_environment(monkeypatch):
    monkeypatch.setenv("IDEOGRAM_CELERY_BROKER", "redis://broker/0")
    monkeypatch.setenv("IDEOGRAM_CELERY_BACKEND", "redis://broker/1")
    config = get_validated_config(str(DEPLOY / "celery.yaml"))
    assert (config["broker"], config["backend"]) == ("redis://broker/0", "redis://broker/1")
    patience = config["config_source"]["broker_transport_options"]["visibility_timeout"]
    assert patience > Settings.model_fields["max_wait_s"].default


def test_the_charts_values_configure_the_same_instance(tmp_path, postgres_variables):
    own = VALUES["additionalInstanceConfig"]
    assert own == {name: SHIPPED[name] for name in own}
    for name in own.keys() - {"concurrency"}:
        assert VALUES["dagsterDaemon"][snake_to_camel(name)] == {"enabled": False}
    purge = {
        name: {"purge_after_days": VALUES["retention"][name]["purgeAfterDays"]}
        for name in SHIPPED["retention"]
    }
    assert purge == SHIPPED["retention"]
    assert VALUES["telemetry"] == SHIPPED["telemetry"]
    assert VALUES["postgresql"]["postgresqlScheme"] == SHIPPED["storage"]["postgres"]["postgres_db"]["scheme"]
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(own))
    assert isinstance(InstanceRef.from_dir(str(tmp_path)).run_coordinator, QueuedRunCoordinator)


def test_the_charts_values_start_what_the_image_has():
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    assert deployment["dagsterApiGrpcArgs"] == ["--module-name", "ideogram_pipeline.definitions"]
    assert deployment["includeConfigInLaunchedRuns"] == {"enabled": True}
    assert deployment["image"] == VALUES["dagsterWebserver"]["image"] == VALUES["dagsterDaemon"]["image"]
    assert [secret["name"] for secret in deployment["envSecrets"]] == ["ideogram-pipeline"]
    run = VALUES["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    parsed = UserDefinedDagsterK8sConfig.from_dict(
        {camel_to_snake(name): value for name, value in run.items()}
    )
    grace = parsed.pod_spec_config["termination_grace_period_seconds"]
    assert grace > 30
    (location,) = cloud().locations
    in_cloud = location.container_context["k8s"]["run_k8s_config"]["container_config"]
    assert run["containerConfig"] == in_cloud


def test_a_linter_finds_nothing_in_the_dockerfile():
    hadolint = Path(sys.executable).parent / "hadolint"
    linted = subprocess.run([str(hadolint), str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_the_image_runs_without_root_with_bytecode_and_what_is_locked():
    text = DOCKERFILE.read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001"]
    assert "compileall" in text
    assert "--constraint requirements.lock" in text
    arguments = json.loads(re.search(r"^CMD (\[.*\])$", last, re.MULTILINE)[1])
    assert arguments[:3] == ["dagster", "api", "grpc"]
    command = api_cli.get_command(None, "grpc")
    command.parse_args(click.Context(command), arguments[3:])


def test_no_key_can_get_into_the_image():
    text = DOCKERFILE.read_text()
    assert not re.search(r"KEY|SECRET|PASSWORD|TOKEN", text.replace("No key", ""), re.IGNORECASE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    sources = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", text, re.MULTILINE)
    assert {f"!{source}" for line in sources for source in line.split()} == {
        rule for rule in rules if rule.startswith("!")
    }


def test_the_page_names_settings_and_files_that_there_are():
    page = (ROOT / "docs" / "deploy.md").read_text()
    settings = {f"IDEOGRAM_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"IDEOGRAM_[A-Z_]+", page)) <= settings
    files = re.findall(r"`((?:deploy/)?[\w/-]+\.yaml|Dockerfile)`", page)
    assert "deploy/celery.yaml" in files
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_pages_commands_are_ones_that_the_programs_take():
    page = (ROOT / "docs" / "deploy.md").read_text()
    commands = [
        shlex.split(line.partition(" #")[0]) for line in re.findall(r"^    (d[ag].*)$", page, re.MULTILINE)
    ]
    programs = {
        "dg": ("dagster_dg_cli.cli", "cli"),
        "dagster": ("dagster._cli", "cli"),
        "dagster-daemon": ("dagster._daemon.cli", "cli"),
        "dagster-webserver": ("dagster_webserver.cli", "cli"),
        "dagster-celery": ("dagster_celery.cli", "main"),
    }
    assert {program for program, *_ in commands} == set(programs)
    for program, *arguments in commands:
        module, name = programs[program]
        command = getattr(import_module(module), name)
        while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
            command = command.get_command(click.Context(command), arguments.pop(0))
        known = {option for parameter in command.params for option in parameter.opts}
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        given = {argument for argument in own if argument.startswith("-")}
        assert given <= known, (program, given - known)


@pytest.fixture
def postgres_variables(monkeypatch):
    for name, value in POSTGRES.items():
        monkeypatch.setenv(name, value)


def postgres_database():
    named = SHIPPED["storage"]["postgres"]["postgres_db"]
    return {
        name: POSTGRES[value["env"]] if isinstance(value, dict) else value for name, value in named.items()
    }


def snake_to_camel(name):
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


def camel_to_snake(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("k8_s", "k8s")

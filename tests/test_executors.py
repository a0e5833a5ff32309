"""The executor that the settings choose, and a clear word where it can't be had."""

import subprocess
import sys

import dagster as dg
import pytest
from pydantic import SecretStr

from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.executors import executor
from ideogram_pipeline.settings import Settings

BROKER = {
    "celery_broker": SecretStr("redis://:5ecre7@redis/0"),
    "celery_backend": SecretStr("redis://:5ecre7@redis/1"),
}


@pytest.mark.parametrize("name", ["in_process", "multiprocess", "k8s", "celery"])
def test_every_job_has_the_executor_that_is_chosen(name):
    definitions = build_definitions(Settings(executor=name, **(BROKER if name == "celery" else {})))
    jobs = definitions.resolve_all_job_defs()
    assert {"generate_batch", "refresh_tables", "publish", "reconcile_unknown", "__ASSET_JOB"} <= {
        job.name for job in jobs
    }
    assert {job.executor_def.name for job in jobs} == {name}


def test_a_guest_leaves_the_executor_of_its_code_location_alone():
    definitions = build_definitions(Settings(executor="k8s", key_prefix="acme"))
    assert definitions.resolve_job_def("acme_generate_batch").executor_def.name == "k8s"
    assert definitions.resolve_implicit_global_asset_job_def().executor_def == dg.multi_or_in_process_executor


def test_celery_without_a_broker_says_what_to_set():
    with pytest.raises(ConfigurationError, match=r"IDEOGRAM_CELERY_BROKER.*redis://redis:6379/0"):
        executor(Settings(executor="celery"))


@pytest.mark.parametrize("name", ["k8s", "celery"])
def test_a_package_that_is_missing_is_named_with_its_extra(name):
    code = f"""
import sys
sys.modules["dagster_{name}"] = None
from ideogram_pipeline.executors import executor
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.settings import Settings
try:
    executor(Settings(executor="{name}", celery_broker="redis://a/0", celery_backend="redis://a/1"))
except ConfigurationError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"dagster_{name} is not installed: pip install 'ideogram-pipeline[{name}]'" in done.stdout


def test_the_brokers_password_is_in_no_definition():
    definitions = build_definitions(Settings(executor="celery", **BROKER))
    job = definitions.resolve_job_def("generate_batch")
    shown = (repr(job.executor_def), str(job.executor_def.config_schema.as_field()), str(job.run_config))
    assert not any("5ecre7" in text for text in shown)

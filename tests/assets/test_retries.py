"""What Dagster runs again and what it doesn't, on both executors and with retries configured."""

import os
import signal
import threading
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

from ideogram_pipeline.assets.retries import CRASHES, RUN_RETRIES_TAG, Unmendable, retried_after_crashes
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.errors import StoreError, TableError
from ideogram_pipeline.settings import Settings

AT_ONCE = dg.RetryPolicy(max_retries=CRASHES.max_retries)
"""The same policy without its pauses."""


@dg.asset(retry_policy=AT_ONCE)
@retried_after_crashes
def stopped(context: dg.AssetExecutionContext) -> None:
    """An asset that has its run stopped, as a person would with Terminate or a host with a signal."""
    with Path(context.run.tags["attempts"]).open("a") as attempts:
        attempts.write("x")
    if context.run.tags["how"] == "terminated":
        context.instance.report_run_canceling(context.run)
    os.kill(int(context.run.tags["worker"]), signal.SIGTERM)
    threading.Event().wait(60)


def in_process() -> dg.JobDefinition:
    job = dg.define_asset_job("stop", [stopped], executor_def=dg.in_process_executor)
    return dg.Definitions([stopped], jobs=[job]).resolve_job_def("stop")


def multiprocess() -> dg.JobDefinition:
    job = dg.define_asset_job("stop", [stopped], executor_def=dg.multiprocess_executor)
    return dg.Definitions([stopped], jobs=[job]).resolve_job_def("stop")


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["in_process", "multiprocess"])
@pytest.mark.parametrize(
    ("how", "status", "may_be_taken_up"),
    [
        ("terminated", dg.DagsterRunStatus.CANCELED, None),
        ("interrupted", dg.DagsterRunStatus.FAILURE, "true"),
    ],
)
def test_an_interrupt_is_never_turned_into_a_retry(executor, how, status, may_be_taken_up, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    attempts = tmp_path / "attempts"
    tags = {"attempts": str(attempts), "how": how, "worker": str(os.getpid())}
    try:
        with dg.DagsterInstance.local_temp(
            str(tmp_path), overrides={"telemetry": {"enabled": False}}
        ) as instance:
            job = ReconstructableJob.for_file(__file__, executor)
            result = dg.execute_job(job, instance, tags=tags, raise_on_error=False)
            run = instance.get_run_by_id(result.run_id)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert attempts.read_text() == "x"
    assert run.status is status
    assert run.tags.get(RUN_RETRIES_TAG) == may_be_taken_up


def attempts_at(error, *, succeed_at=99):
    """Run an asset that raises until an attempt succeeds; return the attempts and what was raised in the end."""
    attempts = []

    @dg.asset(retry_policy=AT_ONCE)
    @retried_after_crashes
    def flaky() -> None:
        attempts.append(1)
        if len(attempts) < succeed_at:
            raise error

    try:
        dg.materialize([flaky])
    except Exception as raised:
        return len(attempts), raised
    return len(attempts), None


def test_a_mistake_in_a_table_is_told_at_once():
    mistake = TableError("prompts.csv: the column 'prompt' is missing")
    attempts, raised = attempts_at(mistake)
    assert attempts == 1
    assert isinstance(raised, Unmendable)
    assert raised.__cause__ is mistake


def test_a_store_that_comes_back_is_tried_again():
    assert attempts_at(StoreError("out of reach"), succeed_at=3) == (3, None)


def test_a_store_that_stays_away_is_told_as_it_is():
    gone = StoreError("out of reach")
    attempts, raised = attempts_at(gone)
    assert attempts == 1 + CRASHES.max_retries
    assert raised.__cause__ is gone


def test_a_crash_is_tried_again():
    assert attempts_at(RuntimeError("crash"), succeed_at=2) == (2, None)


@pytest.mark.parametrize("prefix", ["", "acme"])
def test_every_asset_has_the_policy(prefix):
    for asset in build_definitions(Settings(key_prefix=prefix)).assets:
        assert asset.op.retry_policy == CRASHES

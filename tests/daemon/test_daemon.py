"""What a person or a clock starts on a real deployment, cancels, kills and repeats: every row is paid for once."""

import os
import signal

import dagster as dg
import pytest

from ideogram_pipeline.sandbox.control import Change

pytestmark = [pytest.mark.daemon, pytest.mark.timeout(900)]

LONG = 40
"""Rows of a batch that lasts long enough to be stopped on the way."""


def rows(batch, count):
    return [(f"{batch}-{number}", batch, f"scene {number}", "TURBO") for number in range(count)]


def test_a_batch_that_is_added_to_the_table_is_run_and_published(deploy):
    deployment = deploy(rows("one", 2), latency_scale=0, settings={"IDEOGRAM_AUTOMATION": "sensor"})
    deployment.wait(lambda: deployment.pictures("one") == 2)
    deployment.write(*rows("one", 2), *rows("two", 3))
    deployment.wait(lambda: deployment.pictures("two") == 3)
    index = deployment.store / "gallery" / "index.html"
    deployment.wait(lambda: index.exists() and "two" in index.read_text())
    assert deployment.sandbox.stats().accepted == 5
    assert {run.tags["dagster/partition"] for run in deployment.runs("generate_batch")} == {"one", "two"}


def test_a_schedule_reads_the_tables_and_their_batches_are_run(deploy):
    clock = {"IDEOGRAM_AUTOMATION": "schedule", "IDEOGRAM_SCHEDULE_CRON": "* * * * *"}
    deployment = deploy(rows("one", 2), latency_scale=0, settings=clock)
    deployment.wait(lambda: deployment.pictures("one") == 2)
    names = {run.tags.get("dagster/schedule_name") for run in deployment.runs("refresh_tables")}
    assert names == {"scheduled_refresh"}


def test_a_backfill_with_a_bad_row_pays_only_what_is_missing_when_it_is_repeated(deploy):
    names = [f"batch-{number}" for number in range(5)]
    table = [row for name in names for row in rows(name, 3)]
    table[4] = (*table[4][:3], "SLOWEST")
    deployment = deploy(table, latency_scale=0)
    deployment.refresh()
    assert deployment.backfill(names) == "COMPLETED_SUCCESS"
    assert deployment.sandbox.stats().submits == 14
    table[4] = (*table[4][:3], "TURBO")
    deployment.write(*table)
    deployment.refresh()
    assert deployment.backfill(names) == "COMPLETED_SUCCESS"
    assert deployment.sandbox.stats().submits == 15
    assert [deployment.pictures(name) for name in names] == [3] * 5
    backfilled = [run for run in deployment.instance.get_runs() if "dagster/backfill" in run.tags]
    assert sorted(run.tags["dagster/partition"] for run in backfilled) == sorted(names * 2)


@pytest.mark.parametrize("executor", ["in-process", "multiprocess"])
def test_a_terminated_batch_is_cancelled_at_fal_and_not_sent_again(deploy, executor):
    prefix = "" if executor == "in-process" else "acme"
    deployment = deploy(rows("long", LONG), prefix=prefix, latency_scale=20, concurrency=2)
    deployment.refresh()
    if executor == "in-process":
        run_id = deployment.launch("generate_batch", "long")
    else:
        run_id = deployment.launch("__ASSET_JOB", "long", ("generation_requests", "generated_images"))
    deployment.wait(lambda: deployment.sandbox.stats().accepted == LONG)
    deployment.terminate(run_id)
    assert deployment.end_of(run_id) is dg.DagsterRunStatus.CANCELED
    # two were being drawn, and fal may have ended some before
    ended = deployment.sandbox.stats()
    assert ended.cancels >= LONG - ended.completed - ended.failed - 2
    deployment.sandbox.change(Change(latency_scale=0))
    deployment.stop()
    after = deployment.sandbox.stats()
    assert (after.submits, after.duplicates) == (LONG, 0)
    (run,) = deployment.instance.get_runs(dg.RunsFilter(tags={"dagster/partition": "long"}))
    said = " ".join(entry.user_message for entry in deployment.instance.all_logs(run.run_id))
    assert ("multiprocess executor" in said) is (executor == "multiprocess")


def test_a_run_whose_process_is_told_to_go_is_taken_up_by_the_daemon(deploy):
    deployment = deploy(rows("long", LONG), latency_scale=20, concurrency=2)
    deployment.refresh()
    run_id = deployment.launch("generate_batch", "long")
    deployment.wait(lambda: deployment.sandbox.stats().accepted == LONG)
    os.kill(deployment.process_of(run_id), signal.SIGTERM)
    assert deployment.end_of(run_id) is dg.DagsterRunStatus.FAILURE
    assert deployment.sandbox.stats().cancels == 0
    deployment.sandbox.change(Change(latency_scale=0))
    retry = deployment.wait(
        lambda: [run for run in deployment.runs("generate_batch") if run.run_id != run_id]
    )[0]
    assert deployment.end_of(retry.run_id) is dg.DagsterRunStatus.SUCCESS
    assert deployment.sandbox.stats().submits == LONG
    assert deployment.pictures("long") == LONG

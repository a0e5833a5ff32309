"""Forty batches, four workers, one Dagster over Postgres, pictures in S3. Workers die; every row is paid for once."""

import os
import signal

import dagster as dg
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

BATCHES = [f"batch-{number:02}" for number in range(40)]
WORKERS = ("one", "two", "three", "four")
STARTED = "Executing steps generated_images in celery worker"


def test_forty_batches_over_four_workers_of_which_two_die_pay_every_row_once(cluster):
    cluster = cluster(BATCHES, rows=4, latency_scale=2)
    cluster.configure(run_monitoring={"poll_interval_seconds": 5})
    cluster.add_redis()
    cluster.environment["IDEOGRAM_AUTOMATION"] = "sensor"
    workers = {name: cluster.add_celery_worker(name, visibility_timeout=60) for name in WORKERS}
    cluster.instance.event_log_storage.set_concurrency_slots("fal", 2 * len(WORKERS))
    cluster.start_dagster()

    first, _, step = cluster.wait(lambda: caught_at_work(cluster, workers))
    os.kill(step, signal.SIGKILL)  # as the kernel does where memory runs out: Celery lives on, and says so
    second, name, _ = cluster.wait(lambda: caught_at_work(cluster, workers, besides=first))
    for pid in (*cluster.below(workers[name]), workers[name].pid):  # as a machine goes
        os.kill(pid, signal.SIGKILL)
    workers[name].wait()
    cluster.add_celery_worker(name, visibility_timeout=60)

    images = dg.AssetKey("generated_images")
    cluster.wait(lambda: set(BATCHES) <= cluster.instance.get_materialized_partitions(images))
    cluster.wait(lambda: not cluster.unfinished())
    cluster.check_that_every_row_was_paid_once()
    runs = {run.run_id: run for run in cluster.instance.get_runs()}
    # the run of the step that was killed failed, and Dagster made another of it ...
    assert first in {run.parent_run_id for run in runs.values()}
    # ... and the step whose worker vanished was given to another worker
    assert len(list(started(cluster, [runs[second]]))) >= 2
    assert runs[second].status is dg.DagsterRunStatus.SUCCESS


def started(cluster, runs):
    """Yield the run and the worker of every start of the step that pays."""
    for run in runs:
        for record in cluster.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
            if STARTED in record.message:
                worker = record.dagster_event.engine_event_data.metadata["Celery worker"].value
                yield run, worker.partition("@")[0]


def caught_at_work(cluster, workers, besides=None):
    """Stop the process of a worker whose batch is with fal; return the run, the worker and that process, or nothing."""
    at_work = cluster.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    for run, name in started(cluster, at_work):
        if run.run_id == besides:
            continue
        batch = run.tags["dagster/partition"]
        _celery, step, *_captures_of_its_output = cluster.below(workers[name])
        if cluster.is_with_fal(batch):
            os.kill(step, signal.SIGSTOP)
            if cluster.is_with_fal(batch):
                return run.run_id, name, step
            os.kill(step, signal.SIGCONT)
    return None

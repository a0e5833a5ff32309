"""Several processes on one batch, processes that stand still."""

import signal
import time

import pytest

from ideogram_pipeline.sandbox.control import Change

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def wait_until(process, true):
    while not true():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def test_two_processes_on_one_batch_at_once_pay_every_row_once(project):
    project = project(rows=60, latency_scale=0.5)
    both = [project.start("run", DAGSTER_HOME=str(home(project, name))) for name in "ab"]
    for process in both:
        project.finish(process)
    summary = project.settle()
    stats = project.sandbox.stats()
    assert summary["images"] == project.rows
    assert (stats.accepted, stats.duplicates) == (project.rows, 0)
    project.check_that_everything_is_whole()


def home(project, name):
    folder = project.folder / f"dagster-{name}"
    folder.mkdir()
    return folder


def test_a_process_that_stood_still_while_another_finished_pays_nothing_twice(project):
    project = project(rows=30, latency_scale=1.0)
    sleeper = project.start("run", IDEOGRAM_MAX_IN_FLIGHT="4", DAGSTER_HOME=str(home(project, "sleeper")))
    wait_until(sleeper, lambda: project.ledger_files() >= 6)
    sleeper.send_signal(signal.SIGSTOP)
    try:
        project.sandbox.change(Change(latency_scale=0))
        project.run()
    finally:
        sleeper.send_signal(signal.SIGCONT)
    code, _ = project.finish(sleeper)
    assert code in (0, 3)
    summary = project.settle()
    stats = project.sandbox.stats()
    assert summary["images"] == project.rows
    assert (stats.accepted, stats.duplicates) == (project.rows, 0)
    project.check_that_everything_is_whole()

"""Several processes on one batch, processes that stand still."""

import signal

import pytest

from ideogram_pipeline.sandbox.control import Change

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def test_two_processes_on_one_batch_at_once_pay_every_row_once(project):
    project = project(rows=60, latency_scale=0.5)
    both = [project.start("run", DAGSTER_HOME=project.home(name)) for name in "ab"]
    for process in both:
        project.finish(process)
    summary = project.settle()
    project.check_that_every_row_was_paid_once(summary)


def test_a_process_that_stood_still_while_another_finished_pays_nothing_twice(project):
    project = project(rows=30, latency_scale=1.0)
    sleeper = project.start("run", IDEOGRAM_MAX_IN_FLIGHT="4", DAGSTER_HOME=project.home("sleeper"))
    project.wait_until(sleeper, lambda: len(project.ledger_files()) >= 6)
    sleeper.send_signal(signal.SIGSTOP)
    try:
        project.sandbox.change(Change(latency_scale=0))
        project.run()
    finally:
        sleeper.send_signal(signal.SIGCONT)
    code, _ = project.finish(sleeper)
    assert code in (0, 3)
    summary = project.settle()
    project.check_that_every_row_was_paid_once(summary)

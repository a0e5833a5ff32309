"""Runs and the receiver as processes of their own: delivered instead of asked for, and never paid twice."""

import signal
import socket

import pytest

from ideogram_pipeline.sandbox import Fault
from ideogram_pipeline.storage import Store

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


@pytest.fixture
def receiver(project):
    """Start the receiver of a project's store, on a port that it may be started on again."""
    started = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start(of, **environment):
        process = of.start("webhooks", "--port", str(port), IDEOGRAM_BACKEND="sandbox", **environment)
        started.append((of, process))
        assert process.stdout.readline().startswith("Receiver at ")
        return process

    start.settings = {"IDEOGRAM_BACKEND": "sandbox", "IDEOGRAM_WEBHOOK_URL": f"http://127.0.0.1:{port}"}
    yield start
    for of, process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            of.finish(process)


def test_what_is_delivered_costs_two_calls_to_fal_a_picture(project, receiver):
    project = project(rows=60, latency_scale=1.0)
    receiver(project)
    summary = project.run(**receiver.settings)
    project.check_that_every_row_was_paid_once(summary)
    stats = project.sandbox.stats()
    assert stats.submits == stats.downloads == 60
    assert stats.status_calls + stats.result_calls <= 2
    assert list(project.store.glob("inbox/batch=*/*")) == []


def test_in_s3_it_is_the_same(project, receiver, s3):
    project = project(rows=30, latency_scale=1.0)
    place = {"IDEOGRAM_STORE": f"s3://{s3.bucket()}/store"}
    receiver(project, **place)
    summary = project.run(**receiver.settings, **place)
    stats = project.sandbox.stats()
    assert (summary["images"], stats.accepted, stats.downloads) == (30, 30, 30)
    assert stats.status_calls + stats.result_calls <= 2
    store = Store.open(place["IDEOGRAM_STORE"])
    assert list(store.objects("inbox/batch=default")) == []
    assert [found.path for found in store.objects("") if b"planted-key-secret" in store.get(found.path)] == []
    project.check_that_the_key_is_nowhere()


def test_two_hosts_share_a_store_and_a_receiver_that_is_started_anew_meanwhile(project, receiver):
    project = project(rows=60, latency_scale=2.0)
    first = receiver(project)
    settings = {**receiver.settings, "IDEOGRAM_MAX_IN_FLIGHT": "10"}
    both = [project.start("run", DAGSTER_HOME=project.home(name), **settings) for name in "ab"]
    project.wait_until(both[0], lambda: project.sandbox.stats().webhooks >= 20)
    first.send_signal(signal.SIGTERM)
    project.finish(first)
    receiver(project)
    for process in both:
        project.finish(process)
    summary = project.run(**receiver.settings)
    project.check_that_every_row_was_paid_once(summary)


def test_a_receiver_that_is_never_there_costs_time_and_no_money(project, receiver):
    project = project(rows=20, latency_scale=0)
    summary = project.run(**receiver.settings)
    project.check_that_every_row_was_paid_once(summary)
    assert project.sandbox.stats().status_calls >= 20


def test_a_killed_run_and_lost_late_and_repeated_deliveries_pay_every_row_once(project, receiver):
    faults = (
        Fault("drop_after_accept", rate=0.1),
        Fault("webhook_lost", rate=0.1),
        Fault("webhook_late", rate=0.3),
        Fault("webhook_twice", rate=0.3),
    )
    project = project(rows=60, latency_scale=1.0, faults=faults)
    receiver(project)
    process = project.start("run", **receiver.settings)
    project.wait_until(process, lambda: len(project.ledger_files("settled")) >= 10)
    process.send_signal(signal.SIGKILL)
    project.finish(process)
    summary = project.settle(**receiver.settings)
    project.check_that_every_row_was_paid_once(summary)

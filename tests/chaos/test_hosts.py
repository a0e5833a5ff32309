"""Two hosts on one bucket: neither sees the other's processes, and nothing but the store tells them of each other."""

import subprocess
from decimal import Decimal

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

HOST = ("unshare", "-rpf", "--kill-child", "--mount-proc")
"""Starts a command as the first process of a container."""


@pytest.fixture
def hosts(project, s3):
    """Make a project in a bucket whose every command runs on a host of its own."""
    if (refused := subprocess.run([*HOST, "true"], capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"this machine lets nobody have processes of their own: {refused.stderr}")

    def make(rows, **sandbox):
        made = project(len(rows), **sandbox)
        made.write_rows(rows)
        made.within = HOST
        bucket = f"s3://{s3.bucket()}/pictures"
        return made, lambda name: {"IDEOGRAM_STORE": bucket, "DAGSTER_HOME": made.home(name)}

    return make


def test_two_hosts_that_backfill_the_same_batches_at_once_pay_every_row_once(hosts):
    table = [(f"p{number:02}", f"batch-{number // 15}", f"scene {number}") for number in range(60)]
    project, host = hosts(table, latency_scale=2)
    both = [project.start("run", "--json", **host(name)) for name in "ab"]
    summaries = [project.summary(project.finish(process)[1]) for process in both]
    assert all(summary["generated"] for summary in summaries)
    last = project.run(**host("c"))
    assert (last["images"], last["reused"], last["unknown"]) == (60, 60, 0)
    stats = project.sandbox.stats()
    assert (stats.submits, stats.accepted, stats.duplicates) == (60, 60, 0)
    assert sum(Decimal(str(summary["spent_usd"])) for summary in summaries) == stats.usd


def test_a_daily_budget_holds_over_two_hosts(hosts):
    line = Decimal(4)
    project, host = hosts(
        [(f"{batch}{number:02}", batch, f"scene {number}") for batch in "ab" for number in range(40)]
    )
    budget = {"IDEOGRAM_BUDGET_USD_PER_DAY": str(line)}
    both = [project.start("run", "--json", "--batch", name, **budget, **host(name)) for name in "ab"]
    summaries = [project.summary(project.finish(process)[1]) for process in both]
    assert all(summary["not_reached"] for summary in summaries)
    again = project.run(**budget, **host("c"))
    assert again["images"] < 80
    stats = project.sandbox.stats()
    assert stats.completed == stats.accepted == stats.submits
    dearest = Decimal("0.15")  # with less than that left a row may find no room
    assert line - dearest < stats.usd <= line

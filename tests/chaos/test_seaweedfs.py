"""Claims and whole runs on SeaweedFS, a real S3 server: of many who claim one wins, and every row is paid once."""

import subprocess
import sys
from itertools import chain

import pytest

from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.storage import Store
from ideogram_pipeline.store_mark import STORE_MARK, open_for_work
from tests.storage.races import check_that_one_wins_each

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


CLAIM_ALL = """
import sys
from ideogram_pipeline.storage import Store
store = Store.open(sys.argv[1])
store.exists("nothing")  # so that all is imported when the race starts
print("ready", flush=True)
sys.stdin.readline()
mine = sys.argv[2].encode()
print(*(number for number in range(100) if store.create(f"claims/{number}", mine)))
"""


@pytest.fixture
def url(s3):
    return f"s3://{s3.bucket()}/store"


def test_of_many_writers_at_once_one_wins_each_race(url):
    check_that_one_wins_each(Store.open(url), races=60)


def test_of_processes_that_claim_the_same_objects_one_wins_each(url):
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_ALL, url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for claimer in claimers:
        assert claimer.stdout.readline() == "ready\n"
    for claimer in claimers:
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    won = [claimer.communicate()[0].split() for claimer in claimers]
    assert sorted(chain(*won), key=int) == [str(number) for number in range(100)]


def test_its_claims_are_proven_once_for_fal(url):
    opened = open_for_work(url, "fal", "")
    assert [found.path for found in opened.objects("")] == [STORE_MARK]
    assert open_for_work(url, "fal", "").requests == {"read": 1}


def check_that_every_row_was_paid_once(project, url, summary, *, signed=True):
    stats = project.sandbox.stats()
    assert (summary["images"], summary["unknown"]) == (project.rows, 0)
    assert (stats.submits, stats.accepted, stats.duplicates) == (project.rows, project.rows, 0)
    assert {entry.state for entry in Ledger(Store.open(url), "default").entries.values()} == {"generated"}
    assert stats.uploads == 0 or not signed  # fal has read the references by signed URLs


def test_a_run_pays_every_row_once_and_the_next_one_nothing(project, url):
    project = project(rows=40, latency_scale=0.2)
    check_that_every_row_was_paid_once(project, url, project.run(IDEOGRAM_STORE=url))
    again = project.run(IDEOGRAM_STORE=url)
    check_that_every_row_was_paid_once(project, url, again)
    assert (again["reused"], again["spent_usd"]) == (project.rows, 0)


def test_two_runs_at_once_on_one_batch_pay_every_row_once(project, url):
    project = project(rows=60, latency_scale=0.5)
    both = [project.start("run", IDEOGRAM_STORE=url, DAGSTER_HOME=project.home(name)) for name in "ab"]
    for process in both:
        code, _ = project.finish(process)
        assert code in (0, 3), project.output[-1]
    check_that_every_row_was_paid_once(project, url, project.run(IDEOGRAM_STORE=url))


def test_two_runs_at_once_on_a_store_without_conditional_writes_are_refused_before_anything_is_paid(
    project, s3, moto, wire_to
):
    url = f"s3://{moto.bucket()}/store"
    wire = wire_to(moto)  # SeaweedFS would miss the signed header that the wire takes away
    wire.fail("overwrite", "PUT", times=float("inf"))
    project = project(rows=10)
    both = [project.start("run", IDEOGRAM_STORE=url, DAGSTER_HOME=project.home(name)) for name in "ab"]
    for process in both:
        code, _ = project.finish(process)
        said = project.output[-1].strip().splitlines()[-1]
        assert code == 2
        assert said.startswith(
            f"error: The store {url!r} at {wire.url} does not refuse to create what exists"
        )
    assert project.sandbox.stats().submits == 0
    assert [found.path for found in Store.open(url).objects("")] == [STORE_MARK]

"""What people do after runs: reconcile and rebuild, as commands on a real store."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from typer.testing import CliRunner

from ideogram_pipeline.cli import app
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.sandbox.control import Change

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()"]


class Project:
    """Five rows, a standing sandbox, and the command run on them."""

    def __init__(self, folder, sandbox):
        self.store = folder / "store"
        self.sandbox = sandbox
        (folder / "prompts.csv").write_text(
            "prompt_id,prompt\n" + "".join(f"p{n},scene {n}\n" for n in range(5))
        )
        (folder / "references.csv").write_text("reference_id,uri\n")
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("IDEOGRAM_", "FAL_"))
        }
        kept.pop("DAGSTER_HOME", None)
        self.environment = {
            **kept,
            "FAL_QUEUE_URL": sandbox.url,
            "IDEOGRAM_STORE": str(self.store),
            "IDEOGRAM_PROMPTS": str(folder / "prompts.csv"),
            "IDEOGRAM_REFERENCES": str(folder / "references.csv"),
        }

    def start(self, *arguments):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*COMMAND, *arguments], env=self.environment, text=True, **pipes)

    def __call__(self, *arguments):
        process = self.start(*arguments)
        out, _ = process.communicate()
        return process.returncode, out

    def run(self):
        code, out = self("run", "--json")
        return code, json.loads(out.splitlines()[-1])


@pytest.fixture
def project(tmp_path):
    with running_sandbox(SandboxSettings(latency_scale=0)) as sandbox:
        yield Project(tmp_path, sandbox)


def tables(store):
    """Everything that is derived and has rows, by its path."""
    paths = [
        path for folder in ("images", "outcomes", "catalog") for path in (store / folder).rglob("*.parquet")
    ]
    return {path.relative_to(store): pd.read_parquet(path) for path in paths}


def test_what_is_derived_is_rebuilt_from_ledger_and_pictures_alone(project):
    project.run()
    before = tables(project.store)
    pages = sorted(path for path in (project.store / "gallery").rglob("*.*"))
    for path in [*before, *(page.relative_to(project.store) for page in pages)]:
        (project.store / path).unlink()
    (plan,) = (project.store / "plans" / "batch=default").iterdir()
    plan.unlink()
    code, out = project("rebuild")
    assert (code, "default: 5 rows, 5 pictures" in out) == (0, True)
    after = tables(project.store)
    assert set(after) == set(before)
    for path, frame in after.items():
        pd.testing.assert_frame_equal(frame, before[path])
    assert sorted(path for path in (project.store / "gallery").rglob("*.*")) == pages
    assert project.sandbox.stats().submits == 5


def test_rebuilding_names_the_pictures_that_are_damaged(project):
    project.run()
    picture = next((project.store / "images").rglob("p3-*.png"))
    picture.write_bytes(picture.read_bytes()[:-100])
    code, out = project("rebuild")
    assert code == 3
    assert picture.name in out


def test_a_submit_that_was_never_sent_waits_for_a_persons_choice(project):
    project.sandbox.change(Change(faults=(Fault("drop_before_accept", match="scene 2"),)))
    code, summary = project.run()
    assert (code, summary["generated"], summary["unknown"]) == (3, 4, 1)

    code, out = project("reconcile")
    assert code == 3
    assert "p2" in out
    assert "still unknown" in out
    assert project("reconcile", "--resubmit-unknown-after", "1d")[0] == 3
    assert project.run()[1]["unknown"] == 1

    code, out = project("reconcile", "--resubmit-unknown-after", "0s")
    assert code == 0
    assert "$0.06" in out
    code, summary = project.run()
    assert (code, summary["generated"], summary["reused"]) == (0, 1, 4)
    assert project.sandbox.stats().accepted == 5


def test_a_killed_runs_unanswered_submits_are_found_and_fetched_without_paying_again(project):
    project.sandbox.change(Change(latency_scale=4))
    process = project.start("run")
    while len(list(project.store.glob("ledger/batch=default/*/1-submitted.json"))) < 5:
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for path in project.store.glob("ledger/batch=default/*/1-submitted.json"):
        path.unlink()  # as if the kill had come between fal's answer and the ledger
    while project.sandbox.stats().completed < 5:
        pass  # fal lists what has ended, and nothing before
    code, out = project("reconcile")
    assert out.count("found as") == project.sandbox.stats().accepted == 5
    project.sandbox.change(Change(latency_scale=0))
    project("reconcile", "--resubmit-unknown-after", "0s")
    code, summary = project.run()
    assert (code, summary["images"]) == (0, 5)
    assert project.sandbox.stats().accepted == 5


def costs(store):
    """The costs and their sources in everything that is derived, by its path."""
    return {
        path: list(zip(frame["cost_usd"], frame["cost_source"], strict=True))
        for path, frame in tables(store).items()
    }


def test_what_fal_charged_takes_the_place_of_the_list_price_everywhere_at_once(project):
    project.run()
    code, out = project("reconcile")
    assert code == 0
    assert "default: fal charged $0.30 of sandbox money for 5 of 5 requests; $0.30 was expected\n" in out
    after = costs(project.store)
    assert {cost for rows in after.values() for cost in rows} == {(0.06, "billing_event")}
    assert sorted(len(rows) for rows in after.values()) == [5, 5, 5]
    gallery = {page: page.read_bytes() for page in (project.store / "gallery").rglob("*.html")}
    for command in ("rebuild", "run"):
        project(command)
        assert costs(project.store) == after, command
    assert {page: page.read_bytes() for page in gallery} == gallery
    assert project.sandbox.stats().submits == 5


def test_bills_that_cannot_be_read_or_are_not_there_leave_costs_alone_and_a_difference_is_told(
    project, billing_desk
):
    project.run()
    before = costs(project.store)
    project.environment["FAL_API_URL"] = billing_desk.url

    billing_desk.status = 403
    code, out = project("reconcile")
    told, count = out.splitlines()
    assert code == 0
    assert "bills could not be read" in told
    assert "ADMIN" in told
    assert count.startswith("0 submits were never answered")

    billing_desk.status = 200
    _, out = project("reconcile")
    assert "default: fal lists no charge for any of 5 requests yet" in out
    assert list(project.store.glob("ledger/*/*/*-billed.json")) == []
    assert costs(project.store) == before

    for number, request in enumerate(project.sandbox.requests()):
        billing_desk.book(request.request_id, cost_total=0.07 if number else 0.05)
    _, out = project("reconcile")
    assert "fal charged $0.33 of sandbox money for 5 of 5 requests; $0.30 was expected: $0.0300 more" in out


@pytest.mark.parametrize("text", ["2", "h", "2w", "-1h", "1.5h"])
def test_a_duration_that_is_none_is_refused(text):
    ended = CliRunner().invoke(app, ["reconcile", f"--resubmit-unknown-after={text}"])
    assert isinstance(ended.exception, ConfigurationError)
    assert text in str(ended.exception)

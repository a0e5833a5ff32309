"""What people do after runs: reconcile and rebuild, as commands on a real store."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

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


@pytest.mark.parametrize(
    "text", ["2", "h", "2w", "-1h", "1.5h", "99999999d", "99999999999999d", f"{'9' * 5000}s"]
)
def test_a_duration_that_is_none_is_refused(text):
    ended = CliRunner().invoke(app, ["reconcile", f"--resubmit-unknown-after={text}"])
    assert isinstance(ended.exception, ConfigurationError)
    assert text in str(ended.exception)


def test_the_ledger_folder_is_gone_and_no_run_pays_before_it_was_adopted(project):
    project.run()
    shutil.rmtree(project.store / "ledger")
    ended = project.start("run")
    _, err = ended.communicate()
    assert ended.returncode == 2
    assert "lacks 5 requests" in err
    assert "reconcile --adopt" in err
    _, planned = project("plan")
    assert "a run would refuse: The ledger of the batch 'default' lacks 5 requests" in planned
    assert "reconcile --adopt" in planned
    assert "A run would cost" not in planned
    assert len(json.loads(project("plan", "--json")[1].splitlines()[-1])["lost_ledgers"]) == 1
    code, out = project("doctor")
    assert code == 2
    assert "bad  ledger: The ledger of the batch 'default' lacks 5 requests" in out
    assert project("rebuild")[0] == 2, "a ledger that is gone is not whole"

    code, out = project("reconcile", "--adopt")
    assert (code, out.count("from metadata.parquet; its pictures are there")) == (0, 5)
    assert "5 requests were entered into the ledger.\n" in out
    code, summary = project.run()
    assert (code, summary["reused"], summary["images"]) == (0, 5, 5)
    assert project("doctor")[0] == 0
    assert project.sandbox.stats().submits == 5


def test_one_lost_ledger_keeps_a_run_from_submitting_anything_of_the_other_batches(project):
    prompts = Path(project.environment["IDEOGRAM_PROMPTS"])
    prompts.write_text("prompt_id,prompt,batch\na,a lighthouse,one\nb,a harbour,two\n")
    project.run()
    shutil.rmtree(project.store / "ledger" / "batch=two")
    with prompts.open("a") as table:
        table.write("c,a ship,one\n")
    assert project("run")[0] == 2
    assert project.sandbox.stats().submits == 2
    assert project("rebuild")[0] == 2
    assert project("reconcile", "--adopt", "--batch", "one")[0] == 0
    assert project("run", "--batch", "one")[0] == 0
    assert project("run")[0] == 2
    assert project("reconcile", "--adopt")[0] == 0
    assert project("run")[0] == 0
    assert project.sandbox.stats().submits == 3


def test_a_part_of_a_ledger_is_gone_and_rebuild_overwrites_nothing_that_tells_of_it(project):
    project.run()
    shutil.rmtree(next((project.store / "ledger" / "batch=default").iterdir()))
    before = tables(project.store)
    assert project("rebuild")[0] == 2
    for path, frame in tables(project.store).items():
        pd.testing.assert_frame_equal(frame, before[path])


def test_a_list_that_is_cut_short_exits_3(project, serve):
    async def cut_short(scope, receive, send):
        body = b'{"items": [], "billing_events": [], "next_cursor": null, "has_more": true}'
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    project.environment["FAL_API_URL"] = serve(cut_short)
    code, out = project("reconcile", "--adopt")
    assert code == 3
    assert "open: fal's list of fal-ai/ideogram/v3 from " in out
    assert "is cut short" in out
    assert "5 rows were not found: they are new, fal no longer lists them, or what is open hides them." in out


def hung(project):
    """Leave five rows with fal that no live run works on: the first runs and never ends, the others wait behind it."""
    project.sandbox.change(Change(faults=(Fault("stuck"),), concurrency=1))
    process = project.start("run")
    while len(list(project.store.glob("ledger/batch=default/*/1-submitted.json"))) < 5:
        assert process.poll() is None, process.communicate()
    live, said = project("cancel", "--yes")
    assert (live, said.count("left alone"), project.sandbox.stats().cancels) == (3, 5, 0)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_request_that_never_ends_can_be_cancelled(project):
    hung(project)
    code, out = project("cancel")
    assert (code, out.count("with fal since"), project.sandbox.stats().cancels) == (2, 5, 0)
    assert project("cancel", "--older-than", "1h") == (0, "Nothing has been with fal for that long.\n")
    code, out = project("cancel", "--yes")
    assert code == 3
    assert "4 requests were cancelled, at no cost; 1 is still open.\n" in out
    project.sandbox.change(Change(faults=()))
    code, summary = project.run()
    assert (code, summary["generated"]) == (0, 5)
    assert project("cancel") == (0, "Nothing is with fal.\n")
    assert project.sandbox.stats().accepted == 10


@pytest.mark.parametrize("command", ["cancel", "reconcile"])
def test_a_batch_that_the_ledger_lacks_is_named_and_not_taken_for_one_where_nothing_is_open(project, command):
    project.run()
    ended = project.start(command, "--batch", "defualt")
    _, err = ended.communicate()
    assert ended.returncode == 2
    assert "No request of the batch 'defualt' is in the ledger; it has those of default." in err


def test_a_run_says_how_long_the_oldest_request_has_waited_and_what_can_be_done(project):
    project.sandbox.change(Change(faults=(Fault("stuck", match="scene 3"),)))
    project.environment["IDEOGRAM_MAX_WAIT_S"] = "3"
    code, out = project("run")
    [line] = [line for line in out.splitlines() if line.startswith("waiting: ")]
    assert code == 3
    assert "the oldest request with fal is default, p3: " in line
    assert "`ideogram-pipeline cancel`" in line


def test_outcomes_and_gallery_say_at_once_what_was_cancelled_and_given_up(project):
    """Incident: they went on saying "still with fal" until the next run."""
    project.sandbox.change(Change(faults=(Fault("stuck"),), concurrency=1))
    project.environment["IDEOGRAM_MAX_WAIT_S"] = "3"
    assert project("run")[0] == 3

    def reasons():
        rows = pd.read_parquet(project.store / "outcomes" / "batch=default" / "outcomes.parquet")
        return Counter(re.sub(r"^[0-9a-f-]{36}", "id", reason) for reason in rows["reason"])

    assert reasons() == {"id is still with fal; the next run fetches it": 5}
    _, out = project("cancel", "--yes")
    assert "4 requests were cancelled, at no cost; 1 is still open.\n" in out
    cancelled = {"cancelled by hand before it started": 4}
    assert reasons() == {"id is still with fal; the next run fetches it": 1, **cancelled}
    page = (project.store / "gallery" / "batch=default" / "index.html").read_text()
    assert page.count("cancelled by hand before it started") == 4
    assert page.count("is still with fal") == 1
    assert project("reconcile", "--give-up")[0] == 0
    project.sandbox.change(Change(faults=()))
    assert project.run()[1]["generated"] == 5


def test_what_hangs_at_fal_is_given_up_by_a_persons_word(project):
    hung(project)
    assert project("reconcile", "--give-up", "--older-than", "1h")[0] == 0
    assert project.sandbox.stats().cancels == 0
    code, out = project("reconcile", "--give-up")
    assert code == 0
    assert out.count("cancelled at fal, at no cost") == 4
    assert out.count("fal says how it ended: the next run records it") == 1


@pytest.mark.parametrize(
    "options",
    [["--older-than=1h"], ["--give-up", "--resubmit-unknown-after=1h"], ["--give-up", "--older-than=x"]],
)
def test_a_persons_word_has_to_be_clear(options):
    ended = CliRunner().invoke(app, ["reconcile", *options])
    assert isinstance(ended.exception, ConfigurationError)


def test_a_bad_ledger_file_makes_its_row_unknown_and_the_others_are_made(project):
    project.run()
    path = next(project.store.glob("ledger/batch=default/*/1-reserved.json"))
    path.write_bytes(path.read_bytes()[:-10])
    prompts = project.store.parent / "prompts.csv"
    prompts.write_text(prompts.read_text() + "p5,scene 5\n")
    code, summary = project.run()
    assert (code, summary["unknown"], summary["reused"], summary["generated"]) == (3, 1, 4, 1)
    outcomes = pd.read_parquet(project.store / "outcomes", partitioning=None)
    assert str(path) in outcomes[outcomes.state == "unknown"].reason.item()
    for command, expected in {"reconcile": 3, "rebuild": 3, "doctor": 2}.items():
        code, out = project(command)
        assert (code, str(path) in out) == (expected, True), command
    assert project.sandbox.stats().accepted == 6


def damaged(store):
    """Leave every derived file of a store empty, cut or overwritten; return their paths."""
    folders = ("catalog", "gallery", "lineage", "outcomes", "plans", "run_plans", "ledger_copies")
    found = [path for folder in folders for path in (store / folder).rglob("*") if path.is_file()]
    found += [store / "catalog.json", *store.glob("images/*/metadata.parquet")]
    for number, path in enumerate(sorted(found)):
        content = path.read_bytes()
        path.write_bytes([b"", content[: len(content) // 2], b"nonsense"][number % 3])
    return found


def test_derived_files_that_are_damaged_are_made_anew_by_the_next_run(project):
    prompts = project.store.parent / "prompts.csv"
    prompts.write_text("prompt_id,prompt,batch\n" + "".join(f"p{n},scene {n},b{n % 3}\n" for n in range(5)))
    project.run()
    before = tables(project.store)
    assert len(damaged(project.store)) > 20
    process = project.start(
        "run", "--batch", "b1", "--json"
    )  # what is damaged of the others is found by publishing
    _, err = process.communicate()
    assert (process.returncode, "Traceback" in err) == (0, False), err
    after = tables(project.store)
    assert set(after) == set(before)
    for path, frame in after.items():
        pd.testing.assert_frame_equal(frame, before[path])
    assert project.sandbox.stats().submits == 5


@pytest.mark.parametrize("command", ["rebuild", "reconcile"])
def test_derived_files_that_are_damaged_stop_no_command(project, command):
    project.run()
    before = tables(project.store)
    damaged(project.store)
    assert project(command)[0] == 0
    assert project("rebuild")[0] == 0
    assert {path: len(frame) for path, frame in tables(project.store).items()} == {
        path: len(frame) for path, frame in before.items()
    }

"""The command as people type it: real processes, their output, exit codes and what they leave behind."""

import csv
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from ideogram_pipeline.cli import app

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()"]
KEYS = [
    "rows", "generated", "reused", "rejected", "refused", "failed", "unknown", "not_reached", "left_out",
    "images", "spent_usd", "estimated_usd", "seconds", "store",
]  # fmt: skip


class Project:
    """A folder with tables, and the command run in it."""

    def __init__(self, folder):
        self.folder = folder
        self.store = folder / "var"
        keep = {
            name: value for name, value in os.environ.items() if not name.startswith(("IDEOGRAM_", "FAL_"))
        }
        keep.pop("DAGSTER_HOME", None)
        self.environment = {**keep, "HOME": str(folder / "home"), "SANDBOX_LATENCY_SCALE": "0"}
        (folder / "data").mkdir()
        (folder / "data" / "references.csv").write_text("reference_id,uri\n")
        self.write({"prompt_id": f"p{number}", "prompt": f"scene {number}"} for number in range(3))

    def write(self, rows):
        rows = list(rows)
        with (self.folder / "data" / "prompts.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def start(self, *arguments, **environment):
        return subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments, **environment):
        process = self.start(*arguments, **environment)
        out, err = process.communicate()
        return process.returncode, out, err

    def submits(self):
        with sqlite3.connect(self.store / "sandbox" / "state.sqlite") as state:
            return state.execute("select count(*) from requests").fetchone()[0]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def test_a_run_does_without_pandas(project):
    """Loading it takes 30 MB and a tenth of a small run's time; pyarrow does so as soon as it is given an object."""
    said = "import sys\nfrom ideogram_pipeline.cli import main\ntry: main()\nfinally: print([*sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", said, "run"],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'pyarrow.parquet'" in ended.stdout
    assert "'pandas'" not in ended.stdout


@pytest.mark.parametrize("command", [[], ["run"], ["plan"], ["sandbox"], ["doctor"], ["webhooks"]])
def test_every_command_has_help(command):
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert "--help" in shown.stdout


def test_help_is_wrapped_to_the_terminal_and_not_to_the_source(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(app, ["reconcile", "--help"]).stdout
    about, _, _ = shown.partition("╭─ Options")
    paragraphs = [part.splitlines() for part in re.split(r"\n\s*\n", about.strip())]
    lines = [(line.split(), after.split()[0]) for part in paragraphs for line, after in pairwise(part)]
    assert len(lines) > 8
    assert [words for words, after in lines if len(" ".join([*words, after])) < 70] == []


def test_every_command_stands_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    for command in app.registered_commands:
        assert f"`ideogram-pipeline {command.callback.__name__}" in readme


def test_every_option_stands_in_the_readme():
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `ideogram-")]
    for name, command in typer.main.get_command(app).commands.items():
        (row,) = [row for row in rows if row.startswith(f"| `ideogram-pipeline {name}")]
        options = [
            option for parameter in command.params for option in parameter.opts if option.startswith("--")
        ]
        assert [option for option in options if option != "--help" and option not in row] == [], name
        assert all(parameter.help for parameter in command.params)


@pytest.mark.slow
def test_a_run_makes_every_picture_and_a_second_one_pays_for_nothing(project):
    code, out, _err = project("run", "--json")
    first = json.loads(out.splitlines()[-1])
    assert (code, list(first)) == (0, KEYS)
    assert (first["rows"], first["generated"], first["images"]) == (3, 3, 3)
    assert first["spent_usd"] == first["estimated_usd"] == pytest.approx(0.18)
    assert project.submits() == 3

    code, out, _err = project("run")
    assert code == 0
    assert "nothing was paid" in out
    assert project.submits() == 3
    assert len(pd.read_parquet(project.store / "catalog")) == 3
    assert not (project.folder / "home").exists(), "something was written outside of the project"
    assert {entry.name for entry in project.folder.iterdir()} == {"data", "var"}


@pytest.mark.slow
def test_a_run_with_rows_that_end_otherwise_exits_with_3_and_says_where_the_reasons_are(project):
    project.write(
        [
            {"prompt_id": "good", "prompt": "a lighthouse", "num_images": "1"},
            {"prompt_id": "bad", "prompt": "a harbour", "num_images": "9"},
            {"prompt_id": "../../escape", "prompt": "a storm", "num_images": "1"},
        ]
    )
    code, out, _err = project("run")
    assert code == 3
    assert "2 rejected" in out
    assert "outcomes" in out
    outcomes = pd.read_parquet(project.store / "outcomes", partitioning=None)
    reasons = dict(zip(outcomes["prompt_id"], outcomes["reason"], strict=True))
    assert "num_images" in reasons["bad"]
    assert "prompt_id" in reasons["../../escape"]
    assert not list(project.folder.rglob("*escape*"))


@pytest.mark.slow
def test_only_the_batches_named_are_run(project):
    project.write({"prompt_id": f"p{number}", "prompt": "x", "batch": f"b{number}"} for number in range(3))
    code, out, _err = project("run", "--batch", "b0", "--batch", "b2", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 2)
    assert sorted(entry.name for entry in (project.store / "images").iterdir()) == ["batch=b0", "batch=b2"]


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["run"], {"IDEOGRAM_BACKEND": "fal"}, "FAL_KEY"),
        (["plan"], {"IDEOGRAM_BACKEND": "fal"}, "FAL_KEY"),
        (["run"], {"IDEOGRAM_BACKEND": "sandbax"}, "IDEOGRAM_BACKEND"),
        (["run"], {"IDEOGRAM_MAX_IN_FLIGHT": "none"}, "IDEOGRAM_MAX_IN_FLIGHT"),
        (["run"], {"IDEOGRAM_PROMPTS": "missing.csv"}, "missing.csv"),
        (["run", "--batch", "nope"], {}, "nope"),
        (["plan", "--batch", "nope"], {}, "nope"),
        (["run", "--max-spend", "0"], {}, "--max-spend"),
        (["run"], {"IDEOGRAM_MAX_FAILED_FRACTION": "2"}, "IDEOGRAM_MAX_FAILED_FRACTION"),
        (["run"], {"FAL_QUEUE_URL": "https://queue.fal.run"}, "FAL_QUEUE_URL"),
    ],
)
def test_bad_usage_is_one_line_that_names_what_to_mend(project, arguments, environment, named):
    code, _out, err = project(*arguments, **environment)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error:")
    assert named in line


def test_without_a_key_nothing_is_read_or_written(project):
    project("run", IDEOGRAM_BACKEND="fal", IDEOGRAM_PROMPTS="missing.csv")
    assert not project.store.exists()


@pytest.mark.slow
def test_a_plan_tells_the_price_and_writes_nothing(project):
    code, out, _err = project("plan", "--json")
    assert code == 0
    plan = json.loads(out.splitlines()[-1])
    assert (plan["rows"], plan["new"], plan["estimated_usd"]) == (3, 3, pytest.approx(0.18))
    assert not project.store.exists()
    project("run")
    assert json.loads(project("plan", "--json")[1])["batches"][0]["reused"] == 3


@pytest.mark.slow
def test_a_new_take_is_priced_by_the_plan_and_paid_by_the_run_that_asks_for_it(project):
    project("run")
    plan = json.loads(project("plan", "--regenerate", "--limit", "2", "--json")[1])
    assert (plan["new"], plan["estimated_usd"]) == (2, pytest.approx(0.12))
    assert project.submits() == 3
    code, out, _err = project("run", "--regenerate", "--limit", "2", "--json")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["generated"], summary["reused"]) == (0, 2, 1)
    assert summary["spent_usd"] == pytest.approx(0.12)
    assert project.submits() == 5
    assert project("run")[0] == 0
    assert project.submits() == 5
    metadata = pd.read_parquet(project.store / "catalog")
    assert sorted(metadata[metadata["current"]]["take"]) == [0, 1, 1]


@pytest.mark.slow
def test_a_run_spends_no_more_than_it_was_told_and_publishes_all_the_same(project):
    code, out, err = project("run", "--max-spend", "0.10", "--json")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["generated"], summary["not_reached"]) == (3, 1, 2)
    assert "Traceback" not in err
    assert (project.store / "gallery" / "index.html").is_file()
    code, out, _err = project("run", "--only-failed", "--json")
    assert (code, json.loads(out.splitlines()[-1])["generated"]) == (0, 2)
    assert project.submits() == 3


@pytest.mark.slow
def test_a_batch_that_fails_does_not_keep_the_next_from_being_run(project):
    rows = [{"prompt_id": name, "prompt": "x", "batch": name, "num_images": "1"} for name in "ab"]
    project.write([rows[0] | {"num_images": "9"}, rows[1]])
    code, out, _err = project("run", "--json")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["rejected"], summary["generated"]) == (3, 1, 1)


@pytest.mark.slow
def test_an_interrupted_run_exits_with_130_and_the_next_one_pays_nothing_twice(project):
    process = project.start("run", SANDBOX_LATENCY_SCALE="8")
    while not list(project.folder.glob("var/ledger/batch=default/*/1-submitted.json")):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    code, _out, err = project("run", "--json", SANDBOX_LATENCY_SCALE="0")
    assert code == 0
    assert project.submits() == 3


@pytest.mark.slow
def test_a_picture_is_asked_for_again_as_a_new_take_after_a_person_has_agreed(project):
    project("run")
    code, out, err = project("replay", "p1", "--send")
    assert (code, project.submits()) == (2, 3)
    assert "take 1 of p1 in the batch default: 1 picture for $0.06 of sandbox money" in out
    assert "Add --yes" in err
    code, out, _err = project("replay", "p1", "--send", "--yes")
    assert (code, project.submits()) == (0, 4)
    metadata = pd.read_parquet(project.store / "images" / "batch=default" / "metadata.parquet")
    takes = metadata[metadata.prompt_id == "p1"].sort_values("take")
    assert list(takes["take"]) == [0, 1]
    assert list(takes["prompt"]) == ["scene 1"] * 2
    assert takes["seed"].nunique() == 2

    project.write({"prompt_id": f"p{number}", "prompt": "another scene"} for number in range(3))
    code, _out, err = project("replay", "p1", "--send", "--yes")
    assert (code, project.submits()) == (2, 4)
    assert "asks for something else in the table now" in err


@pytest.mark.slow
def test_a_row_that_is_no_longer_in_the_table_gets_no_further_take(project):
    project("run")
    project.write([{"prompt_id": "p9", "prompt": "added"}])
    code, _out, err = project("replay", "p1", "--send", "--yes")
    assert (code, project.submits()) == (2, 3)
    assert "No row of the batch 'default' is called 'p1'" in err


@pytest.mark.slow
def test_a_development_certificate_signs_what_verify_then_trusts(project):
    code, _out, err = project("certificate", "keys")
    assert (code, (project.folder / "keys").exists()) == (2, False)
    assert "say --development" in err
    code, out, _err = project("certificate", "--development", "keys")
    assert code == 0
    signing = dict(re.findall(r"export (IDEOGRAM_C2PA_\w+)=(\S+)", out))
    (anchors,) = re.findall(r"--anchors (\S+)", out)
    assert project("certificate", "--development", "keys")[0] == 2
    assert "signs valid Content Credentials" in project("doctor", **signing)[1]
    code, out, _err = project("doctor", **signing, IDEOGRAM_C2PA_TSA_URL="http://127.0.0.1:9/")
    assert "IDEOGRAM_C2PA_TSA_URL brings no time stamp" in out
    assert project("run", **signing)[0] == 0
    code, out, _err = project("verify", "--json", "--anchors", anchors, str(project.store / "images"))
    states = [json.loads(line)["credentials"]["state"] for line in out.splitlines()]
    assert (code, states) == (0, ["trusted"] * 3)


@pytest.mark.slow
def test_the_doctor_finds_a_healthy_project_healthy_and_names_what_is_not(project):
    code, out, _err = project("doctor")
    assert (code, out.count("bad ")) == (0, 0)
    code, out, _err = project("doctor", IDEOGRAM_PROMPTS="missing.csv")
    assert code == 2
    assert "missing.csv" in out


@pytest.mark.slow
def test_plan_and_doctor_say_that_a_budget_would_stop_the_run(project):
    code, out, _err = project("plan", IDEOGRAM_BUDGET_USD="0.01")
    assert code == 0
    assert "It would stop before that: the budgets leave $0.01" in out
    code, out, _err = project("doctor", IDEOGRAM_BUDGET_USD="0.01")
    assert code == 2
    assert "Raise IDEOGRAM_BUDGET_USD" in out
    _code, out, _err = project("plan", IDEOGRAM_BUDGET_USD="1000")
    assert "would stop" not in out


@pytest.mark.slow
def test_the_doctor_counts_rows_that_only_the_plan_rejects_and_names_hosts_that_are_away(project):
    project.write([{"prompt_id": "a", "prompt": "x", "style": "NO_SUCH_STYLE"}])
    code, out, _err = project("doctor")
    assert code == 2
    assert "1 of 1 rows can't be sent" in out
    assert "queue host" in out
    assert "clock: within" in out
    code, out, _err = project("doctor", FAL_QUEUE_URL="http://127.0.0.1:9")
    assert code == 2
    assert "http://127.0.0.1:9 can't be reached" in out


def test_the_sample_data_is_valid_and_has_two_characters_in_three_batches():
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("IDEOGRAM_", "FAL_"))
    }
    done = subprocess.run(
        [*COMMAND, "plan", "--json"],
        cwd=ROOT,
        env={**environment, "IDEOGRAM_STORE": "memory://"},
        capture_output=True,
        text=True,
        check=True,
    )
    plan = json.loads(done.stdout)
    assert plan["rows"] == plan["new"] == 36
    assert len(plan["batches"]) == 3
    prompts = pd.read_csv(ROOT / "data" / "prompts.csv")
    assert prompts["reference_id"].nunique() == 2

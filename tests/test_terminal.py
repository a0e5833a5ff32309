"""Whole commands over what others wrote: markup, escape sequences, line breaks, overrides of direction, long texts.

Each stands in a header, in cells, in a reference, in a review, in a path, in a variable and in fal's reasons.
"""

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys

import dagster as dg
import pytest

from ideogram_pipeline import cli, logs
from ideogram_pipeline.sandbox import Fault, SandboxSettings, create_app

SEQUENCE = "\x1b[31mred\x1b]0;title\x07\x9b1m"
NASTY = (
    f"[bold]x[/] [/] \\[ :cat: {SEQUENCE} \u202egnp.exe\u2066 one\r\nforged: line\u2028two "
    "![i](https://evil.example/x.png) <b>b</b> =cmd()"
)
LONG = f"{NASTY} https://me:secret@host.example/?sig=secret {'long ' * 2000}"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
CHECKED = "The content could not be processed: flagged by a content checker."


def saying(words):
    """A sandbox whose refusals are in other words."""
    app = create_app(SandboxSettings(latency_scale=0, faults=(Fault("policy_refusal", match="refused"),)))
    quoted = json.dumps(words)[1:-1].encode()

    async def reworded(scope, receive, send):
        started = {}

        async def answer(message):
            if message["type"] == "http.response.start":
                started.update(message)
                return
            body = message.get("body", b"").replace(CHECKED.encode(), quoted)
            if started:
                kept = [(name, value) for name, value in started["headers"] if name != b"content-length"]
                length = [] if message.get("more_body") else [(b"content-length", str(len(body)).encode())]
                await send({**started, "headers": [*kept, *length]})
                started.clear()
            await send({**message, "body": body})

        await app(scope, receive, answer if scope["type"] == "http" else send)

    return reworded


class Command:
    """The command in this process; what it printed is held against what a terminal would obey."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments):
        self.monkeypatch.setattr(sys, "argv", ["ideogram-pipeline", *arguments])
        self.capsys.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        self.out, self.err = self.capsys.readouterr()
        printed = self.out + self.err
        assert not OBEYED.findall(printed), arguments
        assert {"json", "--json"} & {*arguments} or "secret" not in printed, arguments
        assert not [line for line in printed.splitlines() if line.startswith("forged")], arguments
        assert "Traceback" not in printed, arguments
        return code


@pytest.fixture
def command(monkeypatch, capsys):
    yield Command(monkeypatch, capsys)
    logs.configure("off")


def table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Tables in which others wrote all of it, in a folder with a name of that kind."""
    folder = tmp_path / "[bold] [red] \\ :cat:"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith(("IDEOGRAM_", "FAL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("IDEOGRAM_PROMPTS", str(folder / "prompts.csv"))
    monkeypatch.setenv("IDEOGRAM_REFERENCES", str(folder / "references.csv"))
    monkeypatch.setenv("IDEOGRAM_STORE", str(folder / "store"))
    table(
        folder / "references.csv",
        [("reference_id", "uri", "notes"), ("ada", f"{LONG}.png", LONG), (LONG, "a.png", LONG)],
    )
    table(
        folder / "prompts.csv",
        [
            ("prompt_id", "prompt", "num_images", "reference_id", f"note {NASTY}", "[/] \\"),
            ("good", f"a lighthouse {NASTY}", "", "", LONG, NASTY),
            ("refused-1", "refused", "", "", LONG, ""),
            ("refused-2", "also refused", "", "", "", ""),
            ("number", "a storm", LONG, "", "", ""),
            ("unknown", "a storm", "", LONG, "", ""),
            ("rejected", "a storm", "", "ada", "", ""),
            (LONG, "a storm", "", "", "", ""),
        ],
    )
    return folder


@pytest.mark.parametrize(
    "header", ["[/]", "\\[/b]", NASTY.replace("\r\n", " ")], ids=["tag", "backslash", "all"]
)
def test_a_header_of_markup_and_backslashes_crashes_no_plan(folder, command, header):
    table(folder / "prompts.csv", [("prompt_id", "prompt", header), ("a", "a lighthouse", "x")])
    table(folder / "references.csv", [("reference_id", "uri", header)])
    assert command("plan") in (0, 3)
    table(folder / "prompts.csv", [("prompt_id", header, header), ("a", "a lighthouse", "x")])
    assert command("plan") == 2
    assert header[:3] in command.err


@pytest.mark.parametrize(
    "variable", ["IDEOGRAM_PROMPTS", "IDEOGRAM_BACKEND", "IDEOGRAM_MAX_IN_FLIGHT", "FAL_QUEUE_URL"]
)
def test_a_variable_of_any_text_is_told_in_one_line(folder, command, monkeypatch, variable):
    monkeypatch.setenv(variable, NASTY)
    command("plan")
    assert len((command.out + command.err).splitlines()) >= 1


CRASH = """
import sys
from ideogram_pipeline import cli

@cli.app.command()
def crash(text: str) -> None:
    raise RuntimeError(text)

cli.main()
"""


def test_a_crash_is_told_as_a_terminal_may_have_it():
    ended = subprocess.run([sys.executable, "-c", CRASH, "crash", LONG], capture_output=True, check=False)
    told = ended.stderr.decode()
    assert ended.returncode == 1
    assert told.startswith("Traceback (most recent call last):\n")
    assert "RuntimeError: [bold]x[/]" in told
    assert not OBEYED.findall(told)
    assert "secret" not in told


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_that_others_wrote_reaches_a_terminal_a_log_or_dagsters_markdown(
    folder, command, monkeypatch, serve
):
    monkeypatch.setenv("FAL_QUEUE_URL", serve(saying(LONG)))
    monkeypatch.setenv("IDEOGRAM_LOG_FORMAT", "text")
    monkeypatch.setenv("IDEOGRAM_MARK_PROMPT", "true")
    for plan in (["plan"], ["plan", "--verbose"], ["plan", "--json", "--verbose"], ["doctor"]):
        command(*plan)
        assert "rejected" in command.out or "can't be" in command.out, plan
    assert command("run") == 3
    assert "generated" in command.out
    assert command.out.count("[bold]x[/]") == 5, "the two refusals are told once"
    assert "refused-1, refused-2: refused: " in command.out
    (line,) = [line for line in command.err.splitlines() if "refused-1: refused" in line]
    assert len(line) < 2000

    instance = dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"])
    told, checked = 0, []
    for run in instance.get_runs():
        for record in instance.all_logs(run.run_id):
            event = record.dagster_event
            if event and event.event_type_value in ("ASSET_MATERIALIZATION", "ASSET_CHECK_EVALUATION"):
                data = event.event_specific_data
                one = getattr(data, "materialization", data)
                for entry in one.metadata.values():
                    told += 1
                    markdown = isinstance(entry, dg.MarkdownMetadataValue)
                    assert not (markdown and "bold" in str(entry.value))
                    assert not OBEYED.findall(repr(entry.value)), entry
                description = getattr(data, "description", None) or ""
                checked += [data] if description else []
                assert "![i](" not in description
                assert not OBEYED.findall(description)
    assert told > 20
    (whole,) = [one for one in checked if one.check_name == "batch_is_whole"]
    assert r"\!\[i\]\(https\://evil" in whole.description, "Dagster takes a description for Markdown"

    for again in (
        ["reconcile"],
        ["cancel"],
        ["rebuild"],
        ["run"],
        ["erase", "--reference", LONG, "--dry-run"],
    ):
        command(*again)
    picture = next((folder / "store" / "images" / "batch=default").glob("good-*.png"))
    for form in ("tree", "json", "dot", "mermaid"):
        assert command("lineage", str(picture), "--format", form) == 0
    assert command("lineage", NASTY) == 3
    for form in ("curl", "python", "javascript"):
        assert command("replay", "good", "--as", form) == 0
    assert command("verify", str(picture)) == 0
    assert command("verify", str(picture), "--json") == 0
    assert json.loads(command.out)["marks"]["prompt"].startswith("a lighthouse [bold]x[/]")

    arguments = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()", "replay", "good"]
    printed = subprocess.run(arguments, capture_output=True, check=True).stdout.decode()
    (row,) = csv.DictReader(io.StringIO(printed.removesuffix("\n"), newline=""))
    assert row["prompt"] == f"a lighthouse {NASTY}", "what a program reads is what was written"
    on_terminal = read_from_terminal(arguments)
    assert SEQUENCE not in on_terminal
    assert "\\x1b[31mred" in on_terminal


def read_from_terminal(arguments):
    """Run a command on a terminal of its own and return what it prints there."""
    ours, its = pty.openpty()
    with subprocess.Popen(arguments, stdout=its, stderr=its):
        os.close(its)
        printed = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # its end is closed
                break
            if not part:
                break
            printed += part
    os.close(ours)
    return printed.decode()


@pytest.mark.slow
def test_a_rerun_logs_no_cost_for_rows_it_reused(folder, command, monkeypatch):
    """Incident: lines said `generated … cost_usd=0.1` of rows that an earlier run had paid for."""
    table(folder / "prompts.csv", [("prompt_id", "prompt"), *((f"p{n}", f"scene {n}") for n in range(3))])
    table(folder / "references.csv", [("reference_id", "uri")])
    monkeypatch.setenv("IDEOGRAM_LOG_FORMAT", "json")
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    for state, paid in (("generated", 0.18), ("reused", 0)):
        assert command("run", "--json") == 0
        lines = [json.loads(line) for line in command.err.splitlines() if line.startswith("{")]
        ends = [line for line in lines if "state" in line]
        assert [line["state"] for line in ends] == [state] * 3
        assert sum(line.get("cost_usd", 0) for line in lines) == pytest.approx(paid)
        assert json.loads(command.out.splitlines()[-1])["spent_usd"] == pytest.approx(paid)


@pytest.mark.slow
def test_a_run_that_was_asked_for_one_row_and_made_it_ends_with_0(folder, command, monkeypatch):
    """Incident: `--limit 1` ended with 3, as if the rows that it was asked to leave out were missing."""
    table(folder / "prompts.csv", [("prompt_id", "prompt"), *((f"p{n}", f"scene {n}") for n in range(3))])
    table(folder / "references.csv", [("reference_id", "uri")])
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    assert command("run", "--limit", "1") == 0
    assert "3 (1 generated, 2 left out)" in command.out
    assert "no picture" not in command.out
    monkeypatch.setenv("IDEOGRAM_BUDGET_USD", "0.07")
    assert command("run") == 3, "the budget left one out, and no person did"
    assert "3 (1 generated, 1 reused, 1 not reached)" in command.out


@pytest.mark.slow
def test_one_reason_of_many_rows_is_told_once(folder, command, monkeypatch):
    """Incident: ten lines with the same 400 characters about the budget."""
    rows = [(f"p{number}", f"scene {number}", f"b{number % 2}") for number in range(12)]
    table(folder / "prompts.csv", [("prompt_id", "prompt", "batch"), *rows])
    table(folder / "references.csv", [("reference_id", "uri")])
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    assert command("run", "--max-spend", "0.08") == 3
    reasons = [line for line in command.out.splitlines() if line.startswith("no picture: ")]
    budget = [line for line in reasons if "The budget of this run is $0.08" in line]
    assert len(budget) == 1
    assert len(reasons) <= 2

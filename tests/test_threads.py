"""A coroutine's result, from where an event loop runs already, as in a notebook, and from where none does."""

import asyncio
import signal
import subprocess
import sys
from contextvars import ContextVar
from datetime import timedelta

import dagster as dg
import pytest

from ideogram_pipeline import launch, repair
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.doctor import examine
from ideogram_pipeline.preview import budget_left, preview
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.threads import result_of

VARIABLE = ContextVar("variable", default="none")


async def told():
    await asyncio.sleep(0)
    return VARIABLE.get()


async def failing():
    await asyncio.sleep(0)
    raise LookupError("as it was raised")


async def within(call):
    """Make a call inside a running event loop."""
    return call()


@pytest.mark.parametrize(
    "make", [lambda call: call(), lambda call: asyncio.run(within(call))], ids=["none", "one"]
)
def test_a_coroutine_ends_as_it_would_anywhere_with_the_variables_of_its_caller(make):
    token = VARIABLE.set("of the caller")
    try:
        assert make(lambda: result_of(told())) == "of the caller"
    finally:
        VARIABLE.reset(token)
    with pytest.raises(LookupError, match="as it was raised"):
        make(lambda: result_of(failing()))


INTERRUPTED = """
import asyncio
import signal
from ideogram_pipeline.threads import result_of

signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what the background of a shell starts

async def work():
    print("begun", flush=True)
    try:
        await asyncio.sleep(3600)
    finally:
        await asyncio.sleep(0)
        print("let go", flush=True)

async def cell():
    result_of(work())

asyncio.new_event_loop().run_until_complete(cell())
"""


def test_an_interruption_cancels_the_work_and_is_raised_once_it_has_let_go():
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert out == "let go\n"
    assert err.endswith("KeyboardInterrupt\n")


class Quiet:
    """Watches nothing."""

    def begin(self, batch, images):
        pass

    def ended(self, outcome, spent_usd):
        pass


@pytest.mark.slow
def test_everything_that_asks_fal_works_in_a_notebook(tmp_path, monkeypatch):
    """Incident: `asyncio.run() cannot be called from a running event loop`."""
    monkeypatch.setenv("SANDBOX_LATENCY_SCALE", "0")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    (tmp_path / "prompts.csv").write_text("prompt_id,prompt\na,a lighthouse\nb,a harbour\n")
    (tmp_path / "references.csv").write_text("reference_id,uri\n")
    settings = Settings(
        store=str(tmp_path / "store"),
        prompts=str(tmp_path / "prompts.csv"),
        references=str(tmp_path / "references.csv"),
        budget_usd=1,
    )

    def cells():
        assert preview(settings, [])[0].cost_usd == pytest.approx(0.12)
        assert budget_left(settings) == 1
        assert launch.run(settings, [], progress=Quiet(), expect=len).generated == 2
        (bill,) = repair.reconcile(settings, [], resubmit_after=None).bills
        assert bill.billed == 2
        with repair.stuck(settings) as stuck:
            assert stuck.look([], timedelta(0), lambda: None) == []
        assert [finding.what for finding in examine(settings) if not finding.ok] == []
        job = build_definitions(settings).resolve_job_def("reconcile_unknown")
        with dg.DagsterInstance.ephemeral() as instance:
            assert job.execute_in_process(instance=instance).success

    asyncio.run(within(cells))

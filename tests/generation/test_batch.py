"""A batch from its plan to what it leaves, worked without Dagster: several tables, several runs, and who ends last."""

import asyncio
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest

from ideogram_pipeline.fal import FalClient, FalHosts, no_waiting
from ideogram_pipeline.generation import files, readings
from ideogram_pipeline.generation.batch import WorkOptions, stop, work
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.choice import Choice
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.planner import NOT_WORKED, References, plan_batch
from ideogram_pipeline.generation.rebuild import rebuild_batch
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.references import ReferencesTable
from ideogram_pipeline.tables.rows import PromptRow, Rejection

pytestmark = pytest.mark.slow

BATCH = "drop"


class Silent:
    def ended(self, outcome, spent_usd):
        pass


class HookedStore(Store):
    """A store in which something happens just before a batch's outcomes are written."""

    before_outcomes = None

    def put(self, path, content):
        happens, self.before_outcomes = self.before_outcomes, None
        if happens and path.startswith("outcomes/"):
            happens()
        elif happens:
            self.before_outcomes = happens
        return super().put(path, content)


class Bench:
    """A store, a sandbox, tables that are read into the one, and runs that are paid at the other."""

    def __init__(self, folder, sandbox):
        self.folder, self.sandbox = folder, sandbox
        self.runs = 0

    @property
    def store(self):
        return HookedStore.open(str(self.folder))

    def read(self, table, prompts, *, rejected=(), batch=BATCH):
        """Read a table with these prompts by their ids."""
        rows = [
            PromptRow(prompt_id=name, batch=batch, row_number=number, prompt=prompt)
            for number, (name, prompt) in enumerate(prompts.items(), 2)
        ]
        rejections = [
            Rejection(file=table, row_number=90, row_id=name, batch=batch, column="seed", reason="no number")
            for name in rejected
        ]
        readings.write_references(self.store, ReferencesTable((), (), table))
        return readings.write_prompts(self.store, PromptsTable(tuple(rows), tuple(rejections), table))

    def plan(self, table, **choice):
        """Plan the batch of a table as the asset does."""
        store = self.store
        read = readings.newest_tables(store, table, table)
        rows, rejections = read.read_prompts(BATCH)
        entries = Ledger(store, BATCH).entries
        made = plan_batch(BATCH, rows, rejections, References({}, {}), entries, choice=Choice(**choice))
        plan = files.Plan(BATCH, made.rows, read.prompts_reading)
        files.write_plan(store, plan)
        return plan

    def work(self, plan, *, meanwhile=None, store=None, usd=None):
        """Work a plan; `meanwhile` happens when its requests have ended and nothing is recorded yet."""
        self.runs += 1
        store = store or self.store
        run_id = f"run-{self.runs}"

        @asynccontextmanager
        async def leaving(cancel):
            yield
            if meanwhile:
                await asyncio.to_thread(meanwhile)

        options = WorkOptions(
            run=RunFacts(run_id, "sandbox", "test"),
            budget=Budget(store, run_id=run_id, per_run_usd=usd, per_day_usd=None, allow_unknown=False),
            observer=Silent(),
            marking=Marking(),
            max_in_flight=4,
            max_wait_s=3600.0,
            inline_bytes=0,
            thumbnails=False,
        )
        hosts = FalHosts.at(self.sandbox.url)
        return asyncio.run(
            work(store, plan, lambda: FalClient("key:secret", hosts), options, leaving=leaving)
        )

    def run(self, table, **choice):
        return self.work(self.plan(table, **choice))

    @property
    def states(self):
        """The state of every row as it is recorded, with its prompt id."""
        return [(row.prompt_id, row.state) for row in files.read_outcomes(self.store, BATCH)]

    @property
    def reasons(self):
        return {row.prompt_id: row.reason for row in files.read_outcomes(self.store, BATCH) if row.reason}

    @property
    def pictures(self):
        """Prompt id, prompt and whether it counts of every picture in the metadata."""
        return sorted((row.prompt_id, row.prompt, row.current) for row in files.images(self.store, BATCH))

    @property
    def paid(self):
        return self.sandbox.stats().accepted


@pytest.fixture
def bench(tmp_path):
    with running_sandbox(SandboxSettings(latency_scale=0, concurrency=100)) as sandbox, no_waiting():
        yield Bench(tmp_path / "store", sandbox)


def test_an_older_run_that_ends_last_drops_no_paid_row_of_a_newer_one(bench):
    bench.read("p.csv", {"a": "1", "b": "1"})
    older = bench.plan("p.csv")

    def newer():
        bench.read("p.csv", {"b": "2", "c": "2"})
        bench.run("p.csv")

    worked = bench.work(older, meanwhile=newer)
    assert bench.paid == 4
    assert bench.states == [("b", "generated"), ("c", "generated")]
    assert bench.pictures == [("a", "1", False), ("b", "1", False), ("b", "2", True), ("c", "2", True)]
    assert [(row.prompt_id, row.state) for row in worked.own.outcomes] == [
        ("a", "generated"),
        ("b", "generated"),
    ]


def test_a_run_that_is_passed_while_it_writes_writes_again(bench):
    bench.read("p.csv", {"a": "1"})
    older, store = bench.plan("p.csv"), bench.store

    def newer():
        bench.read("p.csv", {"a": "1", "c": "2"})
        bench.run("p.csv")

    store.before_outcomes = newer
    bench.work(older, store=store)
    assert bench.states == [("a", "generated"), ("c", "generated")]
    assert bench.pictures == [("a", "1", True), ("c", "2", True)]
    assert bench.paid == 2


def test_a_retry_of_an_older_run_does_not_bring_back_its_plan(bench):
    bench.read("p.csv", {"a": "1"})
    older = bench.plan("p.csv")
    bench.read("p.csv", {"c": "2"})
    bench.run("p.csv")
    files.write_plan(bench.store, older, root_run_id="older")
    assert files.read_plan(bench.store, BATCH, root_run_id="older").rows == older.rows
    bench.work(older)
    assert bench.states == [("c", "generated")]
    assert bench.pictures == [("a", "1", False), ("c", "2", True)]


def test_a_batch_in_two_tables_holds_the_rows_of_both(bench):
    bench.read("p.csv", {"a": "1", "b": "1"}, rejected=["x"])
    bench.read("q.csv", {"b": "1", "c": "1"})
    one, other = bench.run("p.csv"), bench.run("q.csv")
    assert bench.paid == 3
    assert sorted(bench.states) == [
        ("a", "generated"),
        ("b", "generated"),
        ("c", "generated"),
        ("x", "rejected"),
    ]
    assert bench.pictures == [("a", "1", True), ("b", "1", True), ("c", "1", True)]
    assert [(len(each.own.outcomes), each.reused) for each in (one, other)] == [(3, 0), (2, 1)]
    states = bench.states
    bench.run("p.csv")
    assert bench.states == states
    assert bench.paid == 3


def test_a_row_of_another_table_keeps_what_its_run_has_recorded_until_the_ledger_says_more(bench):
    bench.read("p.csv", {"a": "1"})
    bench.read("q.csv", {"c": "1"})
    bench.work(bench.plan("p.csv"), usd=Decimal("0.01"))
    over_budget = bench.reasons["a"]
    assert "0.01" in over_budget
    bench.run("q.csv")
    assert bench.reasons == {"a": over_budget}
    waits = bench.plan("q.csv")
    bench.work(waits, meanwhile=lambda: bench.run("p.csv"))
    assert sorted(bench.states) == [("a", "generated"), ("c", "generated")]


def test_a_row_that_no_run_has_worked_yet_says_so_and_fails_no_run(bench):
    bench.read("p.csv", {"a": "1"})
    bench.read("q.csv", {"c": "1"})
    bench.plan("p.csv")
    bench.run("q.csv")
    assert bench.reasons == {"a": NOT_WORKED}
    assert {row.prompt_id: row.due for row in files.read_outcomes(bench.store, BATCH)} == {
        "a": False,
        "c": True,
    }


def test_two_tables_that_ask_for_different_things_under_one_id_show_both_rows(bench):
    bench.read("p.csv", {"a": "1"})
    bench.read("q.csv", {"a": "2"})
    for table in ("p.csv", "q.csv", "p.csv"):
        bench.run(table)
    assert bench.paid == 2
    assert bench.states == [("a", "generated"), ("a", "generated")]
    assert bench.pictures == [("a", "1", True), ("a", "2", True)]


def test_a_new_take_that_one_table_asks_for_is_the_row_of_both(bench):
    for table in ("p.csv", "q.csv"):
        bench.read(table, {"a": "1"})
        bench.run(table)
    for _ in range(2):
        bench.run("p.csv", regenerate=True)
    bench.run("q.csv")
    assert bench.paid == 3
    assert bench.states == [("a", "generated")]
    assert [(row.take, row.current) for row in files.images(bench.store, BATCH) if row.current] == [(2, True)]
    assert len(bench.pictures) == 3


def test_a_new_take_of_a_run_that_a_newer_plan_does_not_know_is_current(bench):
    bench.read("p.csv", {"a": "1"})
    bench.run("p.csv")
    again = bench.plan("p.csv", regenerate=True)
    bench.plan("p.csv")
    bench.work(again)
    assert [(row.take, row.current) for row in files.images(bench.store, BATCH)] == [(1, True), (0, False)]


def test_a_batch_has_left_only_when_the_table_that_held_it_was_read_again_without_it(bench):
    bench.read("p.csv", {"a": "1"})
    bench.read("q.csv", {"c": "1"})
    for table in ("p.csv", "q.csv"):
        bench.run(table)
    bench.read("r.csv", {"z": "1"}, batch="other")
    assert BATCH in files.batches(bench.store)
    bench.read("p.csv", {"a": "1"}, batch="other")
    bench.run("q.csv")
    assert bench.states == [("c", "generated")]
    assert bench.pictures == [("a", "1", False), ("c", "1", True)]
    bench.read("q.csv", {"c": "1"}, batch="other")
    assert BATCH not in files.batches(bench.store)
    rebuild_batch(bench.store, BATCH)
    assert len(bench.pictures) == 2


def test_every_row_of_a_batch_that_was_stopped_has_an_outcome(bench):
    bench.read("p.csv", {"a": "1"})
    bench.run("p.csv")
    bench.read("p.csv", {"a": "1", "b": "1"}, rejected=["x"])
    asyncio.run(stop(bench.store, bench.plan("p.csv"), "run-9", "the check says no"))
    assert bench.states == [("a", "generated"), ("b", "not_reached"), ("x", "rejected")]
    assert bench.reasons == {"b": "the check says no", "x": "seed: no number"}
    assert bench.pictures == [("a", "1", True)]
    assert bench.paid == 1


def test_a_run_holds_its_batch_until_all_is_recorded(bench):
    bench.read("p.csv", {"a": "1"})
    store, beats = bench.store, []
    store.before_outcomes = lambda: beats.extend(found.path for found in store.objects("runs"))
    bench.work(bench.plan("p.csv"), store=store)
    assert [beat.split("/")[1] for beat in beats] == ["run-1"]
    assert list(store.objects("runs")) == []


def test_what_two_tables_ask_of_a_batch_is_rebuilt_as_it_was(bench):
    bench.read("p.csv", {"a": "1"}, rejected=["x"])
    bench.read("q.csv", {"c": "1"})
    for table in ("p.csv", "q.csv"):
        bench.run(table)
    before = files.read_results(bench.store, BATCH)
    for path in (files.metadata_path(BATCH), files.outcomes_path(BATCH)):
        bench.store.delete(path)
    rebuilt = rebuild_batch(bench.store, BATCH)
    assert files.read_results(bench.store, BATCH) == before
    assert (rebuilt.rows, rebuilt.images) == (2, 2)

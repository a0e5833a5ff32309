"""What a person asks of one run, and that a retry of it asks for the same: planned, and paid for at the sandbox."""

import asyncio
import shutil
from collections import Counter

import pytest

from ideogram_pipeline.errors import ConfigurationError, StoreError
from ideogram_pipeline.fal import FalClient, FalHosts, no_waiting
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.choice import Choice, Decisions
from ideogram_pipeline.generation.engine import Engine
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.planner import NOT_NAMED, ONLY_FAILED, References, plan_batch
from ideogram_pipeline.generation.records import image_rows, outcome_rows
from ideogram_pipeline.generation.requests import take_seed
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.sandbox.control import Change
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.rows import PromptRow

BATCH = "drop"
REGENERATE = Choice(regenerate=True)


class PowerCut(Exception):
    """The machine is gone: from now on nothing is written any more."""


class CutStore(Store):
    """A store that fails for good after so many writes."""

    writes_left = 10**9

    def _write(self):
        if self.writes_left <= 0:
            raise PowerCut
        self.writes_left -= 1

    def create(self, *args, **kwargs):
        self._write()
        return super().create(*args, **kwargs)

    def put(self, *args, **kwargs):
        self._write()
        return super().put(*args, **kwargs)

    async def create_async(self, *args, **kwargs):
        self._write()
        return await super().create_async(*args, **kwargs)

    async def put_async(self, *args, **kwargs):
        self._write()
        return await super().put_async(*args, **kwargs)


class Silent:
    def ended(self, outcome, spent_usd):
        pass


class Batch:
    """A batch of a few rows and its store; runs it as the assets do: plan, work, record."""

    def __init__(self, folder, url, rows=2):
        self.folder = folder
        self.url = url
        self.cells = {f"p{number}": {"prompt": f"scene {number}"} for number in range(rows)}

    def plan(self, choice=None, root="run-1", store=None):
        store = store or Store.open(str(self.folder))
        rows = [
            PromptRow(prompt_id=name, batch=BATCH, row_number=number, **cells)
            for number, (name, cells) in enumerate(self.cells.items(), 2)
        ]
        return plan_batch(
            BATCH,
            rows,
            [],
            References({}, {}),
            Ledger(store, BATCH).entries,
            choice=choice,
            left_without=files.left_without_picture(store, BATCH),
            decisions=Decisions(store, BATCH, root),
        )

    def run(self, choice=None, root="run-1", attempt=1, writes=10**9):
        """Run the batch; the power goes after so many writes."""
        store = CutStore.open(str(self.folder))
        store.writes_left = writes
        plan = self.plan(choice, root, store)
        files.write_plan(store, plan, root_run_id=root)
        ledger = Ledger(store, BATCH)
        with no_waiting():
            outcomes = asyncio.run(self._work(store, ledger, plan.requests, f"{root}-{attempt}"))
        rows = list(outcome_rows(plan, outcomes, ledger.entries))
        files.write_results(store, BATCH, image_rows(plan, ledger.entries), rows)
        return {row.prompt_id: row for row in rows}

    async def _work(self, store, ledger, requests, run_id):
        async with FalClient("key:secret", FalHosts.at(self.url)) as fal:
            engine = Engine(
                fal,
                store,
                ledger,
                run=RunFacts(run_id, "sandbox", "test"),
                max_in_flight=4,
                inline_bytes=0,
                max_wait_s=3600.0,
                marking=Marking(),
                thumbnails=False,
                budget=Budget(store, run_id=run_id, per_run_usd=None, per_day_usd=None, allow_unknown=False),
                observer=Silent(),
            )
            return await engine.run(requests)

    def images(self):
        return files.read_images(Store.open(str(self.folder)), BATCH)


@pytest.fixture
def sandbox():
    with running_sandbox(SandboxSettings(latency_scale=0, concurrency=100)) as running:
        yield running


@pytest.fixture
def batch(tmp_path, sandbox):
    return Batch(tmp_path / "store", sandbox.url)


def decisions(plan):
    return {row.prompt_id: (row.decision, row.request.take) for row in plan.rows}


def states(outcomes):
    return Counter(row.state for row in outcomes.values())


def test_a_new_take_is_planned_with_its_price_and_paid_once(batch, sandbox):
    batch.run()
    plan = batch.plan(REGENERATE, "run-2")
    assert [row.reason for row in plan.rows] == ["a new take was asked for: take 1"] * 2
    assert decisions(plan) == {"p0": ("new", 1), "p1": ("new", 1)}
    assert plan.cost_usd == pytest.approx(0.12)
    assert states(batch.run(REGENERATE, "run-2")) == {"generated": 2}
    assert sandbox.stats().accepted == 4
    assert states(batch.run(REGENERATE, "run-3")) == {"generated": 2}
    assert sandbox.stats().accepted == 6


def test_later_runs_reuse_the_newest_take_and_older_ones_stay_in_the_metadata(batch, sandbox):
    for number in range(3):
        batch.run(REGENERATE if number else None, f"run-{number}")
    assert decisions(batch.plan(root="run-4")) == {"p0": ("reused", 2), "p1": ("reused", 2)}
    batch.run(root="run-4")
    assert sandbox.stats().accepted == 6
    images = batch.images()
    assert Counter((row.take, row.current) for row in images) == {(0, False): 2, (1, False): 2, (2, True): 2}
    assert len({row.sha256 for row in images}) == 6


def test_a_pinned_seed_gives_every_take_a_seed_of_its_own(batch):
    batch.cells = {"p0": {"prompt": "a lighthouse", "seed": 7}}
    batch.run()
    batch.run(REGENERATE, "run-2")
    assert sorted((row.take, row.seed) for row in batch.images()) == [(0, 7), (1, take_seed(7, 1))]


def test_an_edited_row_starts_over_and_its_reason_names_the_edit_alone(batch):
    batch.run()
    batch.run(REGENERATE, "run-2")
    batch.cells["p0"]["rendering_speed"] = "QUALITY"
    row, _ = batch.plan(root="run-3").rows
    assert (row.decision, row.reason, row.request.take) == (
        "stale",
        "rendering_speed BALANCED -> QUALITY",
        0,
    )


@pytest.mark.slow
def test_wherever_a_run_dies_its_retry_makes_no_further_take_and_pays_for_nothing_twice(tmp_path, sandbox):
    """The power goes after every single write of a run for new takes, also between fal's answer and its record."""
    origin = Batch(tmp_path / "origin", sandbox.url)
    origin.run()
    for writes in range(100):
        died = False
        with running_sandbox(SandboxSettings(latency_scale=0)) as own:
            batch = Batch(shutil.copytree(origin.folder, tmp_path / f"{writes}"), own.url)
            try:
                batch.run(REGENERATE, "run-2", attempt=1, writes=writes)
            except (PowerCut, ExceptionGroup):
                died = True
            assert states(batch.run(REGENERATE, "run-2", attempt=2)) == {"generated": 2}, writes
            assert own.stats().accepted == 2, writes
        assert Counter(row.take for row in batch.images() if row.current) == {1: 2}, writes
        if not died:
            break
    assert writes > 12
    assert not died


def test_a_row_with_an_unfinished_request_is_brought_to_its_end_before_it_gets_a_new_take(batch, sandbox):
    sandbox.change(Change(faults=(Fault("drop_before_accept", match="scene 0"),)))
    assert states(batch.run()) == {"unknown": 1, "generated": 1}
    sandbox.change(Change(faults=()))
    assert decisions(batch.plan(REGENERATE, "run-2")) == {"p0": ("unknown", 0), "p1": ("new", 1)}
    batch.run(REGENERATE, "run-2")
    assert sandbox.stats().submits == 3


def test_a_new_take_that_was_not_reached_leaves_the_one_before_current(batch):
    batch.run()
    plan = batch.plan(REGENERATE, "run-2")
    images = list(image_rows(plan, Ledger(Store.open(str(batch.folder)), BATCH).entries))
    assert [(row.take, row.current) for row in images] == [(0, True), (0, True)]


def test_only_failed_rows_are_worked_and_the_others_are_left_out_in_sight(batch, sandbox):
    sandbox.change(Change(faults=(Fault("policy_refusal", match="scene 0"),)))
    batch.run()
    sandbox.change(Change(faults=()))
    batch.cells["added"] = {"prompt": "added"}
    only_failed = Choice(only_failed=True)
    assert decisions(batch.plan(only_failed, "run-2")) == {
        "p0": ("settled", 0),
        "p1": ("reused", 0),
        "added": ("left out", 0),
    }
    outcomes = batch.run(only_failed, "run-2")
    assert states(outcomes) == {"refused": 1, "generated": 1, "not_reached": 1}
    assert outcomes["added"].reason == ONLY_FAILED
    assert sandbox.stats().accepted == 2
    again = batch.run(Choice(regenerate=True, only_failed=True), "run-3")
    assert states(again) == {"generated": 2, "not_reached": 1}
    assert sandbox.stats().accepted == 3
    assert {row.prompt_id: row.take for row in batch.images()} == {"p0": 1, "p1": 0}


def test_a_failed_row_that_was_mended_since_is_worked_too(batch, sandbox):
    sandbox.change(Change(faults=(Fault("policy_refusal", match="scene 0"),)))
    batch.run()
    batch.cells["p0"]["prompt"] = "a harbour"
    assert decisions(batch.plan(Choice(only_failed=True), "run-2")) == {
        "p0": ("stale", 0),
        "p1": ("reused", 0),
    }


def test_takes_that_were_asked_for_and_not_reached_are_what_only_failed_goes_on_with(batch, sandbox):
    batch.run()
    sandbox.change(Change(faults=(Fault("locked_balance", match="scene 1"),)))
    assert states(batch.run(REGENERATE, "run-2"))["not_reached"] >= 1
    sandbox.change(Change(faults=()))
    assert states(batch.run(Choice(regenerate=True, only_failed=True), "run-3")) == {"generated": 2}
    assert sandbox.stats().accepted == 4
    assert Counter(row.take for row in batch.images()) == {0: 2, 1: 2}


def test_a_limit_pays_for_the_first_rows_of_the_table_and_its_retry_for_the_same_ones(tmp_path, sandbox):
    batch = Batch(tmp_path / "store", sandbox.url, rows=5)
    limit = Choice(limit=2)
    for attempt in (1, 2):
        outcomes = batch.run(limit, "run-1", attempt)
        assert [row.reason for row in outcomes.values()] == ["", "", *["left out: limit 2"] * 3]
        assert sandbox.stats().accepted == 2
    assert states(batch.run(limit, "run-2")) == {"generated": 4, "not_reached": 1}
    assert sandbox.stats().accepted == 4


def test_a_limit_on_new_takes_leaves_the_other_rows_with_the_pictures_they_have(tmp_path, sandbox):
    batch = Batch(tmp_path / "store", sandbox.url, rows=3)
    batch.run()
    choice = Choice(regenerate=True, limit=1)
    for attempt in (1, 2):
        assert states(batch.run(choice, "run-2", attempt)) == {"generated": 3}
        assert sandbox.stats().accepted == 4
    assert sorted((row.prompt_id, row.take) for row in batch.images() if row.current) == [
        ("p0", 1),
        ("p1", 0),
        ("p2", 0),
    ]


def test_a_new_take_of_named_rows_pays_for_no_other(tmp_path, sandbox):
    batch = Batch(tmp_path / "store", sandbox.url, rows=3)
    batch.run()
    batch.cells["added"] = {"prompt": "added"}
    again = Choice(regenerate=True, prompt_ids=("p1",))
    for attempt in (1, 2):
        outcomes = batch.run(again, "run-2", attempt)
        assert outcomes["added"].reason == NOT_NAMED
        assert sandbox.stats().accepted == 4
    assert {row.prompt_id: row.take for row in batch.images() if row.current} == {"p0": 0, "p1": 1, "p2": 0}
    assert decisions(batch.plan(Choice(only_failed=True), "run-3"))["added"] == ("left out", 0)


def test_a_row_that_the_batch_does_not_have_can_not_be_named(batch):
    with pytest.raises(ConfigurationError, match="No row of the batch 'drop' is called 'p7', 'p9'"):
        batch.plan(Choice(prompt_ids=("p9", "p0", "p7")))


def test_two_runs_with_different_wishes_each_read_their_own_plan(batch):
    store = Store.open(str(batch.folder))
    for root, choice in (("a", Choice(limit=1)), ("b", None)):
        files.write_plan(store, batch.plan(choice, root), root_run_id=root)
    assert files.read_plan(store, BATCH, root_run_id="a").count("left out") == 1
    assert files.read_plan(store, BATCH, root_run_id="b").count("left out") == 0
    assert files.read_plan(store, BATCH, root_run_id="none of its own") == files.read_plan(store, BATCH)


def test_a_decision_that_the_power_cut_left_empty_is_taken_anew_and_a_damaged_one_is_named(store):
    decided = Decisions(store, BATCH, "run-1")
    store.put(f"takes/batch={BATCH}/run-1.json", b"")
    assert decided.takes({"f": 1}) == {"f": 1}
    assert decided.takes({"f": 2}) == {"f": 1}
    store.put(f"takes/batch={BATCH}/run-1.json", b"{")
    with pytest.raises(StoreError, match=r"run-1\.json"):
        decided.takes({"f": 2})


def test_a_limit_that_lets_nothing_through_is_refused():
    with pytest.raises(ConfigurationError, match="from 1"):
        Choice(limit=0)

"""The plan as people read it: what a run would do with every row, why, for how much, and what may surprise."""

import csv
import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from ideogram_pipeline.cli import app
from ideogram_pipeline.preview import PlanSummary, preview
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables import erased
from ideogram_pipeline.tables.erased import Tombstone

ODD = {"image_size": "1000x1000"}
SURPRISE = "image_size: Ideogram does not render 1000x1000; expect 1024x1024, the nearest it does. (R11)"


@pytest.fixture
def tables(tmp_path, monkeypatch, store):
    """Write the prompts table; the command then reads it and the store."""
    (tmp_path / "references.csv").write_text("reference_id,uri\n")
    monkeypatch.setenv("IDEOGRAM_STORE", str(store.folder))
    monkeypatch.setenv("IDEOGRAM_PROMPTS", str(tmp_path / "prompts.csv"))
    monkeypatch.setenv("IDEOGRAM_REFERENCES", str(tmp_path / "references.csv"))

    def write(rows):
        columns = dict.fromkeys(column for row in rows for column in row)
        with (tmp_path / "prompts.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(rows)

    return write


@pytest.fixture
def half_done(tables, work_batch):
    """A batch of which rows were paid for, edited, left without an answer and added."""
    before = [{"prompt_id": name, "batch": "drop", "prompt": name} for name in ("done", "edited", "lost")]
    work_batch(before, endings={"lost": "unknown"})
    tables(
        [
            before[0],
            before[1] | {"rendering_speed": "QUALITY"} | ODD,
            before[2],
            {"prompt_id": "added", "batch": "drop", "prompt": "added"} | ODD,
            {"prompt_id": "wrong", "batch": "later", "prompt": "wrong", "num_images": "9"},
            {"prompt_id": "next", "batch": "later", "prompt": "next"} | ODD,
        ]
    )


def plan(*arguments, code=0):
    done = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert done.exit_code == code
    return done.stdout


@pytest.mark.usefixtures("half_done")
def test_the_plan_counts_what_is_paid_for_and_what_may_be_paid_already():
    summary = PlanSummary.of(preview(Settings.from_environment(), []), None)
    drop, later = summary.batches
    assert (drop.rows, drop.new, drop.stale, drop.reused, drop.unknown) == (4, 1, 1, 1, 1)
    assert (later.rows, later.new, later.rejected) == (2, 1, 1)
    assert (drop.estimated_usd, drop.estimated_usd_max) == (0.15, 0.21)
    assert (summary.rows, summary.new, summary.stale) == (6, 2, 1)
    assert (summary.estimated_usd, summary.estimated_usd_max, summary.unpriced) == (0.21, 0.27, 0)


@pytest.mark.usefixtures("half_done")
def test_the_plan_says_the_range_in_words_the_rejections_and_the_advice():
    lines = plan().splitlines()
    assert "A run would cost $0.21 to $0.27 of sandbox money." in lines
    assert any("may be paid already" in line for line in lines)
    [rejected] = [line for line in lines if line.startswith("rejected: ")]
    assert rejected.startswith("rejected: later, row 6, wrong: num_images: ")
    assert [line for line in lines if line.startswith("advice: ")] == [
        f"advice: 3 rows, such as edited: {SURPRISE}"
    ]
    assert not [line for line in lines if line.startswith(("new: ", "stale: ", "reused: "))]


@pytest.mark.usefixtures("half_done")
def test_a_verbose_plan_says_of_every_row_what_would_be_done_and_why():
    lines = plan("--batch", "drop", "--verbose").splitlines()
    assert [line for line in lines if ": drop, row " in line] == [
        "reused: drop, row 2, done ($0.06): its pictures are in the store",
        "stale: drop, row 3, edited ($0.09): image_size square_hd -> 1000x1000, rendering_speed BALANCED -> QUALITY",
        "unknown: drop, row 4, lost ($0.06): run run-1 got no answer to it; it is looked for at fal",
        "new: drop, row 5, added ($0.06): it was never asked for",
    ]


@pytest.mark.usefixtures("half_done")
def test_as_json_the_rows_and_the_advice_are_there_if_asked_for():
    brief, verbose = json.loads(plan("--json")), json.loads(plan("--json", "--verbose"))
    assert verbose.keys() - brief.keys() == {"decisions", "advice"}
    assert {name: verbose[name] for name in brief} == brief
    assert [(row["prompt_id"], row["decision"], row["price_usd"]) for row in verbose["decisions"]] == [
        ("done", "reused", 0.06),
        ("edited", "stale", 0.09),
        ("lost", "unknown", 0.06),
        ("added", "new", 0.06),
        ("wrong", "rejected", None),
        ("next", "new", 0.06),
    ]
    assert verbose["advice"] == [{"text": SURPRISE, "rows": 3, "example": "edited"}]


@pytest.mark.usefixtures("half_done")
def test_a_plan_leaves_the_store_as_it_was(store):
    def there():
        return {found.path: found.etag for found in store.objects("")}

    before = there()
    plan("--verbose")
    assert there() == before


def test_where_nothing_is_in_doubt_the_cost_is_one_number(tables):
    tables([{"prompt_id": "a", "prompt": "a lighthouse"}])
    shown = plan()
    assert "A run would cost $0.06 of sandbox money." in shown
    assert "paid already" not in shown
    assert "advice" not in shown


BAD = {"prompt_id": "bad", "prompt": "bad", "num_images": "9"}
STUCK = "Rows lack their pictures, and a run could bring none of them."


@pytest.fixture
def is_stuck(tables, monkeypatch, work_batch):
    """Make a table and the variables, and say whether the plan ends with 3 and says why."""

    def made(rows, worked=(), endings=None, **variables):
        if worked:
            work_batch(worked, endings=endings or {})
        tables(rows)
        for name, value in variables.items():
            monkeypatch.setenv(f"IDEOGRAM_{name}", value)
        done = CliRunner().invoke(app, ["plan"], catch_exceptions=False)
        assert (STUCK in done.stdout) == (done.exit_code == 3)
        assert json.loads(plan("--json", code=done.exit_code))
        return done.exit_code == 3

    return made


def test_a_plan_of_which_no_row_can_be_sent_ends_with_3(is_stuck):
    assert is_stuck([BAD])
    assert not is_stuck([BAD, {"prompt_id": "good", "prompt": "good"}])
    # that the money is spent is said, and ends by itself
    assert not is_stuck([BAD, {"prompt_id": "good", "prompt": "good"}], BUDGET_USD="0.02")


def test_a_plan_whose_pictures_are_all_there_ends_with_0(is_stuck):
    done = {"prompt_id": "done", "batch": "drop", "prompt": "done"}
    assert not is_stuck([done], [done], BUDGET_USD="0.01")
    assert is_stuck([done, BAD])
    assert not is_stuck([{"prompt_id": "", "prompt": ""}])


def test_a_plan_of_rows_that_may_be_paid_already_ends_with_0_and_of_refused_ones_with_3(is_stuck):
    lost, no = ({"prompt_id": name, "batch": "drop", "prompt": name} for name in ("lost", "no"))
    assert not is_stuck([lost, no], [lost, no], {"lost": "unknown", "no": "refused"}, BUDGET_USD="0.01")
    assert is_stuck([no])


def test_a_plan_says_in_which_batch_too_many_rows_are_rejected(tables, monkeypatch):
    good = {"prompt_id": "good", "prompt": "good"}
    tables([good, BAD, {**good, "prompt_id": "other", "batch": "fine"}])
    monkeypatch.setenv("IDEOGRAM_MAX_REJECTED_FRACTION", "0.4")
    why = (
        "a run would pay for nothing in default: 1 of 2 rows can't be sent, more than the fraction of 0.4 that "
        "IDEOGRAM_MAX_REJECTED_FRACTION allows. Mend them, or raise it."
    )
    lines = plan().splitlines()
    assert [line for line in lines if line.startswith("a run would pay for nothing")] == [why]
    assert json.loads(plan("--json", "--batch", "default", code=3))["workable"] == 0
    monkeypatch.setenv("IDEOGRAM_MAX_REJECTED_FRACTION", "0.5")
    assert "pay for nothing" not in plan("--batch", "default")


def test_many_batches_cost_no_more_each_than_few(tables, monkeypatch, store):
    """With each batch the tombstones of erased pictures were all read again, and all reviews gone through."""
    stones = [
        Tombstone(
            sha256=f"{number:064x}",
            erased_at=datetime(2026, 11, 30, tzinfo=UTC),
            fingerprints=(),
            request_ids=(),
            cost_usd=None,
            images=(),
        )
        for number in range(3)
    ]
    for stone in stones:
        store.put(erased.path(stone.sha256), stone.model_dump_json().encode())
    tables([{"prompt_id": f"p{number}", "batch": f"b{number}", "prompt": "x"} for number in range(50)])
    read, really = [], Store.get
    monkeypatch.setattr(Store, "get", lambda *asked, **how: read.append(asked[1]) or really(*asked, **how))
    assert len(preview(Settings.from_environment(), [])) == 50
    assert [path for path in read if path.startswith("erased/")] == [
        erased.path(one.sha256) for one in stones
    ]


def test_what_is_wrong_with_a_row_its_cells_rules_and_references_comes_in_one_round(tables):
    tables(
        [BAD | {"num_images": "many", "prompt": "", "seed": "-1", "style": "FANCY", "reference_id": "nobody"}]
    )
    [rejected] = [line for line in plan(code=3).splitlines() if line.startswith("rejected: ")]
    told = rejected.removeprefix("rejected: default, row 2, bad: ")
    assert [part.partition(":")[0] for part in told.split("; ")] == [
        "num_images",
        "style",
        "prompt",
        "seed",
        "reference_id",
    ]


def test_rows_that_are_rejected_for_one_reason_are_told_together(tables):
    tables([{"prompt_id": f"p{number}", "prompt": "x", "num_images": "9"} for number in range(30)])
    [line] = [line for line in plan(code=3).splitlines() if line.startswith("rejected: ")]
    assert line.startswith("rejected: default, row 2, p0 and 29 more (--verbose names them): num_images: ")
    assert plan("--verbose", code=3).count("rejected: default, row ") == 30


def test_a_batch_that_an_earlier_version_called_by_another_number_is_not_paid_for_again(tables, work_batch):
    rows = [{"prompt_id": "a", "batch": "2.0", "prompt": "a"}]
    work_batch(rows, batch="2.0")
    tables([*rows, {"prompt_id": "b", "batch": "3.0", "prompt": "b"}])
    plans = preview(Settings.from_environment(), [])
    assert [(plan.batch, plan.count("reused"), plan.count("new")) for plan in plans] == [
        ("2.0", 1, 0),
        ("3", 0, 1),
    ]

"""What lies in the store comes back as it was written, batch by batch."""

import os
import time
from dataclasses import replace

import pytest

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.buckets import bucket
from ideogram_pipeline.generation.rows import PlannedRow
from ideogram_pipeline.storage.parquet import Rows
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.references import ReferencesTable
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection


def prompt(number: int, batch: str, **cells: object) -> PromptRow:
    return PromptRow(prompt_id=f"p{number}", batch=batch, row_number=number, prompt="x", **cells)


def rejection(number: int, batch: str = "") -> Rejection:
    return Rejection(
        file="p.csv", row_number=number, row_id=f"p{number}", batch=batch, column="seed", reason="no number"
    )


TABLE = PromptsTable(
    rows=(
        prompt(2, "b"),
        prompt(3, "a", num_images=3, reference_ids=("face",), style_codes=("AAFF5733",)),
        prompt(4, "b", strength=0.5, expand_prompt=True, extra='{"campaign": "é"}'),
    ),
    rejections=(rejection(5, "a"), rejection(6, "c")),
)


def kept(store, batch):
    rows, rejections = files.read_prompts(store, batch)
    return list(rows), list(rejections)


def test_a_batch_is_read_without_the_others_in_the_order_of_the_table(store):
    files.write_prompts(store, TABLE)
    assert kept(store, "b") == ([TABLE.rows[0], TABLE.rows[2]], [])
    assert kept(store, "a") == ([TABLE.rows[1]], [TABLE.rejections[0]])
    assert kept(store, "nothing") == ([], [])


def test_batches_are_counted_in_pictures_and_include_those_with_rejections_only(store):
    files.write_prompts(store, TABLE)
    assert files.batches(store) == {"a": 3, "b": 2, "c": 0}


def test_a_table_that_was_never_read_is_no_empty_one(store):
    with pytest.raises(FileNotFoundError, match=r"batches\.json"):
        files.read_prompts(store, "a")


def test_only_the_files_of_batches_that_changed_are_written(store):
    files.write_prompts(store, TABLE)
    before = {found.path: found.etag for found in store.objects("tables")}
    edited = (TABLE.rows[0].model_copy(update={"prompt": "y"}), *TABLE.rows[1:])
    files.write_prompts(store, replace(TABLE, rows=edited))
    after = {found.path: found.etag for found in store.objects("tables")}
    assert {path for path in after if after[path] != before[path]} == {
        f"{files.PROMPTS}/{bucket('b')}.parquet",
        files.BATCHES,
    }
    assert kept(store, "b")[0][0].prompt == "y"


def test_a_file_that_a_crash_left_beside_an_older_index_is_not_taken_for_what_it_was(store):
    files.write_prompts(store, TABLE)
    index = store.get(files.BATCHES)
    files.write_prompts(store, replace(TABLE, rows=TABLE.rows[1:]))
    store.put(files.BATCHES, index)
    files.write_prompts(store, TABLE)
    assert kept(store, "b")[0] == [TABLE.rows[0], TABLE.rows[2]]


def test_a_batch_that_left_the_table_leaves_no_rows(store, prompts_table):
    files.write_prompts(store, TABLE)
    files.write_prompts(store, prompts_table("b"))
    assert list(files.batches(store)) == ["b"]
    assert kept(store, "a") == ([], [])
    assert {found.path for found in store.objects("tables")} == {
        files.BATCHES,
        f"{files.PROMPTS}/{bucket('b')}.parquet",
    }


def test_a_run_has_its_own_plan_and_its_retries_too(store, work_batch):
    mine = work_batch([{"prompt_id": "a", "prompt": "x"}]).plan
    files.write_plan(store, mine, root_run_id="mine")
    files.write_plan(store, replace(mine, rows=Rows.of(PlannedRow, [])), root_run_id="another")
    assert files.read_plan(store, "drop", root_run_id="mine") == mine
    assert len(files.read_plan(store, "drop").rows) == 0


def test_plans_of_runs_that_are_long_over_go(store, work_batch):
    plan = work_batch([{"prompt_id": "a", "prompt": "x"}]).plan
    for run in ("old", "new"):
        files.write_plan(store, plan, root_run_id=run)
    past = time.time() - files.KEEP_RUN_PLANS.total_seconds() - 60
    for run in ("old", "mine"):
        store.put(files.run_plan_path("drop", run), b"x")
        os.utime(store.where(files.run_plan_path("drop", run)), (past, past))
    files.write_plan(store, plan, root_run_id="mine")
    left = sorted(found.path for found in store.objects("run_plans"))
    assert left == [files.run_plan_path("drop", run) for run in ("mine", "new")]


def test_references_come_back_by_id(store):
    face = Reference(
        reference_id="face",
        row_number=2,
        uri="face.png",
        sha256="0" * 64,
        kind="png",
        width=64,
        height=48,
        bytes=100,
    )
    files.write_references(store, ReferencesTable((face,), (rejection(3),)))
    assert files.read_references(store, ["face", "p3", "nobody"]) == ({"face": face}, {"p3": rejection(3)})
    assert files.read_references(store, []) == ({}, {})


def test_a_plan_comes_back_with_its_requests(store, work_batch):
    batch = work_batch([{"prompt_id": "a", "prompt": "x"}, {"prompt_id": "b", "prompt": "x", "seed": -1}])
    assert files.read_plan(store, "drop") == batch.plan
    assert [row.decision for row in batch.plan.rows] == ["new", "rejected"]


def test_batches_with_results_are_those_that_were_run(store, work_batch):
    files.write_prompts(store, TABLE)
    work_batch([{"prompt_id": "a", "prompt": "x"}], batch="z")
    work_batch([{"prompt_id": "a", "prompt": "x"}], batch="été")
    assert files.batches_with_results(store) == ["z", "été"]


def test_results_say_by_their_bytes_whether_anything_changed(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    images, outcomes = files.read_images(store, "drop"), files.read_outcomes(store, "drop")
    written = files.write_results(store, "drop", images, outcomes)
    assert files.write_results(store, "drop", images, outcomes) == written
    assert files.write_results(store, "drop", [], outcomes) != written

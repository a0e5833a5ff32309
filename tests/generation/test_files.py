"""What lies in the store comes back as it was written, batch by batch."""

import os
import time
from dataclasses import replace

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.rows import PlannedRow
from ideogram_pipeline.storage.parquet import Rows


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


def test_a_plan_comes_back_with_its_requests(store, work_batch):
    batch = work_batch([{"prompt_id": "a", "prompt": "x"}, {"prompt_id": "b", "prompt": "x", "seed": -1}])
    assert files.read_plan(store, "drop") == batch.plan
    assert [row.decision for row in batch.plan.rows] == ["new", "rejected"]


def test_batches_with_results_are_those_that_were_run(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}], batch="z")
    work_batch([{"prompt_id": "a", "prompt": "x"}], batch="été")
    assert files.batches_with_results(store) == ["z", "été"]


def test_results_say_by_their_bytes_whether_anything_changed(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    images, outcomes = files.read_images(store, "drop"), files.read_outcomes(store, "drop")
    written = files.write_results(store, "drop", images, outcomes)
    assert files.write_results(store, "drop", images, outcomes) == written
    assert files.write_results(store, "drop", [], outcomes) != written

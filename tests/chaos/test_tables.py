"""Two tables on one store, each run by a process of its own at the same time."""

import pandas as pd
import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

ROWS = 12


def write(path, name):
    """Write a prompts table with a batch of its own and rows in one that the other table has too."""
    lines = [f"{name}{number},{name if number % 2 else 'both'},scene {number}" for number in range(ROWS)]
    path.write_text("\n".join(["prompt_id,batch,prompt", *lines]))
    return str(path)


def test_two_runs_of_two_tables_on_one_store_at_once_make_each_its_own_rows(project):
    project = project(rows=1, latency_scale=0.3)
    running = [
        project.start(
            "run",
            "--json",
            IDEOGRAM_PROMPTS=write(project.folder / f"{name}.csv", name),
            DAGSTER_HOME=project.home(name),
        )
        for name in ("ada", "bob")
    ]
    for process in running:
        code, out = project.finish(process)
        assert code == 0, project.output
        summary = project.summary(out)
        assert (summary["rows"], summary["generated"], summary["images"]) == (ROWS, ROWS, ROWS)
    stats = project.sandbox.stats()
    assert (stats.accepted, stats.duplicates) == (2 * ROWS, 0)
    metadata = project.check_that_everything_is_whole()
    assert len(metadata) == 2 * ROWS
    assert metadata["current"].all()
    outcomes = pd.read_parquet(project.store / "outcomes", partitioning=None)
    assert set(outcomes["state"]) == {"generated"}
    assert len(outcomes) == 2 * ROWS
    both = outcomes[outcomes["batch"] == "both"]["prompt_id"]
    assert {prompt_id[:3] for prompt_id in both} == {"ada", "bob"}
    code, out = project("run", "--json", IDEOGRAM_PROMPTS=str(project.folder / "ada.csv"))
    assert (code, project.summary(out)["reused"]) == (0, ROWS)
    assert len(pd.read_parquet(project.store / "catalog").query("current")) == 2 * ROWS

"""Every fault of the sandbox, alone and together: nothing is paid twice or kept corrupt, every row ends."""

import pandas as pd
import pytest

from ideogram_pipeline.sandbox import Fault, FaultKind
from ideogram_pipeline.sandbox.control import Change

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

PASSING = {
    FaultKind.SUBMIT_429,
    FaultKind.SLOW,
    FaultKind.EXPIRED_RESULT,
    FaultKind.TRUNCATED_DOWNLOAD,
    FaultKind.CORRUPT_DOWNLOAD,
    FaultKind.DROP_AFTER_ACCEPT,
}
"""After these a run ends with every picture; all others leave rows without one, which say why."""
KINDS = [kind for kind in FaultKind if not kind.startswith("webhook_")]
"""What can go wrong without webhooks; `test_webhooks` has the others."""
ROWS = 20
"""Rows of a batch: a fault that passes strikes three in ten, one that lasts the rows 1 and 10 to 19."""
STRUCK = {"r01", *(f"r{number}" for number in range(10, 20))}


def outcomes_of(project):
    """Return how every row ended, with its batch as it stands in the folder's name."""
    return pd.concat(
        pd.read_parquet(path).assign(batch=path.parent.name.removeprefix("batch="))
        for path in (project.store / "outcomes").glob("*/outcomes.parquet")
    )


def check(project):
    """What holds whatever went wrong: one state a row with a reason, no second bill, whole pictures, no key."""
    outcomes = outcomes_of(project)
    assert len(outcomes) == project.rows
    assert (outcomes["reason"][outcomes["state"] != "generated"] != "").all()
    resubmitted = outcomes["attempts"].clip(lower=1).sub(1).sum()
    assert project.sandbox.stats().duplicates <= resubmitted
    project.check_that_everything_is_whole()
    project.check_that_the_key_is_nowhere()
    return outcomes


def test_each_fault_alone_costs_only_the_rows_it_strikes_and_none_a_second_bill(project):
    """A batch for each: it is worked alone, so that only its own fault can strike its rows."""
    faults = tuple(
        Fault(kind, match=f"{kind} ", rate=0.3) if kind in PASSING else Fault(kind, match=f"{kind} scene 1")
        for kind in KINDS
    )
    project = project(rows=0, latency_scale=0, faults=faults)
    project.write_rows(
        (f"{kind}-r{number:02}", kind, f"{kind} scene {number}") for kind in KINDS for number in range(ROWS)
    )
    project.run(IDEOGRAM_MAX_WAIT_S="8")
    for kind, outcomes in check(project).groupby("batch"):
        struck = set(outcomes["prompt_id"][outcomes["state"] != "generated"].str[-3:])
        if kind in PASSING:
            assert struck == set(), kind
        elif kind == FaultKind.LOCKED_BALANCE:
            assert struck >= STRUCK, kind
        else:
            assert struck == STRUCK, kind
    project.sandbox.change(Change(faults=()))
    project.settle(IDEOGRAM_MAX_WAIT_S="8")
    outcomes = check(project)
    assert set(outcomes["batch"][outcomes["state"] == "not_reached"]) == {"stuck"}
    assert "unknown" not in set(outcomes["state"])


def test_all_faults_together_leave_every_row_in_a_final_state(project):
    kinds = [kind for kind in KINDS if kind not in (FaultKind.STUCK, FaultKind.LOCKED_BALANCE)]
    project = project(rows=150, latency_scale=0.2, faults=tuple(Fault(kind, rate=0.05) for kind in kinds))
    project.run()
    project.run()
    outcomes = check(project)
    assert (outcomes["state"] == "generated").mean() > 0.5
    project.sandbox.change(Change(faults=()))
    project.settle()
    outcomes = check(project)
    assert not outcomes["state"].isin(["unknown", "not_reached"]).any()

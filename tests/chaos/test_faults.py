"""Every fault of the sandbox, alone and together: nothing is paid twice or kept corrupt, every row ends."""

import pandas as pd
import pytest

from ideogram_pipeline.sandbox import Fault, FaultKind
from ideogram_pipeline.sandbox.control import Change

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

PASSING = [
    FaultKind.SUBMIT_429,
    FaultKind.SUBMIT_503,
    FaultKind.SLOW,
    FaultKind.TRUNCATED_DOWNLOAD,
    FaultKind.CORRUPT_DOWNLOAD,
    FaultKind.DROP_AFTER_ACCEPT,
]
"""After these a run ends with every picture."""
LASTING = [
    FaultKind.SUBMIT_500,
    FaultKind.DROP_BEFORE_ACCEPT,
    FaultKind.LOCKED_BALANCE,
    FaultKind.POLICY_REFUSAL,
    FaultKind.NO_MEDIA,
    FaultKind.MODEL_500,
    FaultKind.RUNNER_503,
    FaultKind.EXPIRED_RESULT,
    FaultKind.MISSING_DOWNLOAD,
]
"""After these some rows have no picture, and say why."""


def outcomes_of(project):
    return pd.read_parquet(project.store / "outcomes" / "batch=default" / "outcomes.parquet")


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


@pytest.mark.parametrize("kind", PASSING)
def test_a_fault_that_passes_costs_no_picture_and_no_second_bill(project, kind):
    project = project(rows=20, latency_scale=0, faults=(Fault(kind, rate=0.3),))
    project.run()
    outcomes = check(project)
    assert set(outcomes["state"]) == {"generated"}
    stats = project.sandbox.stats()
    assert (stats.accepted, stats.duplicates) == (project.rows, 0)


@pytest.mark.parametrize("kind", LASTING)
def test_a_fault_that_lasts_costs_only_the_rows_it_strikes(project, kind):
    project = project(rows=20, latency_scale=0, faults=(Fault(kind, match="scene 1"),))
    project.run()
    outcomes = check(project)
    struck = outcomes["state"] != "generated"
    if kind is FaultKind.LOCKED_BALANCE:
        assert struck.any()
    else:
        assert set(outcomes["prompt_id"][struck]) == {"p001", *(f"p01{number}" for number in range(10))}
    project.sandbox.change(Change(faults=()))
    project.settle()
    check(project)


def test_all_faults_together_leave_every_row_in_a_final_state(project):
    kinds = [kind for kind in FaultKind if kind not in (FaultKind.STUCK, FaultKind.LOCKED_BALANCE)]
    project = project(rows=150, latency_scale=0.2, faults=tuple(Fault(kind, rate=0.05) for kind in kinds))
    project.run()
    project.run()
    outcomes = check(project)
    assert (outcomes["state"] == "generated").mean() > 0.5
    project.sandbox.change(Change(faults=()))
    project.settle()
    outcomes = check(project)
    assert not outcomes["state"].isin(["unknown", "not_reached"]).any()

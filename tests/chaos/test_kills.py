"""A real process is killed again and again, at any point of its work; in the end every row was paid for once."""

import os
import random
import time

import pytest

from ideogram_pipeline.sandbox import Fault
from ideogram_pipeline.sandbox.control import Change

KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("SEED", "1"))

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(60 + 60 * KILLS)]


def test_however_often_a_run_is_killed_every_row_is_paid_once(project):
    chance = random.Random(SEED)
    project = project(rows=8 * KILLS, latency_scale=1.0)
    landed = []
    for _ in range(KILLS):
        seen = len(project.ledger_files())
        process = project.start("run", IDEOGRAM_MAX_IN_FLIGHT="8")
        goal = seen + chance.choice([0, 1, 2, 5, 10, 20, 30])
        while len(project.ledger_files()) < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        project.finish(process)
        landed.append(len(project.ledger_files()) - seen)
    assert any(landed)
    project.sandbox.change(Change(latency_scale=0))
    summary = project.settle()
    project.check_that_every_row_was_paid_once(summary)


def test_kills_and_lost_answers_together_still_pay_every_row_once(project):
    chance = random.Random(SEED)
    project = project(rows=40, latency_scale=0.5, faults=(Fault("drop_after_accept", rate=0.2),))
    for _ in range(max(2, KILLS // 5)):
        seen = len(project.ledger_files())
        process = project.start("run", IDEOGRAM_MAX_IN_FLIGHT="4")
        while len(project.ledger_files()) < seen + chance.randint(1, 12) and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        project.finish(process)
    summary = project.settle()
    project.check_that_every_row_was_paid_once(summary)

"""fal may say anything, runs may die, race and come back, clocks may jump: nothing is paid twice, and nothing is lost."""

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.adversary.histories import budgets, histories, play, seeds, tables

HISTORIES = int(os.environ.get("HISTORIES", "300"))
SEED = int(os.environ.get("SEED", "0"))
PARTS = 6


@pytest.mark.timeout(0)
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_paid_twice_or_lost(part):
    begun, played = time.monotonic(), 0

    @seed(SEED * PARTS + part)
    @settings(
        max_examples=HISTORIES // PARTS,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(steps=histories, rows=tables, seed=seeds, day_usd=budgets)
    def every_history(steps, rows, seed, day_usd):
        nonlocal played
        played += 1
        play(*steps, rows=rows, seed=seed, day_usd=day_usd)

    every_history()
    print(f"{played} histories, {played / (time.monotonic() - begun):.1f} a second")

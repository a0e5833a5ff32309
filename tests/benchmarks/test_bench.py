"""The benchmark runs, and its floor is a floor."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).parents[2] / "benchmarks" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    module = sys.modules["bench"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(st.lists(st.floats(0, 100), min_size=1, max_size=200))
def test_no_server_is_faster_than_the_floor(bench, services):
    floor, slack = bench.floor(services), 1e-6 * len(services)
    assert floor >= max(*services, sum(services) / bench.SLOTS) - slack
    assert floor <= max(services) + sum(services) / bench.SLOTS + slack


@pytest.mark.slow
def test_both_clients_make_every_picture_and_are_measured():
    command = [sys.executable, str(BENCH), "--mode", "throughput", "--rows", "8", "--rounds", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()[-3:]
    for line, name in zip(lines, ("fal-client", "ours", "ours, no thumbnails"), strict=True):
        client, pictures, _, _, calls, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        assert (client, pictures) == (name, "8")
        assert float(calls) >= 4

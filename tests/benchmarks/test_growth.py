"""What one more batch costs does not grow with what was made before: the store's operations are the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

GROWTH = Path(__file__).parents[2] / "benchmarks" / "growth.py"


@pytest.mark.slow
def test_one_more_batch_takes_the_same_operations_whatever_is_there():
    command = [sys.executable, str(GROWTH), "--rows", "1000", "3000"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    small, large = (re.findall(r"\((\d+)\)", line)[1:] for line in ended.stdout.splitlines()[-2:])
    assert small == large
    assert len(small) == 5

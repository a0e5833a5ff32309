"""`make clean`, which once deleted `./var` with paid pictures in it."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def clean(tmp_path):
    """Run `make clean` where a store lies in `var`, and return what it says and whether `var` is there after it."""
    shutil.copy(ROOT / "Makefile", tmp_path)

    def make(answer="", **stores):
        for folder, mark in {"": None, **stores}.items():
            (tmp_path / "var" / folder / "ledger").mkdir(parents=True, exist_ok=True)
            if mark is not None:
                (tmp_path / "var" / folder / "store.json").write_text(mark)
        done = subprocess.run(
            ["make", "clean"], cwd=tmp_path, input=answer, capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr, (tmp_path / "var").exists()

    def at_root(mark, answer, **stores):
        (tmp_path / "var").mkdir()
        (tmp_path / "var" / "store.json").write_text(mark)
        return make(answer, **stores)

    return at_root


SANDBOX = '{"backend":"sandbox","pipeline":""}'
FAL = '{"backend":"fal","pipeline":""}'


@pytest.mark.parametrize(("answer", "stays"), [("y\n", False), ("\n", True), ("", True), ("no\n", True)])
def test_the_sandboxs_store_goes_only_where_somebody_says_yes(clean, answer, stays):
    said, there = clean(SANDBOX, answer)
    assert "Remove var" in said
    assert there == stays


@pytest.mark.parametrize("mark", [FAL, '{ "backend" : "fal" }', "damaged", ""])
def test_paid_pictures_stay_whatever_is_answered(clean, mark):
    said, there = clean(mark, "y\n")
    assert there
    assert "var stays: it may hold pictures that were paid for:\nvar/store.json" in said
    assert "Remove" not in said


@pytest.mark.parametrize("mark", [FAL, None])
def test_a_store_in_a_folder_of_it_counts_too(clean, mark):
    said, there = clean(SANDBOX, "y\n", spring=mark)
    assert there
    assert "var/spring" in said


def test_where_there_is_nothing_it_asks_nothing(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".pytest_cache").mkdir()
    done = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Remove" not in done.stdout
    assert not (tmp_path / ".pytest_cache").exists()

"""The ledger's protocol, checked in every order that its steps can have: see `protocol.pml` and docs/ledger.md.

`spin` makes a program of the model, which goes through all of its states. That program ends with 0 after a failed
assertion and after a search that was cut short, so its text is read. Each planted fault has to be found, or the check
proves nothing.

To read a failure: `spin -t -p -g tests/chaos/protocol.pml`, with the same -D, beside the `.trail` in the test's folder.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("protocol.pml")
RUNS = ("-DRUNS_ONLY", "-DSTARTS=4")
DEPTH = 10_000
MEGABYTES = 3_000

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        not (shutil.which("spin") and shutil.which("gcc")) and not os.environ.get("CI"),
        reason="spin or gcc is not installed (Debian: apt-get install spin gcc libc6-dev)",
    ),
]


@pytest.fixture
def checked(tmp_path):
    """Go through every state of the model, with these macros; return what was said."""

    def check(*macros):
        def do(*command):
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        shutil.copy(MODEL, tmp_path)
        do("spin", "-a", *macros, MODEL.name)
        do("gcc", "-w", "-O2", "-DSAFETY", "-DCOLLAPSE", f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c")
        return do("./pan", "-E", f"-m{DEPTH}")

    return check


def check_that_nothing_was_left_out(said):
    assert "errors: 0" in said, said
    for cut in ("max search depth too small", "not completed", "MEMLIM", "out of memory", "truncated"):
        assert cut not in said, said


def unreached(said):
    """The statements that no history came to; the end of the model's endless processes is not one."""
    return [line for line in re.findall(r"protocol\.pml:\d+, state \d+, \"(.*)\"", said) if line != "-end-"]


def test_four_runs_in_two_places_with_a_restored_backup_pay_once_and_give_nothing_up(checked):
    said = checked(*RUNS)
    check_that_nothing_was_left_out(said)
    assert unreached(said) == []


def test_two_runs_and_a_reconcile_with_a_restored_backup_pay_once_and_give_nothing_up(checked):
    check_that_nothing_was_left_out(checked())


@pytest.mark.parametrize(
    ("fault", "broken"),
    [
        pytest.param("PROOF=1", "failed", id="a-request-is-settled-on-one-5xx"),
        pytest.param("PROOF=2", "failed", id="a-request-is-settled-on-two-like-answers"),
        pytest.param("RELEASE_ON_5XX", "paid", id="a-5xx-to-a-submit-is-taken-for-a-refusal"),
        pytest.param("POST_FIRST", "paid", id="the-reservation-is-written-after-the-post"),
        pytest.param("OVERWRITE", "paid", id="a-file-is-overwritten-instead-of-created-once"),
        pytest.param("NO_ADOPT", "paid", id="a-backup-is-restored-and-nothing-adopted"),
        pytest.param("ADOPT_HELD_ONLY", "paid", id="adopt-leaves-out-what-ended-without-a-picture"),
        pytest.param("SETTLE_LAST", "failed", id="an-end-settles-the-last-attempt-not-the-one-asked-about"),
        pytest.param("SEARCH_ALIVE", "paid", id="a-search-takes-up-what-a-live-run-is-submitting"),
    ],
)
def test_a_planted_fault_is_found(checked, fault, broken):
    said = checked(*RUNS, f"-D{fault}")
    assertion = {"failed": "disk[", "paid": "give_ups"}[broken]
    assert re.search(rf"assertion violated .*{re.escape(assertion)}", said), said

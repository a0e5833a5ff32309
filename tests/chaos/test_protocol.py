"""The ledger's protocol, checked in every order that its steps can have: see `protocol.pml` and docs/ledger.md.

`spin` makes a program of the model, which goes through all of its states. That program ends with 0 after a failed
assertion and after a search that was cut short, so its text is read. Each planted fault has to be found, or the check
proves nothing.

To read a failure: `spin -t -p -g protocol.pml` with the same -D, in the test's folder.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("protocol.pml")
RUNS = ("-DSTARTS=4", "-DRECONCILES=0")
WITH_RECONCILE = ("-DSTARTS=2", "-DRECONCILES=1")
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
    """Go through every state of the model, with these macros and changes to its text; return what was said."""

    def check(macros, *changes):
        def do(*command):
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        text = MODEL.read_text()
        for line, planted in changes:
            assert text.count(line) == 1, line
            text = text.replace(line, planted)
        (tmp_path / MODEL.name).write_text(text)
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
    check_that_nothing_was_left_out(checked(RUNS))


def test_two_runs_and_a_reconcile_with_a_restored_backup_pay_once_and_give_nothing_up(checked):
    said = checked(WITH_RECONCILE)
    check_that_nothing_was_left_out(said)
    assert unreached(said) == []


LOST = ":: true -> skip            /* its answer is lost, or a 5xx that may lie */"
LISTED = "     ends(r);\n"
ALIVE = ":: !owner[n] || owner[n] == _pid + 1 ->"


@pytest.mark.parametrize(
    ("broken", "changes"),
    [
        pytest.param("fal[sent[", [("PROOF 3 ", "PROOF 1 ")], id="a-request-is-settled-on-one-5xx"),
        pytest.param("fal[sent[", [("PROOF 3 ", "PROOF 2 ")], id="a-request-is-settled-on-two-like-answers"),
        pytest.param(
            "give_ups", [(LOST, ":: true -> release()")], id="a-5xx-to-a-submit-is-taken-for-a-refusal"
        ),
        pytest.param(
            "give_ups",
            [
                ("  reserve();\n  if\n", "  if\n"),
                ("post();\n     if\n", "post(); reserve();\n     if\n"),
                (":: true                       /* lost on its way", ":: goto stop   /* lost on its way"),
                (":: true -> release()          /* a 4xx", ":: goto stop   /* a 4xx"),
            ],
            id="the-reservation-is-written-after-the-post",
        ),
        pytest.param(
            "give_ups", [("ONCE(absent)    (absent)", "ONCE(absent) true")], id="a-file-is-overwritten"
        ),
        pytest.param(
            "give_ups", [("restore(); adopt();", "restore();")], id="a-backup-is-restored-and-nothing-adopted"
        ),
        pytest.param(
            "give_ups",
            [
                (LISTED, f"{LISTED}     if :: fal[r] == failed -> r++; goto next :: else fi;\n"),
                ("look(1); r++\n", "look(1); r++;\nnext: skip\n"),
            ],
            id="adopt-leaves-out-what-ended-without-a-picture",
        ),
        pytest.param(
            "fal[sent[",
            [(":: true -> settle(k, again) :: true -> settle(k, final)", ":: true -> settle(n, again)")],
            id="an-end-settles-the-last-attempt-not-the-one-asked-about",
        ),
        pytest.param(
            "give_ups", [(ALIVE, ":: true ->")], id="a-search-takes-up-what-a-live-run-is-submitting"
        ),
    ],
)
def test_a_planted_fault_is_found(checked, broken, changes):
    said = checked(RUNS, *changes)
    assert re.search(rf"assertion violated .*{re.escape(broken)}", said), said

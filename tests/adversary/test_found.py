"""Histories that once ended in something paid twice or lost, as the adversary shortened them: one for each fault."""

import pytest

from tests.adversary.fal import Drop, Ends, Odd, OtherRows, Say
from tests.adversary.histories import (
    back_up,
    crash,
    edit,
    fate,
    give_up,
    jump,
    lie,
    lose_ledger,
    play,
    restore,
    start,
    wait,
)

THRICE_AND_MORE = 24
FOUND = {
    "one 500 with an id ended a request": [lie("result", Say(500, "text")), start(), wait(10)],
    "a 404 on a status gave a request up": [lie("status", Say(404, "no status")), start(), wait(10)],
    "a result without a seed was no result": [lie("result", Odd("no seed")), start(), wait(10)],
    "a huge seed broke every later run": [lie("result", Odd("huge seed")), start(), wait(10)],
    "an answer without pictures gave a request up": [lie("result", Say(200, "no images")), start(), wait(10)],
    "a load balancer's 503 had a submit sent again": [
        lie("submit", Say(503, "html", with_id=False)),
        start(),
        wait(10),
    ],
    "another row's error ended a request": [
        fate(Ends("internal", 0.5)),
        lie("result", *[OtherRows()] * THRICE_AND_MORE),
        start(),
        wait(10),
    ],
    "another row's request was taken for a submit's": [
        start(),
        wait(60),
        edit(3, 0),
        lie("submit", OtherRows()),
        start(),
        wait(10),
    ],
    "an error that was told three times, but not in a row, ended a request": [
        lie("result", *[Say(500, "downstream"), Say(500, "html", with_id=False), Say(500, "downstream")] * 2),
        start(),
        wait(60),
    ],
    "a slow clock hid requests from reconcile --adopt": [
        jump(-3600.0),
        start(),
        wait(0.3),
        lose_ledger(with_copies=True),
    ],
    "yesterday's backup was paid again": [back_up(), start(), wait(10), restore(), start(), wait(10)],
    "a request that had been found in fal's list was taken for the next submit's": [
        lie("submit", Drop(), OtherRows()),
        fate(Ends("downstream", 0.5)),
        start(),
        wait(20),
    ],
    "a submit that was lost again after it was given up was never found": [
        lie("submit", Drop(), Drop()),
        start(),
        wait(3),
        crash(),
        give_up(),
        lie("submit", Drop(), Drop()),
        start(),
        wait(10),
    ],
    "a delivery that was another row's took that row's request": [
        lie("submit", *[Drop()] * 4),
        lie("delivery", *[OtherRows()] * 4),
        start(),
        wait(60),
    ],
    "takes were forgotten with the ledger": [
        start(),
        wait(10),
        start(regenerate=True),
        wait(10),
        lose_ledger(with_copies=True),
    ],
}


@pytest.mark.parametrize("delivers", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND)
def test_what_was_found_once(steps, rows, delivers):
    play(*steps, rows=rows, delivers=delivers)

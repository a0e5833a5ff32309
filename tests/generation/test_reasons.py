"""Why rows have no picture: each reason once."""

from ideogram_pipeline.generation.outcomes import NotReached
from ideogram_pipeline.generation.reasons import Reason, grouped, without_pictures
from ideogram_pipeline.generation.records import outcome_rows

BUDGET = "The budget of this run is $1.00, of which $0.{} is spent or reserved: too little is left."


def test_rows_that_differ_only_in_sums_of_money_are_told_together():
    rows = [Reason("not_reached", BUDGET.format(90 + number), 1, (f"p{number}",)) for number in range(5)]
    (one,) = grouped([*rows[:3], *grouped(rows[3:])])
    assert str(one) == f"p0, p1, p2 and 2 more: not_reached: {BUDGET.format(90)}"


def test_other_numbers_tell_reasons_apart():
    reasons = [Reason("rejected", f"num_images: {number} is too many", 1, ("a",)) for number in (9, 12)]
    assert [str(one) for one in grouped(reasons)] == [
        "a: rejected: num_images: 9 is too many",
        "a: rejected: num_images: 12 is too many",
    ]


def test_rows_that_a_person_left_out_need_no_reason(work_batch):
    made = work_batch([{"prompt_id": name, "prompt": "x"} for name in "abc"], endings={"b": "refused"})
    outcomes = [
        *made.outcomes[:2],
        NotReached(made.outcomes[2].request, None, "left out: limit 1", "left_out"),
    ]
    rows = outcome_rows(made.plan, outcomes, made.ledger.entries)
    assert [str(one) for one in without_pictures(rows)] == ["b: refused: it was refused"]

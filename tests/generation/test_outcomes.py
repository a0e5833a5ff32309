"""Outcomes: what a row ended as, also when another run ended it."""

from dataclasses import replace
from datetime import UTC, datetime

from ideogram_pipeline.generation.ledger import Entry, Released
from ideogram_pipeline.generation.outcomes import (
    Failed,
    NotReached,
    Outcomes,
    Refused,
    Reused,
    Unknown,
    is_missing,
    left_to_another_run,
    of_entry,
)


def test_a_row_that_another_run_made_meanwhile_is_reused(work_batch):
    (generated,) = work_batch([{"prompt_id": "a", "prompt": "a lighthouse"}]).outcomes
    entries = {generated.request.fingerprint: generated.entry}
    reserved = Entry((replace(generated.entry.last, submitted=None, settled=None),))
    for left in (
        NotReached(generated.request, None, "another run"),
        Unknown(generated.request, reserved, "?"),
        Failed(generated.request, reserved, "it could not be fetched"),
    ):
        outcomes = Outcomes([left.request], entries)
        outcomes.add(left)
        assert outcomes.now(left.request) == Reused(generated.request, generated.entry)


def test_what_the_ledger_alone_says_of_an_open_row_tells_whether_fal_has_it(work_batch):
    (made,) = work_batch([{"prompt_id": "a", "prompt": "a lighthouse"}]).outcomes
    with_fal = Entry((replace(made.entry.last, settled=None),))
    released = Released(released_at=datetime.now(UTC), reason="busy")
    never_accepted = replace(made.entry.last, submitted=None, settled=None, released=released)
    request_id = made.entry.last.submitted.request_id
    assert of_entry(made.request, with_fal).reason == f"{request_id} is with fal; the next run fetches it"
    assert "fal has not accepted it" in of_entry(made.request, Entry((never_accepted,))).reason


def test_a_row_is_missing_unless_it_has_its_picture_was_left_out_or_is_with_another_run(work_batch):
    (made,) = work_batch([{"prompt_id": "a", "prompt": "a lighthouse"}]).outcomes
    missing = {
        is_missing(kind(made.request, made.entry, "why")) for kind in (Refused, Failed, Unknown, NotReached)
    }
    assert missing == {True}
    assert not is_missing(made)
    assert not is_missing(NotReached(made.request, None, "left out: limit 1", "left_out"))
    assert not is_missing(left_to_another_run(made.request, made.entry, "run b is working on it"))

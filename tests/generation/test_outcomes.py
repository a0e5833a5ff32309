"""Outcomes: what a row ended as, also when another run ended it."""

from ideogram_pipeline.generation.outcomes import NotReached, Reused, Unknown, caught_up


def test_a_row_that_another_run_made_meanwhile_is_reused(work_batch):
    (generated,) = work_batch([{"prompt_id": "a", "prompt": "a lighthouse"}]).outcomes
    entries = {generated.request.fingerprint: generated.entry}
    for left in (
        NotReached(generated.request, None, "another run"),
        Unknown(generated.request, generated.entry, "?"),
    ):
        assert caught_up(left, entries) == Reused(generated.request, generated.entry)
        assert caught_up(left, {}) == left

"""When requests start and end."""

import itertools
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.sandbox.config import SandboxSettings
from ideogram_pipeline.sandbox.pictures import PictureShelf
from ideogram_pipeline.sandbox.queue import MEAN_RUN_S, Envelope, Queue
from ideogram_pipeline.sandbox.state import Phase, State
from ideogram_pipeline.sandbox.studio import Studio

ENVELOPE = Envelope(headers={}, base_url="http://sandbox", webhook=None, start_timeout_s=None)


def queue_of(**settings):
    state, chosen = State(":memory:"), SandboxSettings(**settings)
    return Queue(chosen, state, Studio(PictureShelf(state), chosen.mask_repaints)), state


def accept(queue, **arguments):
    return queue.accept(queue.read("fal-ai/ideogram/v3", {"prompt": "x", **arguments}), ENVELOPE)


@given(st.integers(1, 4), st.lists(st.sampled_from(["start", "cancel"]), max_size=30), st.randoms())
def test_never_more_than_the_slots_run_and_never_a_slot_is_free_while_somebody_waits(slots, steps, chance):
    queue, state = queue_of(concurrency=slots, faults="stuck")
    accepted = []
    for step in steps:
        if step == "start":
            accepted.append(accept(queue, seed=len(accepted)).id)
        elif accepted:
            queue.cancel(queue.find(chance.choice(accepted)))
        queue.catch_up()
        assert state.running() <= slots
        assert state.running() == slots or state.queued() == 0
    state.close()


@given(st.integers(1, 4), st.integers(1, 12))
def test_who_came_first_starts_first(slots, requests):
    queue, state = queue_of(concurrency=slots, latency_scale=1e-6)
    ids = [accept(queue, seed=number).id for number in range(requests)]
    found = [queue.find(one) for one in ids]
    while any(one.phase is not Phase.DONE for one in found):
        found = [queue.find(one) for one in ids]
    starts = [one.started_at for one in found]
    assert starts == sorted(starts)
    state.close()


@pytest.mark.parametrize("speed", MEAN_RUN_S)
def test_a_request_takes_its_speed_s_time_give_or_take_30_percent(speed):
    queue, _ = queue_of()
    times = [accept(queue, rendering_speed=speed, seed=seed).submission.run_s for seed in range(50)]
    assert min(times) >= 0.7 * MEAN_RUN_S[speed]
    assert max(times) <= 1.3 * MEAN_RUN_S[speed]
    assert len(set(times)) > 40


@pytest.mark.parametrize("nonsense", [None, 7, "WARP", []])
def test_an_unknown_speed_takes_the_default_s_time(nonsense):
    queue, _ = queue_of(latency_scale=2)
    run_s = accept(queue, rendering_speed=nonsense).submission.run_s
    assert 0.7 * 1.2 <= run_s <= 1.3 * 1.2


def test_the_same_input_always_takes_the_same_time():
    (one, _), (other, _) = queue_of(), queue_of()
    assert accept(one).submission.run_s == accept(other).submission.run_s
    reseeded, _ = queue_of(seed=1)
    assert accept(reseeded).submission.run_s != accept(one).submission.run_s


def test_one_slot_works_through_the_queue_without_overlap(call):
    caller = call(concurrency=1, latency_scale=0.02)
    submitted = [caller.submit(prompt=f"number {number}") for number in range(6)]
    caller.events(submitted[-1])
    path = "/v1/models/requests/by-endpoint?endpoint_id=fal-ai/ideogram/v3"
    items = caller.http.get(path).json()["items"][::-1]
    assert [one["request_id"] for one in items] == [one["request_id"] for one in submitted]
    spans = [[datetime.fromisoformat(one[name]) for name in ("started_at", "ended_at")] for one in items]
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans))

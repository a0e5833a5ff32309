"""What a sandbox tells about itself, and how it is changed."""

from decimal import Decimal

import httpx2
import pytest

from ideogram_pipeline.sandbox import Change, Fault, FaultKind


def test_everything_is_counted(call, portrait):
    caller = call()
    reference = caller.upload(portrait)
    caller.pictures("character", reference_image_urls=[reference], num_images=2)
    caller.result("character/edit", image_url="x")
    submitted = caller.submit(rendering_speed="TURBO")
    caller.http.get(submitted["status_url"])
    caller.http.put(submitted["cancel_url"])
    caller.post("v4")
    stats = caller.sandbox.stats()
    assert (stats.submits, stats.accepted, stats.duplicates) == (4, 3, 0)
    assert (stats.completed, stats.failed, stats.images) == (2, 1, 3)
    assert stats.usd == Decimal("0.33")
    assert (stats.uploads, stats.downloads, stats.cancels) == (1, 2, 1)
    assert (stats.status_calls, stats.result_calls, stats.misplaced_keys) == (1, 2, 0)


def test_the_same_picture_uploaded_twice_is_still_the_same_input(call, portrait):
    caller = call()
    for name in ("one.png", "two.png"):
        caller.submit("character", reference_image_urls=[caller.upload(portrait, name)])
    assert caller.sandbox.stats().duplicates == 1


def test_another_parameter_is_another_input(call):
    caller = call()
    for arguments in ({}, {"seed": 1}, {"seed": 2}, {"num_images": 2}):
        caller.submit(**arguments)
    caller.submit("v3/remix")
    assert caller.sandbox.stats().duplicates == 0


def test_fields_an_endpoint_does_not_have_are_told(call):
    caller = call()
    caller.submit("character/edit", style="AUTO", negative_prompt="x")
    caller.submit("character/edit", style="AUTO")
    caller.submit()
    assert caller.sandbox.stats().surplus_fields == {
        "fal-ai/ideogram/character/edit": {"style": 2, "negative_prompt": 1}
    }


def test_requests_are_recorded_without_credentials(call):
    caller = call()
    submitted = caller.submit(seed=3, headers={"X-Fal-Store-IO": "0"})
    (recorded,) = caller.sandbox.requests()
    assert (recorded.request_id, recorded.endpoint_id) == (submitted["request_id"], "fal-ai/ideogram/v3")
    assert recorded.arguments == {"prompt": "a lighthouse", "seed": 3}
    assert recorded.headers["x-fal-store-io"] == "0"
    assert "a-secret" not in caller.http.get("/sandbox/requests").text


def test_settings_can_be_changed_while_it_runs(call):
    caller = call()
    caller.sandbox.change(Change(faults=(Fault(FaultKind.STUCK),), concurrency=1))
    caller.submit()
    waiting = caller.submit(prompt="waits")
    assert caller.http.get(waiting["status_url"]).json()["status"] == "IN_QUEUE"
    caller.sandbox.change(Change(concurrency=2))
    assert caller.http.get(waiting["status_url"]).json()["status"] == "IN_PROGRESS"


@pytest.mark.parametrize(
    "body", ['{"faults": "surprise"}', '{"faults": "["}', '{"concurrency": 0}', '{"seed": 1}', "nonsense"]
)
def test_a_change_that_makes_no_sense_is_refused(call, body):
    caller = call()
    assert caller.http.post("/sandbox/settings", content=body).status_code == 422
    assert caller.result().status_code == 200


def test_a_reset_forgets_requests_files_and_counts(call):
    caller = call()
    file = caller.upload(b"bytes")
    submitted = caller.submit()
    caller.sandbox.reset()
    assert caller.without_key.get(file).status_code == 404
    assert caller.http.get(submitted["response_url"]).status_code == 404
    assert caller.sandbox.stats().accepted == 0


def test_faults_that_strike_once_strike_again_after_a_reset(call):
    caller = call(faults="drop_before_accept")
    for _ in range(2):
        with pytest.raises(httpx2.RemoteProtocolError):
            caller.post(prompt="x")
        caller.sandbox.reset()

"""The queue's addresses, as fal answers them."""

import uuid

import pytest

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def held(call, **settings):
    """A sandbox with one slot, and a request that holds it until it is cancelled."""
    caller = call(concurrency=1, faults="stuck", **settings)
    holder = caller.submit(prompt="holds the slot")
    caller.http.post("/sandbox/settings", json={"faults": []})
    return caller, holder


def test_a_submit_is_answered_with_the_urls_that_fal_gives(call):
    caller = call()
    answer = caller.post("character/edit", prompt="x")
    body = answer.json()
    base = f"{caller.sandbox.url}/fal-ai/ideogram/requests/{body['request_id']}"
    assert answer.status_code == 200
    assert answer.headers["x-fal-request-id"] == body["request_id"]
    assert (body["status"], body["queue_position"], body["logs"]) == ("IN_QUEUE", 0, None)
    assert (body["response_url"], body["status_url"], body["cancel_url"]) == (
        base,
        f"{base}/status",
        f"{base}/cancel",
    )


def test_request_ids_are_version_7_and_sort_by_time(call):
    caller = call()
    ids = [uuid.UUID(caller.submit()["request_id"]) for _ in range(3)]
    assert [one.version for one in ids] == [7, 7, 7]
    assert [one.variant for one in ids] == [uuid.RFC_4122] * 3
    stamps = [one.int >> 80 for one in ids]
    assert stamps == sorted(stamps)


def test_addresses_carry_the_host_that_the_caller_used(call):
    caller = call()
    localhost = caller.sandbox.url.replace("127.0.0.1", "localhost")
    answer = caller.http.post(
        "/fal-ai/ideogram/v3", json={"prompt": "x"}, headers={"Host": localhost.removeprefix("http://")}
    )
    assert answer.json()["status_url"].startswith(f"{localhost}/fal-ai/ideogram/requests/")


def test_status_is_202_until_completed_then_200(call):
    caller, holder = held(call)
    waiting = caller.submit(prompt="waits")
    answer = caller.http.get(waiting["status_url"])
    assert (answer.status_code, answer.json()["status"]) == (202, "IN_QUEUE")
    assert answer.json()["queue_position"] == 0
    assert caller.http.get(holder["status_url"]).json()["status"] == "IN_PROGRESS"
    assert caller.http.get(holder["status_url"]).status_code == 202
    caller.http.put(holder["cancel_url"])
    answer = caller.http.get(waiting["status_url"])
    assert (answer.status_code, answer.json()["status"]) == (200, "COMPLETED")
    assert answer.json()["metrics"] == {"inference_time": 0.0}


def test_queue_position_counts_who_came_before(call):
    caller, _ = held(call)
    waiting = [caller.submit(prompt=f"waits {place}") for place in range(3)]
    positions = [caller.http.get(one["status_url"]).json()["queue_position"] for one in waiting]
    assert [one["queue_position"] for one in waiting] == positions == [0, 1, 2]


def test_logs_are_told_only_when_asked_for(call):
    caller = call()
    submitted = caller.submit(rendering_speed="QUALITY")
    assert caller.http.get(submitted["status_url"]).json()["logs"] is None
    for asked in ("1", "true"):
        logs = caller.http.get(submitted["status_url"], params={"logs": asked}).json()["logs"]
        assert [line["message"] for line in logs] == ["Rendering at QUALITY", "Done"]
        assert {line["level"] for line in logs} == {"INFO"}


def test_the_stream_tells_each_change_and_ends_with_completed(call):
    caller = call(latency_scale=0.2)
    events = caller.events(caller.submit())
    assert [event["status"] for event in events] == ["IN_PROGRESS", "COMPLETED"]


def test_a_result_asked_for_too_early_is_a_400(call):
    caller, holder = held(call)
    answer = caller.http.get(holder["response_url"])
    assert (answer.status_code, answer.json()) == (400, {"detail": "Request is still in progress"})


def test_a_result_has_the_shape_of_the_endpoint_s_output(call):
    answer = call().result(num_images=2, seed=7)
    body = answer.json()
    assert (answer.status_code, body["seed"], len(body["images"])) == (200, 7, 2)
    assert answer.headers["X-Fal-Billable-Units"] == "2"
    assert {image["content_type"] for image in body["images"]} == {"image/png"}


def test_the_whole_endpoint_id_belongs_into_the_submit_url_only(call):
    caller = call()
    request_id = caller.submit("v3/edit")["request_id"]
    path = f"/fal-ai/ideogram/v3/edit/requests/{request_id}"
    assert caller.http.get(f"{path}/status").status_code == 405
    assert caller.http.get(path).status_code == 405
    assert caller.http.put(f"{path}/cancel").status_code == 405


def test_an_id_of_another_app_is_not_found(call):
    caller = call()
    request_id = caller.submit()["request_id"]
    assert caller.http.get(f"/fal-ai/flux/requests/{request_id}/status").status_code == 404


def test_unknown_ids_are_answered_as_fal_does(call):
    caller, path = call(), f"/fal-ai/ideogram/requests/{UNKNOWN}"
    status, result = caller.http.get(f"{path}/status"), caller.http.get(path)
    cancel = caller.http.put(f"{path}/cancel")
    assert (status.status_code, status.json()) == (404, {"status": "NOT_FOUND"})
    assert (result.status_code, result.json()) == (404, {"detail": "Request not found"})
    assert (cancel.status_code, cancel.json()) == (404, {"status": "NOT_FOUND"})
    assert caller.http.get(f"{path}/status/stream").status_code == 404


def test_an_unknown_endpoint_is_a_404(call):
    assert call().post("v4", prompt="x").status_code == 404


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[1]", b'"text"', b"\xff", b'{"x": NaN}', b'{"x": 1e999}', b'{"x": "\\ud800"}'],
)
def test_a_body_that_is_no_json_object_is_refused(call, body):
    assert call().http.post("/fal-ai/ideogram/v3", content=body).status_code == 400


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        ({}, "Authorization header is required"),
        ({"Authorization": "Key wrong"}, "invalid key credentials"),
        ({"Authorization": "Key"}, "invalid key credentials"),
        ({"Authorization": "an-id:a-secret"}, "invalid key credentials"),
        ({"Authorization": "Bearer an-id:a-secret"}, "bearer: unable to decode issuer"),
    ],
)
def test_a_key_that_is_not_the_one_set_is_a_401(call, sent, problem):
    caller = call(expected_key="an-id:a-secret")
    answer = caller.without_key.post("/fal-ai/ideogram/v3", json={"prompt": "x"}, headers=sent)
    assert (answer.status_code, answer.json()) == (401, {"detail": problem})


def test_the_key_that_is_set_is_accepted(call):
    assert call(expected_key="an-id:a-secret").post(prompt="x").status_code == 200


def test_a_free_key_check_works_as_with_fal(call):
    http, path = call().without_key, f"/fal-ai/ideogram/requests/{UNKNOWN}/status"
    assert http.get(path, headers={"Authorization": "Key a:b"}).status_code == 404
    assert http.get(path, headers={"Authorization": "Key"}).status_code == 401
    assert http.get(path).status_code == 404


def test_known_requests_need_a_key(call):
    caller = call()
    submitted = caller.submit()
    assert caller.without_key.get(submitted["status_url"]).status_code == 401
    assert caller.without_key.get(submitted["response_url"]).status_code == 401
    assert caller.without_key.put(submitted["cancel_url"]).status_code == 401


def test_an_invalid_input_is_accepted_and_refused_with_the_result(call):
    caller = call()
    submitted = caller.post("character", prompt="x", num_images=9).json()
    status = caller.http.get(submitted["status_url"])
    answer = caller.http.get(submitted["response_url"])
    problems = {tuple(problem["loc"]): problem["type"] for problem in answer.json()["detail"]}
    assert (status.status_code, status.json()["status"]) == (200, "COMPLETED")
    assert (answer.status_code, answer.headers["X-Fal-Billable-Units"]) == (422, "0")
    assert problems == {
        ("body", "reference_image_urls"): "missing",
        ("body", "num_images"): "less_than_equal",
    }
    assert all(
        {"loc", "msg", "type", "url", "input"} <= problem.keys() for problem in answer.json()["detail"]
    )


def test_surplus_fields_are_ignored_at_every_depth(call):
    answer = call().result(bogus=1, image_size={"width": 1024, "height": 1024, "depth": 3})
    assert answer.status_code == 200


def test_cancelling_answers_by_how_far_the_request_is(call):
    caller, holder = held(call)
    waiting = caller.submit(prompt="waits")
    answers = [caller.http.put(url) for url in (waiting["cancel_url"],) * 2 + (holder["cancel_url"],) * 2]
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [
        (200, "OK"),
        (400, "ALREADY_COMPLETED"),
        (202, "CANCELLATION_REQUESTED"),
        (400, "ALREADY_COMPLETED"),
    ]


def test_a_cancelled_request_is_completed_without_a_result(call):
    caller, holder = held(call)
    waiting = caller.submit(prompt="waits")
    caller.http.put(waiting["cancel_url"])
    status, result = caller.http.get(waiting["status_url"]), caller.http.get(waiting["response_url"])
    assert (status.json()["status"], status.json()["error_type"]) == ("COMPLETED", "client_cancelled")
    assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")
    assert result.headers["X-Fal-Error-Type"] == "client_cancelled"
    assert caller.http.get(holder["status_url"]).json()["status"] == "IN_PROGRESS"


def test_a_running_request_completes_though_cancelled(call):
    caller = call(latency_scale=0.5)
    submitted = caller.submit()
    assert caller.http.put(submitted["cancel_url"]).status_code == 202
    caller.events(submitted)
    assert caller.http.get(submitted["response_url"]).status_code == 200


@pytest.mark.parametrize("header", ["X-Fal-Request-Start-Timeout", "X-Fal-Request-Timeout"])
def test_a_request_that_starts_too_late_ends_in_the_caller_s_timeout(call, header):
    caller, _ = held(call)
    late = caller.submit(headers={header: "0.11"}, prompt="waits")
    caller.events(late)
    result = caller.http.get(late["response_url"])
    assert (result.status_code, result.json()["error_type"]) == (504, "request_timeout")
    assert result.headers["X-Fal-Request-Timeout-Type"] == "user"


def test_a_start_timeout_that_is_no_number_is_refused(call):
    assert call().post(headers={"X-Fal-Request-Timeout": "soon"}, prompt="x").status_code == 400


def test_a_queue_longer_than_the_caller_wants_is_a_429(call):
    caller, _ = held(call)
    caller.submit(prompt="waits")
    caller.submit(prompt="waits too")
    assert caller.post(params={"fal_max_queue_length": 1}, prompt="x").status_code == 429
    assert caller.post(params={"fal_max_queue_length": 2}, prompt="x").status_code == 200


def test_a_result_expires(call):
    caller = call(result_ttl=1e-6)
    answer = caller.result()
    assert (answer.status_code, answer.json()) == (404, {"detail": "Request not found"})


def test_sync_mode_answers_with_data_uris(call):
    image = call().result(sync_mode=True).json()["images"][0]
    assert image["url"].startswith("data:image/png;base64,")

"""Prices, past requests and billing."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

V3 = "fal-ai/ideogram/v3"
BY_ENDPOINT = "/v1/models/requests/by-endpoint"


def items(caller, **params):
    return caller.http.get(BY_ENDPOINT, params={"endpoint_id": V3, **params}).json()["items"]


def test_prices_are_told_per_picture(call):
    answer = call().http.get(
        "/v1/models/pricing", params={"endpoint_id": [f"{V3}", "fal-ai/ideogram/character"]}
    )
    assert [(one["endpoint_id"], one["unit_price"], one["unit"]) for one in answer.json()["prices"]] == [
        (V3, 0.06, "images"),
        ("fal-ai/ideogram/character", 0.15, "images"),
    ]


def test_an_estimate_adds_up(call):
    body = {
        "estimate_type": "unit_price",
        "endpoints": {V3: {"unit_quantity": 10}, "fal-ai/ideogram/character": {"unit_quantity": 2}},
    }
    answer = call().http.post("/v1/models/pricing/estimate", json=body)
    assert answer.json() == {"estimate_type": "unit_price", "total_cost": 0.9, "currency": "USD"}
    body = {"estimate_type": "historical_api_price", "endpoints": {V3: {"call_quantity": 3}}}
    assert call().http.post("/v1/models/pricing/estimate", json=body).json()["total_cost"] == 0.18


def test_endpoints_nobody_knows_have_no_price(call):
    http = call().http
    unknown = http.get("/v1/models/pricing", params={"endpoint_id": "fal-ai/flux"})
    assert (unknown.status_code, unknown.json()["error"]["message"]) == (404, "Endpoint(s) not found")
    body = {"estimate_type": "unit_price", "endpoints": {"fal-ai/flux": {"unit_quantity": 1}}}
    assert http.post("/v1/models/pricing/estimate", json=body).status_code == 404


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/models/pricing", {}),
        (BY_ENDPOINT, {"limit": 101}),
        (BY_ENDPOINT, {"limit": "many"}),
        (BY_ENDPOINT, {"start": "yesterday"}),
        (BY_ENDPOINT, {"cursor": "x"}),
    ],
)
def test_questions_that_make_no_sense_are_a_400(call, path, params):
    answer = call().http.get(path, params=params)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "validation_error")


def test_without_a_key_only_meta_is_told(call):
    http = call().without_key
    assert http.get("/v1/meta").json() == {"webhook_ip_ranges": ["127.0.0.1/32"]}
    answer = http.get(BY_ENDPOINT, params={"endpoint_id": V3})
    assert answer.status_code == 401
    assert answer.json()["error"] == {
        "type": "authorization_error",
        "message": "API key authentication required",
    }


def test_a_past_request_can_be_found_by_its_input(call):
    caller = call()
    caller.submit(prompt="another")
    submitted = caller.submit(prompt="the lost one", seed=42)
    (found,) = [one for one in items(caller, expand="payloads") if one["json_input"].get("seed") == 42]
    assert found["request_id"] == submitted["request_id"]
    assert found["status_code"] == 200
    assert found["json_output"] == caller.http.get(submitted["response_url"]).json()
    assert found["sent_at"] <= found["started_at"] <= found["ended_at"]


def test_payloads_are_told_only_when_asked_for_and_when_they_may_be_stored(call):
    caller = call()
    caller.submit(headers={"X-Fal-Store-IO": "0"})
    assert "json_input" not in items(caller)[0]
    assert "json_input" not in items(caller, expand="payloads")[0]
    caller.submit(prompt="in sync mode", sync_mode=True)
    latest = items(caller, expand="payloads")[0]
    assert ("json_input" in latest, "json_output" in latest) == (True, False)


def test_running_and_queued_requests_are_not_among_the_past_ones(call):
    caller = call(faults="stuck", concurrency=1)
    caller.submit()
    caller.submit(prompt="waits")
    assert items(caller) == []


def test_pages_together_are_all_requests_latest_end_first(call):
    caller = call()
    ids = [caller.submit(prompt=f"number {number}")["request_id"] for number in range(5)]
    seen, cursor = [], None
    while True:
        params = {"endpoint_id": V3, "limit": 2, **({"cursor": cursor} if cursor else {})}
        page = caller.http.get(BY_ENDPOINT, params=params).json()
        seen += [one["request_id"] for one in page["items"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert seen == ids[::-1]


def test_past_requests_can_be_chosen_by_status_id_and_time(call):
    caller = call()
    good = caller.submit()["request_id"]
    bad = caller.submit(num_images=99)["request_id"]
    caller.http.post("/sandbox/settings", json={"faults": "runner_503"})
    ugly = caller.submit(prompt="ugly")["request_id"]

    def ids(**params):
        return {one["request_id"] for one in items(caller, **params)}

    now = datetime.now(UTC)
    assert ids(status="success") == {good}
    assert ids(status="user_error") == {bad}
    assert ids(status="error") == {ugly}
    assert ids(request_id=f"{good},{ugly}") == {good, ugly}
    assert ids(start=(now - timedelta(minutes=5)).isoformat()) == {good, bad, ugly}
    assert ids(end=(now - timedelta(minutes=5)).isoformat()) == set()
    assert [one["duration"] for one in items(caller, sort_by="duration")] == [0.0, 0.0, 0.0]


def test_what_ended_well_is_billed_by_picture(call):
    caller = call()
    submitted = caller.submit(num_images=3, rendering_speed="QUALITY")
    caller.submit(prompt="refused", num_images=99)
    answer = caller.http.get("/v1/models/billing-events", params={"request_id": submitted["request_id"]})
    (event,) = answer.json()["billing_events"]
    assert (event["output_units"], event["unit_price"], event["cost_total"]) == (3, 0.09, 0.27)
    assert event["cost_estimate_nano_usd"] == 270_000_000
    assert len(caller.http.get("/v1/models/billing-events").json()["billing_events"]) == 1


def test_pages_of_billing_events_together_are_the_sandboxs_bill(call):
    caller = call(faults="policy_refusal=0.3,runner_503=0.2")
    for number in range(20):
        caller.submit(prompt=f"number {number}", num_images=1 + number % 2)
    events, cursor = [], "0"
    while cursor:
        page = caller.http.get("/v1/models/billing-events", params={"limit": 3, "cursor": cursor}).json()
        events += page["billing_events"]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
    stats = caller.sandbox.stats()
    assert 0 < stats.completed < 20
    assert len({event["request_id"] for event in events}) == len(events) == stats.completed
    assert sum(event["output_units"] for event in events) == stats.images
    assert sum(Decimal(str(event["cost_total"])) for event in events) == stats.usd


@pytest.mark.parametrize(
    "params",
    [
        {"request_id": [str(number) for number in range(51)]},
        {"start": "2026-01-01T00:00:00Z", "end": "2026-04-02T00:00:00Z"},
        {"limit": 10_001},
    ],
    ids=["too many ids", "too long a time", "too large a page"],
)
def test_billing_events_are_told_within_fals_limits(call, params):
    answer = call().http.get("/v1/models/billing-events", params=params)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "validation_error")

"""The Platform API: listings with their ends, prices, and its own shape of errors."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from urllib.parse import parse_qs

import pytest

from ideogram_pipeline import fal

ENDPOINT = "fal-ai/ideogram/character"
START = datetime(2026, 11, 22, 14, tzinfo=timezone(timedelta(hours=2)))
END = datetime(2026, 11, 22, 13, tzinfo=UTC)


def entry(number):
    return {
        "request_id": f"r{number}",
        "endpoint_id": ENDPOINT,
        "sent_at": "2026-11-22T12:30:00Z",
        "status_code": 200,
        "json_input": {"seed": number},
        "something_new": True,
    }


class History:
    """Pages of two entries each."""

    def __init__(self, fake, entries):
        self.fake, self.entries = fake, entries
        fake.script = self

    def __call__(self, seen):
        at = int(parse_qs(seen.target.partition("?")[2]).get("cursor", ["0"])[0])
        more = at + 2 < len(self.entries)
        page = {
            "items": self.entries[at : at + 2],
            "has_more": more,
            "next_cursor": str(at + 2) if more else None,
        }
        return self.fake.reply(200, page)


def listing(client, **more):
    return client.requests_by_endpoint(ENDPOINT, start=START, end=END, with_payloads=True, **more)


def test_past_requests_are_listed_over_all_pages(fake, ask):
    History(fake, [entry(number) for number in range(5)])
    found = ask(listing)
    assert not found.truncated
    assert [one.json_input["seed"] for one in found.items] == [0, 1, 2, 3, 4]
    assert found.items[0].sent_at == datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
    assert parse_qs(fake.seen[0].target.partition("?")[2]) == {
        "endpoint_id": [ENDPOINT],
        "start": ["2026-11-22T12:00:00Z"],
        "end": ["2026-11-22T13:00:00Z"],
        "expand": ["payloads"],
        "limit": ["100"],
    }
    assert fake.seen[0].path == "/v1/models/requests/by-endpoint"
    assert fake.seen[0].headers["authorization"] == f"Key {fake.key}"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_the_platforms_address_works_with_and_without_its_version(end):
    hosts = fal.FalHosts(api=f"https://fal.example{end}")
    assert hosts.api == "https://fal.example"


@pytest.mark.parametrize("answer", [{"detail": "Not Found"}, b"<html>nothing here</html>"])
def test_a_404_from_the_list_says_that_unanswered_submits_stay_unknown(fake, ask, answer):
    fake.replies(fake.reply(404, answer))
    with pytest.raises(fal.EndpointNotFound) as refused:
        ask(listing)
    assert "no list of requests" in str(refused.value)
    assert "stay unknown" in str(refused.value)
    assert "endpoint id" not in str(refused.value)


def test_a_listing_cut_short_says_so(fake, ask):
    History(fake, [entry(number) for number in range(5)])
    found = ask(lambda client: listing(client, max_items=3))
    assert found.truncated
    assert len(found.items) == 4


@pytest.mark.parametrize("cursor", [None, "same", ""])
def test_a_cursor_that_leads_nowhere_ends_a_listing_as_truncated(fake, ask, cursor):
    fake.replies(fake.reply(200, {"items": [entry(1)], "has_more": True, "next_cursor": cursor}))
    assert ask(listing).truncated


def test_chosen_requests_are_asked_for_by_id(fake, ask):
    History(fake, [])
    assert ask(lambda client: listing(client, request_ids=["a", "b"])).items == ()
    assert parse_qs(fake.seen[0].target.partition("?")[2])["request_id"] == ["a", "b"]


def test_prices_are_exact(fake, ask):
    price = {"endpoint_id": ENDPOINT, "unit_price": 0.15, "unit": "image", "currency": "USD"}
    fake.replies(fake.reply(200, {"prices": [price], "next_cursor": None, "has_more": False}))
    (found,) = ask(lambda client: client.pricing([ENDPOINT, "fal-ai/ideogram/v3"]))
    assert found.unit_price == Decimal("0.15")
    assert parse_qs(fake.seen[0].target.partition("?")[2])["endpoint_id"] == [ENDPOINT, "fal-ai/ideogram/v3"]


@pytest.mark.parametrize(
    ("by", "quantity"), [("unit_price", "unit_quantity"), ("historical_api_price", "call_quantity")]
)
def test_an_estimate(fake, ask, by, quantity):
    fake.replies(fake.reply(200, {"estimate_type": by, "total_cost": 1.5, "currency": "USD"}))
    found = ask(lambda client: client.estimate({ENDPOINT: 10}, by))
    assert (found.total_cost, found.currency) == (Decimal("1.5"), "USD")
    assert fake.seen[0].json() == {"estimate_type": by, "endpoints": {ENDPOINT: {quantity: 10}}}


def test_what_requests_were_charged(fake, ask):
    event = {
        "request_id": "r1",
        "endpoint_id": ENDPOINT,
        "timestamp": "2026-11-22T12:30:00Z",
        "output_units": 2,
        "unit_price": 0.15,
        "cost_total": None,
    }
    fake.replies(fake.reply(200, {"billing_events": [event], "has_more": False}))
    found = ask(lambda client: client.billing_events(start=START, end=END, request_ids=["r1"]))
    assert (found.items[0].output_units, found.items[0].cost_total) == (Decimal(2), None)


def test_what_was_asked_can_be_deleted(fake, ask):
    fake.replies(fake.reply(200, {"cdn_delete_results": []}))
    ask(lambda client: client.delete_payloads("a/b c"))
    assert (fake.seen[0].method, fake.seen[0].target) == ("DELETE", "/v1/models/requests/a%2Fb%20c/payloads")


@pytest.mark.parametrize(("status", "error"), [(403, fal.Forbidden), (404, fal.RequestNotFound)])
def test_what_cannot_be_deleted_says_why(fake, ask, status, error):
    fake.replies(fake.reply(status, {"error": {"type": "x", "message": "no"}}))
    with pytest.raises(error):
        ask(lambda client: client.delete_payloads("r1"))


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, fal.Unauthorized), (403, fal.Forbidden), (404, fal.EndpointNotFound), (429, fal.TooManyRequests)],
)
def test_refusals_have_the_platforms_own_shape(fake, ask, status, error):
    fake.replies(fake.reply(status, {"error": {"type": "x", "message": "Endpoint(s) not found"}}))
    with pytest.raises(error, match="Endpoint"):
        ask(lambda client: client.pricing([ENDPOINT]))


@pytest.mark.parametrize(
    "body", [[], {}, {"items": 7}, {"items": [7]}, {"items": [{"request_id": "MY SECRET"}]}]
)
def test_an_answer_of_another_shape_is_our_error_and_not_quoted(fake, ask, body):
    fake.replies(fake.reply(200, body))
    with pytest.raises(fal.UnexpectedAnswer) as caught:
        ask(listing)
    assert "SECRET" not in str(caught.value)

"""Deliveries: genuine ones are read, forged, altered and stale ones rejected."""

import hashlib
import json
import time
from base64 import urlsafe_b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline import fal
from ideogram_pipeline.fal import webhooks
from ideogram_pipeline.fal.webhooks import Failed, PayloadWithheld, Succeeded, read_delivery, verify

GENUINE = Ed25519PrivateKey.generate()
FORGER = Ed25519PrivateKey.generate()
BODY = json.dumps({"request_id": "r1", "status": "OK", "payload": {"images": []}}).encode()


def jwks(*keys):
    entries = [urlsafe_b64encode(key.public_key().public_bytes_raw()).decode().rstrip("=") for key in keys]
    return {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x} for x in entries]}


def signed(body=BODY, key=GENUINE, at=None, **changed):
    parts = {"request-id": "r1", "user-id": "u1", "timestamp": str(int(time.time() if at is None else at))}
    message = "\n".join([*parts.values(), hashlib.sha256(body).hexdigest()]).encode()
    headers = {**parts, "signature": key.sign(message).hex(), **changed}
    return {f"X-Fal-Webhook-{name.title()}": value for name, value in headers.items()}


def accept(headers, body=BODY):
    return lambda client: client.accept_webhook(headers, body)


@pytest.fixture
def fals_keys(fake):
    fake.replies(fake.reply(200, jwks(Ed25519PrivateKey.generate(), GENUINE)))


def test_a_genuine_delivery_is_read(fake, ask, fals_keys):
    assert ask(accept(signed())) == fal.Delivery("r1", "u1", Succeeded({"images": []}), repeated=False)
    (seen,) = fake.seen
    assert seen.target == "/.well-known/jwks.json"
    assert "authorization" not in seen.headers


def test_header_names_come_in_any_case(ask, fals_keys):
    assert ask(accept({name.lower(): value for name, value in signed().items()})).request_id == "r1"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (signed(key=FORGER), BODY),
        (signed(), BODY + b" "),
        (signed(**{"user-id": "u2"}), BODY),
        (signed(**{"request-id": "r2"}), BODY),
        (signed(signature="00" * 64), BODY),
        (signed(signature="00"), BODY),
        (signed(signature="no hex"), BODY),
        (signed(timestamp="soon"), BODY),
        ({}, BODY),
        (signed(b"{}"), b"{}"),
    ],
    ids=["key", "body", "user", "request", "signature", "short", "no hex", "timestamp", "unsigned", "shape"],
)
def test_what_is_forged_or_altered_is_rejected(ask, fals_keys, headers, body):
    with pytest.raises(fal.WebhookRejected):
        ask(accept(headers, body))


@pytest.mark.parametrize("offset", [-301, 301])
def test_a_replay_from_another_time_is_rejected(offset):
    with pytest.raises(fal.WebhookRejected, match="stamped"):
        verify(signed(at=1_000_000), BODY, [GENUINE.public_key()], now=1_000_000 + offset)


@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_a_fresh_delivery_passes(offset):
    verify(signed(at=1_000_000), BODY, [GENUINE.public_key()], now=1_000_000 + offset)


def test_a_replay_of_now_is_told_as_repeated(fake, ask, fals_keys):
    async def twice(client):
        return [(await client.accept_webhook(signed(), BODY)).repeated for _ in range(2)]

    assert ask(twice) == [False, True]
    assert len(fake.seen) == 1


def test_a_forgery_does_not_make_its_request_count_as_delivered(ask, fals_keys):
    async def forged_then_genuine(client):
        with pytest.raises(fal.WebhookRejected):
            await client.accept_webhook(signed(key=FORGER), BODY)
        return await client.accept_webhook(signed(), BODY)

    assert not ask(forged_then_genuine).repeated


def test_only_so_many_requests_are_remembered(ask, fals_keys, monkeypatch):
    monkeypatch.setattr(webhooks, "REMEMBERED", 1)
    other = json.dumps({"request_id": "r2", "status": "OK", "payload": {}}).encode()

    async def three(client):
        return [(await client.accept_webhook(signed(body), body)).repeated for body in (BODY, other, BODY)]

    assert ask(three) == [False, False, False]


def test_new_keys_of_fal_are_fetched_when_the_old_ones_fit_no_more(fake, ask, monkeypatch):
    monkeypatch.setattr(webhooks, "KEYS_RETRIED_S", -1)
    fake.replies(fake.reply(200, jwks(FORGER)), fake.reply(200, jwks(GENUINE)))
    assert ask(accept(signed())).request_id == "r1"


def test_the_keys_are_read_once_a_day(fake, ask, fals_keys):
    async def read_and_accept(client):
        await client.webhook_keys()
        await client.webhook_keys()
        return await client.accept_webhook(signed(), BODY)

    assert ask(read_and_accept).request_id == "r1"
    assert len(fake.seen) == 1


def test_forgeries_do_not_make_us_fetch_keys_again_and_again(fake, ask, fals_keys):
    async def flood(client):
        for _ in range(5):
            with pytest.raises(fal.WebhookRejected):
                await client.accept_webhook(signed(key=FORGER), BODY)

    ask(flood)
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    "answer", [{}, {"keys": []}, {"keys": [{"x": "AAAA"}, {"x": "ü"}, 7]}, [], {"keys": 7}]
)
def test_keys_that_can_not_be_had_are_another_error(fake, ask, answer):
    fake.replies(fake.reply(200, answer))
    with pytest.raises(fal.UnexpectedAnswer):
        ask(accept(signed()))


@pytest.mark.parametrize(
    ("told", "outcome"),
    [
        ({"status": "OK", "payload": {"images": [1]}}, Succeeded({"images": [1]})),
        (
            {"status": "ERROR", "error": "Invalid status code: 422", "payload": {"detail": []}},
            Failed("Invalid status code: 422", {"detail": []}),
        ),
        ({"status": "ERROR", "error": "x", "payload": None}, Failed("x", None)),
        (
            {"status": "OK", "payload": None, "payload_error": "not serializable"},
            PayloadWithheld("not serializable"),
        ),
        ({"status": "ERROR", "payload": None, "payload_error": "no"}, PayloadWithheld("no")),
    ],
)
def test_the_three_shapes_of_a_delivery(told, outcome):
    assert read_delivery(json.dumps({"request_id": "r1", "gateway_request_id": "g1", **told}).encode()) == (
        "r1",
        outcome,
    )


@given(
    st.binary(max_size=60)
    | st.dictionaries(st.text(max_size=9), st.text(max_size=9)).map(json.dumps).map(str.encode)
)
def test_any_body_is_read_or_rejected(body):
    with pytest.raises(fal.WebhookRejected):
        read_delivery(body)


@given(st.dictionaries(st.sampled_from(list(signed())), st.text(max_size=30)), st.binary(max_size=30))
def test_any_headers_are_rejected(headers, body):
    with pytest.raises(fal.WebhookRejected):
        verify(headers, body, [GENUINE.public_key()], now=0)

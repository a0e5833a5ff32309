"""The whole client: it answers nonsense with its own errors, and keeps the key to itself."""

import asyncio
import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ideogram_pipeline import fal
from ideogram_pipeline.fal import FalClient, FalHosts, Timeouts

ENDPOINT = "fal-ai/ideogram/v3"
ID = "r-1"

CALLS = {
    "submit": lambda client: client.submit(ENDPOINT, {"prompt": "x"}),
    "status": lambda client: client.status(client.attach(ENDPOINT, ID), logs=True),
    "stream": lambda client: drained(client.stream(client.attach(ENDPOINT, ID))),
    "result": lambda client: client.result(client.attach(ENDPOINT, ID)),
    "cancel": lambda client: client.cancel(client.attach(ENDPOINT, ID)),
    "upload": lambda client: client.upload(b"x"),
    "upload to the CDN": lambda client: client.upload(b"x", via="cdn"),
    "download": lambda client: client.download(f"{client.attach(ENDPOINT, ID).result_url}", max_bytes=1000),
    "webhook": lambda client: client.accept_webhook({}, b"{}"),
    "pricing": lambda client: client.pricing([ENDPOINT]),
    "estimate": lambda client: client.estimate({ENDPOINT: 1}),
}


async def drained(statuses):
    return [status async for status in statuses]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "status", "request_id", "response_url", "status_url", "cancel_url", "queue_position", "logs", "metrics", "detail",
    "error", "error_type", "upload_url", "file_url", "access_url", "token", "token_type", "base_url", "expires_at",
    "keys", "prices", "has_more", "next_cursor", "total_cost", "currency",
]  # fmt: skip
HEADERS = [
    "x-fal-request-id", "x-fal-error-type", "x-fal-billable-units", "x-fal-needs-retry", "x-fal-request-timeout-type",
    "location", "content-type", "content-encoding", "content-length", "transfer-encoding", "set-cookie",
]  # fmt: skip
telling_objects = st.dictionaries(
    st.sampled_from(FIELDS),
    json_values
    | st.sampled_from(["IN_QUEUE", "COMPLETED", "OK", "http://127.0.0.1:1/x", "data:,", "https://[", "/"]),
)
bodies = (json_values | telling_objects).map(lambda value: json.dumps(value).encode()) | st.binary(
    max_size=40
)
header_values = st.sampled_from(
    [
        "0",
        "1",
        "-1",
        "chunked",
        "gzip",
        "br",
        "zstd",
        "text/event-stream",
        "text/plain; charset=wat",
        "user",
        "/x",
        "",
    ]
) | st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=12)


@st.composite
def nonsense(draw):
    """What a server might say: an HTTP answer of any status, headers and body, more or less; or just bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    body = draw(bodies)
    status = draw(
        st.integers(200, 599) | st.sampled_from([100, 101, 103, 200, 202, 204, 304, 400, 404, 422, 503, 999])
    )
    headers = draw(st.dictionaries(st.sampled_from(HEADERS), header_values, max_size=4))
    if draw(st.booleans()):
        body = b"data: " + body + b"\n\n"
        headers["content-type"] = "text/event-stream"
    if draw(st.booleans()):
        headers["content-length"] = str(len(body))
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(nonsense(), min_size=1, max_size=3))
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nonsense_ends_in_a_result_or_in_an_error_of_ours(fake, connect, call, answers):
    fake.replies(*(fake.reply(raw=answer) for answer in answers))
    with contextlib.suppress(fal.FalError):
        connect(timeouts=Timeouts(2, 2, 2, 2, 2))(call)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_server_that_never_answers_ends_in_an_error_of_ours(fake, connect, call):
    fake.replies(fake.reply(hang=True))
    with pytest.raises(fal.FalError):
        connect(timeouts=Timeouts(0.05, 0.05, 0.05, 0.05, 0.05))(call)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_redirect_never_carries_the_key_elsewhere(fake, other, ask, call):
    fake.replies(fake.reply(307, b"", {"Location": f"{other.url}/x"}))
    with pytest.raises(fal.FalError):
        ask(call)
    assert other.seen == []


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_answer_that_echoes_the_key_is_not_quoted_with_it(fake, ask, call):
    fake.replies(
        fake.reply(418, {"detail": f"bad header: Key {fake.key}", "more": fake.key.partition(":")[2]})
    )
    with pytest.raises(fal.FalError) as caught:
        ask(call)
    error = caught.value
    chain = f"{error!s}{error!r}{vars(error)}{error.__cause__!r}"
    assert fake.key not in chain
    assert fake.key.partition(":")[2] not in chain


@pytest.mark.parametrize("fault", [{"drop": True}, {"raw": b"nonsense\r\n\r\n"}], ids=["dropped", "no HTTP"])
def test_transport_errors_are_not_chained_with_what_holds_the_key(fake, ask, fault):
    fake.replies(fake.reply(**fault))
    with pytest.raises(fal.FalError) as caught:
        ask(CALLS["status"])
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_client_does_not_show_its_key():
    client = FalClient("abcd1234:very-secret")
    assert "very-secret" not in repr(client) + repr(vars(client))


def test_one_client_serves_many_calls_at_once(fake, connect):
    fake.replies(fake.reply(200, {"status": "IN_PROGRESS"}))

    async def call(client):
        request = client.attach(ENDPOINT, ID)
        return await asyncio.gather(*(client.status(request) for _ in range(300)))

    assert connect(FalHosts.at(fake.url))(call) == [fal.InProgress()] * 300

"""Submit, status, stream, result and cancel, against a server that misbehaves on purpose."""

import hashlib
import json
from datetime import UTC, datetime
from urllib.parse import parse_qs

import pytest

from ideogram_pipeline import fal
from ideogram_pipeline.fal import CancelAnswer, Completed, InProgress, InQueue, SubmitOptions, Timeouts

ENDPOINT = "fal-ai/ideogram/character"
ID = "019e161b-386c-7d33-8106-f2de1a3ff595"
ARGUMENTS = {"prompt": "a lighthouse", "seed": 7}
HTML = b"<html><center>nginx</center></html>"


def submit(client):
    return client.submit(ENDPOINT, ARGUMENTS)


def accepted(fake):
    return fake.reply(200, {"status": "IN_QUEUE", "request_id": ID})


def test_a_submit_posts_the_arguments_themselves_to_the_whole_endpoint_id(fake, ask):
    fake.replies(accepted(fake))
    options = SubmitOptions(
        webhook_url="https://me.example/hook?row=1&b=2", start_timeout_s=90, priority="low"
    )
    request = ask(lambda client: client.submit(ENDPOINT, ARGUMENTS, options))
    (seen,) = fake.seen
    assert seen.method == "POST"
    assert seen.path == f"/{ENDPOINT}"
    assert parse_qs(seen.target.partition("?")[2]) == {"fal_webhook": ["https://me.example/hook?row=1&b=2"]}
    assert seen.json() == ARGUMENTS
    assert seen.headers["authorization"] == f"Key {fake.key}"
    assert seen.headers["x-fal-queue-priority"] == "low"
    assert seen.headers["x-fal-request-start-timeout"] == seen.headers["x-fal-request-timeout"] == "90"
    assert request.request_id == ID
    assert request.status_url == f"{fake.url}/fal-ai/ideogram/requests/{ID}/status"
    assert request.result_url == f"{fake.url}/fal-ai/ideogram/requests/{ID}"
    assert request.cancel_url == f"{fake.url}/fal-ai/ideogram/requests/{ID}/cancel"


def test_the_urls_fal_gives_are_used_unless_they_lead_elsewhere(fake, other, ask):
    given = f"{fake.url}/{ENDPOINT}/requests/{ID}/response"
    fake.replies(
        fake.reply(
            200,
            {
                "request_id": ID,
                "response_url": given,
                "status_url": f"{other.url}/status",
                "cancel_url": fake.url.replace("http://", "http://user:password@"),
            },
        )
    )
    request = ask(submit)
    assert request.result_url == given
    assert request.status_url == f"{fake.url}/fal-ai/ideogram/requests/{ID}/status"
    assert request.cancel_url == f"{fake.url}/fal-ai/ideogram/requests/{ID}/cancel"


FAULTS = {
    "dropped": {"drop": True},
    "reset": {"reset": True},
    "no HTTP": {"raw": b"nonsense\r\n\r\n"},
    "half a head": {"raw": b"HTTP/1.1 200 OK\r\nContent-"},
    "half a body": {"raw": b'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"request_id":'},
    "half a chunk": {"raw": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"},
    "bad gzip": {"raw": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi"},
    "unreadable success": {"status": 200, "body": b"ok"},
    "success without an id": {"status": 200, "body": {"status": "IN_QUEUE"}},
    "success with no usable id": {"status": 200, "body": {"request_id": ".."}},
    "success with a number for an id": {"status": 200, "body": {"request_id": 7}},
    "redirect": {"status": 307, "headers": {"Location": "/elsewhere"}},
    "408": {"status": 408, "body": HTML},
    "500 of fal": {"status": 500, "body": {"detail": "oops"}},
    "502 of the ingress": {"status": 502, "body": HTML},
    "503 of fal": {"status": 503, "body": HTML, "headers": {"x-fal-request-id": ID}},
    "503 of the ingress": {"status": 503, "body": HTML},
    "503 in JSON": {"status": 503, "body": {"detail": "unavailable"}},
    "504 of the ingress": {"status": 504, "body": HTML},
}


@pytest.mark.parametrize("kept_alive", [False, True], ids=["fresh connection", "kept-alive connection"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_submit_in_doubt_is_posted_once_and_raises_submit_unknown(fake, ask, fault, kept_alive):
    async def call(client):
        if kept_alive:
            fake.replies(accepted(fake))
            await submit(client)
        fake.replies(fake.reply(**fault))
        await submit(client)

    before = datetime.now(UTC)
    with pytest.raises(fal.SubmitUnknown) as caught:
        ask(call)
    assert fake.count("POST") == 1 + kept_alive
    assert len({seen.connection for seen in fake.seen}) == 1
    assert caught.value.endpoint_id == ENDPOINT
    assert caught.value.arguments_digest == hashlib.sha256(fake.seen[-1].body).hexdigest()
    assert before <= caught.value.sent_at <= datetime.now(UTC)
    assert caught.value.may_be_billed
    assert not caught.value.may_repeat
    assert not caught.value.may_resubmit


def test_an_answer_that_never_comes_is_in_doubt_too(fake, connect):
    fake.replies(fake.reply(hang=True))
    with pytest.raises(fal.SubmitUnknown):
        connect(timeouts=Timeouts(submit_s=0.3))(submit)
    assert fake.count("POST") == 1


def test_an_unknown_submit_keeps_the_request_id_of_a_failing_answer(fake, ask):
    fake.replies(fake.reply(500, {"detail": "oops"}, {"x-fal-request-id": ID}))
    with pytest.raises(fal.SubmitUnknown) as caught:
        ask(submit)
    assert caught.value.request_id == ID


def test_a_submit_that_is_not_accepted_is_left_to_the_caller(fake, ask):
    fake.replies(fake.reply(429, HTML))
    with pytest.raises(fal.TooManyRequests) as caught:
        ask(submit)
    assert fake.count("POST") == 1
    assert caught.value.may_resubmit
    assert not caught.value.may_be_billed


def test_the_backup_host_takes_over_when_no_connection_can_be_made(fake, connect, dead_url):
    fake.replies(accepted(fake))
    hosts = fal.FalHosts(queue=dead_url, rest=dead_url, api=dead_url, backup_queue=fake.url)
    assert connect(hosts)(submit).request_id == ID
    assert fake.count("POST") == 1


def test_the_backup_host_is_not_asked_once_the_request_was_sent(fake, other, connect):
    fake.replies(fake.reply(drop=True))
    hosts = fal.FalHosts(queue=fake.url, rest=fake.url, api=fake.url, backup_queue=other.url)
    with pytest.raises(fal.SubmitUnknown):
        connect(hosts)(submit)
    assert other.seen == []


def test_no_connection_at_all_is_no_doubt(connect, dead_url):
    with pytest.raises(fal.ConnectionFailed) as caught:
        connect(fal.FalHosts.at(dead_url))(submit)
    assert caught.value.may_resubmit
    assert not caught.value.may_be_billed


def test_a_server_with_a_wrong_certificate_gets_nothing(untrusted, connect):
    with pytest.raises(fal.ConnectionFailed):
        connect(fal.FalHosts.at(untrusted.url))(submit)
    assert untrusted.seen == []


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"detail": "invalid key credentials"}, fal.Unauthorized),
        (403, {"detail": "User is locked. Reason: Exhausted balance. Top up …"}, fal.AccountLocked),
        (403, {"detail": "not permitted"}, fal.Forbidden),
        (404, {"detail": "Application not found"}, fal.EndpointNotFound),
        (405, b"", fal.UnexpectedAnswer),
        (422, {"detail": [{"type": "missing", "loc": ["body"], "msg": "required"}]}, fal.ModelRefused),
    ],
)
def test_a_refused_submit_says_why_and_is_posted_once(fake, ask, status, body, error):
    fake.replies(fake.reply(status, body))
    with pytest.raises(error) as caught:
        ask(submit)
    assert caught.value.status == status
    assert caught.value.endpoint_id == ENDPOINT
    assert fake.count("POST") == 1


@pytest.mark.parametrize("arguments", [{"seed": float("nan")}, {"when": object()}, {"prompt": "\ud800"}])
def test_arguments_that_are_no_json_are_not_sent(fake, ask, arguments):
    with pytest.raises(fal.InvalidCall):
        ask(lambda client: client.submit(ENDPOINT, arguments))
    assert fake.seen == []


def attached(client):
    return client.attach(ENDPOINT, ID)


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (202, {"status": "IN_QUEUE", "queue_position": 2}, InQueue(2)),
        (200, {"status": "IN_QUEUE"}, InQueue(None)),
        (202, {"status": "IN_PROGRESS", "logs": None}, InProgress()),
        (
            202,
            {"status": "IN_PROGRESS", "logs": [{"message": "half", "level": "INFO"}, 7, {"level": "INFO"}]},
            InProgress((fal.LogLine("half", None, "INFO"),)),
        ),
        (200, {"status": "COMPLETED", "metrics": {"inference_time": 3.42}}, Completed(inference_s=3.42)),
        (
            200,
            {
                "status": "COMPLETED",
                "metrics": {},
                "error": "Runner disconnected",
                "error_type": "runner_disconnected",
            },
            Completed(error="Runner disconnected", error_type="runner_disconnected"),
        ),
    ],
)
def test_status(fake, ask, code, body, expected):
    fake.replies(fake.reply(code, body))
    assert ask(lambda client: client.status(attached(client), logs=True)) == expected
    assert fake.seen[0].target == f"/fal-ai/ideogram/requests/{ID}/status?logs=1"


@pytest.mark.parametrize("status", ["FAILED", None, 7, {"a": 1}])
def test_a_status_the_protocol_does_not_know_is_an_error(fake, ask, status):
    fake.replies(fake.reply(200, {"status": status}))
    with pytest.raises(fal.UnexpectedAnswer) as caught:
        ask(lambda client: client.status(attached(client)))
    assert caught.value.request_id == ID


@pytest.mark.parametrize(
    "fault",
    [
        {"drop": True},
        {"status": 502, "body": HTML},
        {"status": 500, "body": {"detail": "x"}, "headers": {"x-fal-request-id": ID}},
        {"status": 429},
    ],
    ids=["dropped", "502", "500", "429"],
)
def test_a_status_is_asked_again_until_it_is_answered(fake, ask, fault):
    fake.replies(fake.reply(**fault), fake.reply(**fault), fake.reply(200, {"status": "COMPLETED"}))
    assert ask(lambda client: client.status(attached(client))) == Completed()


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [(401, {"detail": "x"}, fal.Unauthorized), (404, {"status": "NOT_FOUND"}, fal.RequestNotFound)],
)
def test_a_refused_status_is_not_asked_again(fake, ask, code, body, error):
    fake.replies(fake.reply(code, body))
    with pytest.raises(error) as caught:
        ask(lambda client: client.status(attached(client)))
    assert len(fake.seen) == 1
    assert caught.value.may_be_billed


def test_a_status_that_hangs_ends_at_the_deadline(fake, connect):
    fake.replies(fake.reply(hang=True))
    with pytest.raises(fal.NoAnswer) as caught:
        connect(timeouts=Timeouts(call_s=0.05))(lambda client: client.status(attached(client)))
    assert caught.value.request_id == ID


def event_stream(*chunks: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + "".join(chunks).encode()


async def streamed(client):
    return [status async for status in client.stream(attached(client))]


def event(status: str, **more) -> str:
    return f"data: {json.dumps({'status': status, **more})}\n\n"


def test_a_stream_tells_every_change_up_to_completion(fake, ask):
    chunks = (
        ": heartbeat\n\n",
        event("IN_QUEUE", queue_position=1),
        event("IN_PROGRESS"),
        event("COMPLETED"),
        "data: x",
    )
    fake.replies(fake.reply(raw=event_stream(*chunks)))
    assert ask(streamed) == [InQueue(1), InProgress(), Completed()]
    assert fake.seen[0].path == f"/fal-ai/ideogram/requests/{ID}/status/stream"


@pytest.mark.parametrize(
    "reply",
    [
        {"raw": event_stream(event("IN_QUEUE"))},
        {"raw": event_stream()},
        {"drop": True},
    ],
    ids=["ends early", "empty", "dropped"],
)
def test_a_stream_that_does_not_reach_completion_raises(fake, ask, reply):
    fake.replies(fake.reply(**reply))
    with pytest.raises(fal.NoAnswer):
        ask(streamed)


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [
        (200, {"status": "IN_QUEUE"}, fal.UnexpectedAnswer),
        (401, {"detail": "invalid key credentials"}, fal.Unauthorized),
        (404, {"status": "NOT_FOUND"}, fal.RequestNotFound),
        (502, HTML, fal.IngressError),
    ],
)
def test_a_stream_that_is_refused_says_why(fake, ask, code, body, error):
    fake.replies(fake.reply(code, body))
    with pytest.raises(error) as caught:
        ask(streamed)
    assert caught.value.request_id == ID


@pytest.mark.parametrize("line", ["data: {}\n\n", "data: [\n\n", 'data: {"status": "FAILED"}\n\n'])
def test_a_stream_of_nonsense_raises(fake, ask, line):
    fake.replies(fake.reply(raw=event_stream(line)))
    with pytest.raises(fal.UnexpectedAnswer):
        ask(streamed)


def test_a_silent_stream_raises(fake, connect):
    fake.replies(fake.reply(raw=event_stream(event("IN_QUEUE")), hang=True))
    with pytest.raises(fal.NoAnswer):
        connect(timeouts=Timeouts(silence_s=0.1))(streamed)


def fetch(client):
    return client.result(attached(client))


def test_a_result_carries_the_units_fal_charges(fake, ask):
    fake.replies(fake.reply(200, {"images": []}, {"X-Fal-Billable-Units": "2"}))
    assert ask(fetch) == fal.Result({"images": []}, 2.0, ID)
    assert fake.seen[0].target == f"/fal-ai/ideogram/requests/{ID}"


def test_units_fal_does_not_state_are_unknown_rather_than_none(fake, ask):
    fake.replies(fake.reply(200, {}))
    assert ask(fetch).billable_units is None


@pytest.mark.parametrize("code", [400, 200, 409])
def test_a_result_asked_for_too_early_is_not_ready_whatever_the_code(fake, ask, code):
    fake.replies(fake.reply(code, {"detail": "Request is still in progress"}, {"x-fal-request-id": ID}))
    with pytest.raises(fal.NotReady):
        ask(fetch)
    assert len(fake.seen) == 1


def test_a_result_is_fetched_again_through_a_failing_ingress(fake, ask):
    fake.replies(fake.reply(502, HTML), fake.reply(drop=True), fake.reply(200, {"images": []}))
    assert ask(fetch).payload == {"images": []}


def typed(status=500, error_type="internal_error"):
    """Return an error as fal gives it, with its type."""
    return status, {"detail": "no", "error_type": error_type}, {"x-fal-request-id": ID}


PICTURE = (200, {"images": [{"url": "https://v3.fal.media/files/a.png"}], "seed": 1})
STILL_THERE = [
    (500, {"detail": "Internal Server Error"}, {"x-fal-request-id": ID}),
    (500, b"", {"x-fal-request-id": ID}),
    (404, {"detail": "Request not found"}),
    (404, {"status": "NOT_FOUND"}),
    (400, {"detail": "Bad request"}, {"x-fal-request-id": ID}),
    (200, b"<html>"),
    (200, ["nonsense"]),
    (499, {"detail": "gone"}, {"x-fal-request-id": ID}),
    typed(),
    typed(503, "runner_disconnected"),
    (422, {"detail": [{"type": "content_policy_violation", "msg": "no"}]}),
]


def results(fake, *replies, status="COMPLETED"):
    """Answer questions for a result in turn, the last one for ever, and say `status` of the request."""
    waiting = [fake.reply(*one) for one in replies]

    def script(seen):
        if seen.path.endswith("/status"):
            return fake.reply(200, {"status": status, "request_id": ID})
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    fake.script = script


def asked_for_results(fake):
    return sum(not one.path.endswith("/status") for one in fake.seen)


@pytest.mark.parametrize("passing", STILL_THERE)
def test_one_wrong_answer_does_not_hide_a_result(fake, ask, passing):
    results(fake, passing, PICTURE)
    assert ask(fetch).payload == PICTURE[1]


@pytest.mark.parametrize(("first", "second"), [(0, 2), (8, 8), (8, 9), (10, 8), (2, 10), (4, 5)])
def test_two_wrong_answers_do_not_hide_a_result(fake, ask, first, second):
    results(fake, STILL_THERE[first], STILL_THERE[second], PICTURE)
    assert ask(fetch).payload == PICTURE[1]


def test_an_error_of_another_request_proves_no_end(fake, ask):
    results(fake, (*typed()[:2], {"x-fal-request-id": "another"}))
    with pytest.raises(fal.UnexpectedAnswer, match="another"):
        ask(fetch)


def test_a_typed_error_that_is_told_three_times_is_the_end(fake, ask):
    results(fake, typed(503, "runner_disconnected"))
    with pytest.raises(fal.RequestFailed) as caught:
        ask(fetch)
    assert caught.value.error_type == "runner_disconnected"
    assert asked_for_results(fake) == 3


@pytest.mark.parametrize(
    "told",
    [
        [typed(), typed(503, "runner_disconnected"), typed()],
        [typed(), typed(), STILL_THERE[2]],
        [STILL_THERE[2], typed(), typed()],
        [STILL_THERE[2]],
        [STILL_THERE[4]],
        [STILL_THERE[7]],
    ],
)
def test_whatever_else_is_told_proves_no_end(fake, ask, told):
    results(fake, *told)
    with pytest.raises(fal.FalError) as caught:
        ask(fetch)
    assert not isinstance(caught.value, fal.RequestEnded)
    assert caught.value.may_be_billed


def test_an_error_of_a_request_that_is_not_completed_proves_no_end(fake, ask):
    results(fake, typed(), status="IN_QUEUE")
    with pytest.raises(fal.UnexpectedAnswer, match="still runs"):
        ask(fetch)


def test_a_result_that_nobody_can_read_is_asked_for_again(fake, ask):
    results(fake, (200, {"pictures": []}), PICTURE)
    read = ask(
        lambda client: client.result(
            client.attach(ENDPOINT, ID), is_readable=lambda one: "images" in one.payload
        )
    )
    assert read.payload == PICTURE[1]
    results(fake, (200, {"pictures": []}))
    with pytest.raises(fal.UnexpectedAnswer, match="pictures"):
        ask(
            lambda client: client.result(
                client.attach(ENDPOINT, ID), is_readable=lambda one: "images" in one.payload
            )
        )


def test_a_result_says_whose_it_is(fake, ask):
    results(fake, (200, {}, {"x-fal-request-id": "another"}))
    assert ask(fetch).answered_id == "another"


def test_the_status_of_another_request_is_not_believed(fake, ask):
    fake.replies(
        fake.reply(200, {"status": "COMPLETED", "request_id": "another"}),
        fake.reply(202, {"status": "IN_PROGRESS", "request_id": ID}),
    )
    assert ask(lambda client: client.status(client.attach(ENDPOINT, ID))) == fal.InProgress()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_a_page_in_the_place_of_fals_refusal_of_a_submit_leaves_it_in_doubt(fake, ask, status):
    fake.replies(fake.reply(status, b"<html>blocked</html>"))
    with pytest.raises(fal.SubmitUnknown):
        ask(submit)


@pytest.mark.parametrize("request_id", ["a" * 201, "a\nb", "", 7, None])
def test_what_can_be_no_request_id_leaves_a_submit_in_doubt(fake, ask, request_id):
    fake.replies(fake.reply(200, {"request_id": request_id}))
    with pytest.raises(fal.SubmitUnknown):
        ask(submit)


def test_when_a_submit_was_accepted_is_told_by_fals_clock(fake, ask):
    fake.replies(fake.reply(200, {"request_id": ID}, {"Date": "Mon, 30 Nov 2026 12:00:00 GMT"}))
    assert ask(submit).accepted_at == datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_a_result_that_is_gone_is_told_from_a_request_that_never_was(fake, ask):
    known = True

    def script(seen):
        if not seen.path.endswith("/status"):
            return fake.reply(404, {"detail": "Request not found"})
        return fake.reply(200, {"status": "COMPLETED"}) if known else fake.reply(404, {"status": "NOT_FOUND"})

    fake.script = script
    with pytest.raises(fal.ResultExpired):
        ask(fetch)
    known = False
    with pytest.raises(fal.RequestNotFound) as caught:
        ask(fetch)
    assert type(caught.value) is fal.RequestNotFound


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        (200, {"status": "OK"}, CancelAnswer.OK),
        (200, {"success": True}, CancelAnswer.OK),
        (202, {"status": "CANCELLATION_REQUESTED"}, CancelAnswer.CANCELLATION_REQUESTED),
        (202, b"", CancelAnswer.CANCELLATION_REQUESTED),
        (202, {"status": "OK"}, CancelAnswer.CANCELLATION_REQUESTED),
        (200, b"", CancelAnswer.CANCELLATION_REQUESTED),
        (200, HTML, CancelAnswer.CANCELLATION_REQUESTED),
        (200, {"success": "yes"}, CancelAnswer.CANCELLATION_REQUESTED),
        (400, {"status": "ALREADY_COMPLETED"}, CancelAnswer.ALREADY_COMPLETED),
        (404, {"status": "NOT_FOUND"}, CancelAnswer.NOT_FOUND),
        (404, {"detail": "Request not found"}, CancelAnswer.NOT_FOUND),
    ],
)
def test_cancel(fake, ask, code, body, expected):
    fake.replies(fake.reply(code, body))
    assert ask(lambda client: client.cancel(attached(client))) is expected
    assert (fake.seen[0].method, fake.seen[0].target) == ("PUT", f"/fal-ai/ideogram/requests/{ID}/cancel")


@pytest.mark.parametrize(
    ("code", "body"),
    [(404, HTML), (400, {"detail": "bad"}), (400, {"status": "OK"}), (500, {"status": "OK"})],
)
def test_a_cancel_that_fal_did_not_answer_is_an_error(fake, ask, code, body):
    fake.replies(fake.reply(code, body))
    with pytest.raises(fal.UnexpectedAnswer):
        ask(lambda client: client.cancel(attached(client)))


def test_a_client_that_is_not_open_says_so(fake):
    client = fal.FalClient(fake.key, fal.FalHosts.at(fake.url))
    with pytest.raises(fal.InvalidCall, match="async with"):
        submit(client).send(None)

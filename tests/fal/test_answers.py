"""Which error an answer means: fal's two families of bodies, its catalogues, and what surrounds them."""

from datetime import UTC, datetime

import httpx2
import pytest
from pydantic_core import to_json

from ideogram_pipeline import fal
from ideogram_pipeline.fal.answers import Answer, ending, number, refusal

ENDPOINT = "fal-ai/ideogram/v3"


def answer(status, body, **headers):
    content = body if isinstance(body, bytes) else to_json(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer("https://queue.fal.run/x", status, httpx2.Headers(named), content)


def ended(*args, **headers):
    return ending(answer(*args, **headers), endpoint_id=ENDPOINT, request_id="r1")


def reasons(*types):
    return {
        "detail": [
            {
                "loc": ["body", "prompt"],
                "msg": "no",
                "type": one,
                "url": "https://docs",
                "input": "MY SECRET PROMPT",
            }
            for one in types
        ]
    }


def test_a_refusal_of_the_model_gives_its_reasons_without_the_input():
    error = ended(422, reasons("content_policy_violation"))
    assert isinstance(error, fal.ModelRefused)
    assert error.is_policy
    assert error.details == (fal.ErrorDetail("content_policy_violation", "no", ("body", "prompt")),)
    assert "SECRET" not in f"{error!s}{error!r}{vars(error)}"


def test_limits_of_a_reason_are_kept():
    error = ended(422, {"detail": [{"type": "image_too_small", "msg": "", "ctx": {"min_width": 512}}]})
    assert error.details[0].context == {"min_width": 512}
    assert not error.is_policy


def test_the_echo_of_the_input_is_not_quoted_from_an_unknown_answer_either():
    error = refusal(answer(418, {"oops": 1, "input": "MY SECRET PROMPT"}))
    assert isinstance(error, fal.UnexpectedAnswer)
    assert "oops" in str(error)
    assert "SECRET" not in f"{error!s}{error!r}"


def test_excerpts_hold_no_picture_and_no_signature():
    body = b'<a href="https://s3/x.png?X-Amz-Signature=abc">data:image/png;base64,AAAABBBB</a>'
    assert answer(418, body).excerpt == '<a href="https://s3/x.png?…">data:…</a>'


@pytest.mark.parametrize(
    ("units", "billed"),
    [(None, True), ("0", False), ("0.0", False), ("1", True), ("-1", True), ("nonsense", True)],
)
def test_a_refusal_may_be_billed_unless_fal_charges_no_units(units, billed):
    headers = {"x_fal_billable_units": units} if units else {}
    assert ended(422, reasons("image_load_error"), **headers).may_be_billed is billed


RESUBMITTABLE = [
    ("request_timeout", 504),
    ("startup_timeout", 504),
    ("runner_scheduling_failure", 503),
    ("runner_connection_timeout", 503),
    ("runner_disconnected", 503),
    ("runner_connection_refused", 503),
    ("runner_connection_error", 503),
    ("runner_incomplete_response", 502),
    ("runner_server_error", 500),
    ("internal_error", 500),
]


@pytest.mark.parametrize(("error_type", "status"), RESUBMITTABLE)
def test_an_infrastructure_failure_may_be_submitted_again_and_is_not_billed(error_type, status):
    error = ended(status, {"detail": "it broke", "error_type": error_type})
    assert isinstance(error, fal.RequestFailed)
    assert (error.error_type, error.may_resubmit, error.may_be_billed) == (error_type, True, False)


def test_the_error_type_may_stand_in_the_header_alone():
    error = ended(503, b"", x_fal_error_type="runner_disconnected")
    assert (error.error_type, error.may_resubmit) == ("runner_disconnected", True)


@pytest.mark.parametrize(("error_type", "status"), [("bad_request", 400), ("a_new_one", 503)])
def test_other_infrastructure_failures_may_not(error_type, status):
    error = ended(status, {"detail": "no", "error_type": error_type})
    assert isinstance(error, fal.RequestFailed)
    assert not error.may_resubmit


@pytest.mark.parametrize("error_type", ["client_disconnected", "client_cancelled"])
def test_499_is_a_cancellation(error_type):
    error = ended(499, {"detail": "gone", "error_type": error_type})
    assert isinstance(error, fal.Cancelled)
    assert not error.may_resubmit


def test_the_callers_own_start_deadline_is_no_outage():
    body = {"detail": "Request timed out", "error_type": "request_timeout"}
    error = ended(504, body, x_fal_request_timeout_type="user")
    assert isinstance(error, fal.StartTimeout)
    assert not error.may_be_billed


@pytest.mark.parametrize("name", ["X-Fal-Needs-Retry", "x-fal-retryable"])
@pytest.mark.parametrize(
    ("value", "advice"), [("1", True), ("true", True), ("True", True), ("0", False), (" false ", False)]
)
def test_fals_retry_advice_decides_under_both_names_and_all_spellings(name, value, advice):
    assert ended(500, reasons("downstream_service_error"), **{name: value}).may_resubmit is advice
    assert ended(422, reasons("image_load_error"), **{name: value}).may_resubmit is advice
    assert ended(500, {"detail": "x", "error_type": "internal_error"}, **{name: value}).may_resubmit is advice


def test_without_advice_a_failing_model_may_be_asked_again_and_a_refusing_one_not():
    assert ended(504, reasons("generation_timeout")).may_resubmit
    assert not ended(400, reasons("downstream_service_error")).may_resubmit
    assert not ended(422, reasons("no_media_generated")).may_resubmit


@pytest.mark.parametrize("status", [400, 418, 499, 500, 502, 503, 504])
def test_an_error_without_a_type_tells_of_no_ending(status):
    """One 500 with a request id on a finished result once had 3 rows paid 9 times."""
    assert ended(status, {"detail": "Internal Server Error"}, x_fal_request_id="r1") is None
    assert ended(status, b"<html>", x_fal_request_id="r1") is None


def test_when_an_answer_was_given_is_told_by_the_servers_clock():
    assert answer(404, {}, date="Mon, 30 Nov 2026 12:00:00 GMT").answered_at == datetime(
        2026, 11, 30, 12, tzinfo=UTC
    )
    assert answer(404, {}, date="yesterday").answered_at is None
    assert answer(404, {}).answered_at is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"detail": []}),
        (400, {"detail": "Request is still in progress"}),
        (401, {"detail": "invalid key credentials"}),
        (404, {"detail": "Request not found"}),
        (429, reasons("concurrent_requests_limit")),
        (502, b"<html>nginx</html>"),
    ],
)
def test_what_is_about_the_call_is_no_ending(status, body):
    assert ended(status, body) is None


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"detail": "Request is still in progress"}, fal.NotReady),
        (401, {"error": {"type": "authorization_error", "message": "no key"}}, fal.Unauthorized),
        (403, {"detail": "User is locked. Reason: Exhausted balance."}, fal.AccountLocked),
        (403, {"error": {"message": "This API key is not permitted to perform this action."}}, fal.Forbidden),
        (403, b"<html>blocked</html>", fal.Forbidden),
        (403, {"detail": "Your address is blocked."}, fal.Forbidden),
        (404, {"detail": "Request not found"}, fal.RequestNotFound),
        (404, {"status": "NOT_FOUND"}, fal.RequestNotFound),
        (404, {"detail": "Path /nope not found"}, fal.EndpointNotFound),
        (404, b"<html>", fal.UnexpectedAnswer),
        (429, {}, fal.TooManyRequests),
        (503, b"<html>nginx</html>", fal.IngressError),
        (408, b"", fal.IngressError),
        (500, {"detail": "x"}, fal.UnexpectedAnswer),
        (302, b"", fal.UnexpectedAnswer),
    ],
)
def test_refusals_of_a_call(status, body, error):
    found = refusal(answer(status, body), endpoint_id=ENDPOINT, request_id="r1")
    assert type(found) is error
    assert (found.endpoint_id, found.request_id, found.status) == (ENDPOINT, "r1", status)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        ("2.5", 2.5),
        (True, None),
        ("", None),
        ("nan", None),
        ("inf", None),
        (None, None),
        (10**400, None),
    ],
)
def test_numbers_are_finite_or_nothing(value, expected):
    assert number(value) == expected


SIGNED = "https://user:password@bucket.s3.amazonaws.com/a.png?X-Amz-Signature=abc&x=1"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            422,
            {
                "detail": [
                    {"type": "file_download_error", "msg": f"can't fetch {SIGNED}, sorry", "loc": ["body"]}
                ]
            },
        ),
        (400, {"detail": f"can't fetch {SIGNED}, sorry", "error_type": "bad_request"}),
    ],
)
def test_a_url_that_fal_quotes_is_told_without_what_opens_it(status, body):
    error = ended(status, body)
    told = f"{error} {error.message} {getattr(error, 'details', '')}"
    assert "https://…@bucket.s3.amazonaws.com/a.png?…" in told
    assert "X-Amz" not in told
    assert "password" not in told

"""Each fault alone, as a caller meets it."""

import io

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ideogram_pipeline.sandbox import Fault, FaultKind, SandboxSettings
from ideogram_pipeline.sandbox.faults import first_striking, fraction


def status_and_result(caller, submitted):
    caller.events(submitted)
    return caller.http.get(submitted["status_url"]).json(), caller.http.get(submitted["response_url"])


@pytest.mark.parametrize(("fault", "status"), [("submit_429", 429), ("submit_500", 500), ("submit_503", 503)])
def test_a_refused_submit_is_not_accepted_and_goes_through_when_sent_again(call, fault, status):
    caller = call(faults=fault)
    assert caller.post(prompt="x").status_code == status
    assert caller.sandbox.stats().accepted == 0
    assert caller.post(prompt="x").status_code == 200
    assert caller.sandbox.stats().accepted == 1


def test_the_ingress_answers_html_without_a_request_id(call):
    answer = call(faults="submit_503").post(prompt="x")
    assert "nginx" in answer.text
    assert "x-fal-request-id" not in answer.headers


@pytest.mark.parametrize(("fault", "accepted"), [("drop_before_accept", 0), ("drop_after_accept", 1)])
def test_a_dropped_connection_says_nothing_of_whether_the_submit_was_accepted(call, fault, accepted):
    caller = call(faults=fault)
    with pytest.raises(httpx2.RemoteProtocolError, match="disconnected"):
        caller.post(prompt="x")
    stats = caller.sandbox.stats()
    assert (stats.submits, stats.accepted) == (1, accepted)


def test_sending_again_after_an_accepted_submit_was_dropped_is_counted_as_a_duplicate(call):
    caller = call(faults="drop_after_accept")
    with pytest.raises(httpx2.RemoteProtocolError):
        caller.post(prompt="x")
    assert caller.post(prompt="x").status_code == 200
    assert caller.sandbox.stats().duplicates == 1


def test_a_locked_account_stays_locked(call):
    caller = call(faults="locked_balance")
    answers = [caller.post(prompt="x") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json()["detail"].startswith("User is locked. Reason: Exhausted balance.")


def test_a_stuck_request_runs_until_it_is_cancelled(call):
    caller = call(faults="stuck")
    submitted = caller.submit()
    assert caller.http.get(submitted["status_url"]).json()["status"] == "IN_PROGRESS"
    assert caller.http.put(submitted["cancel_url"]).status_code == 202
    status, result = status_and_result(caller, submitted)
    assert (status["error_type"], result.status_code) == ("client_cancelled", 499)


def test_a_slow_request_is_still_running_when_others_have_ended(call):
    caller = call(faults=[Fault(FaultKind.SLOW, match="slow")])
    slow, other = caller.submit(prompt="slow"), caller.submit(prompt="other")
    assert caller.http.get(other["status_url"]).json()["status"] == "COMPLETED"
    assert caller.http.get(slow["status_url"]).json()["status"] == "IN_PROGRESS"


@pytest.mark.parametrize(
    ("fault", "error_type"),
    [("policy_refusal", "content_policy_violation"), ("no_media", "no_media_generated")],
)
def test_a_refusal_of_the_model_is_a_422_each_time(call, fault, error_type):
    caller = call(faults=fault)
    for _ in range(2):
        answer = caller.result()
        assert (answer.status_code, answer.headers["X-Fal-Needs-Retry"]) == (422, "0")
        assert [problem["type"] for problem in answer.json()["detail"]] == [error_type]
    assert caller.sandbox.stats().usd == 0


def test_a_failing_model_is_a_500_with_a_list(call):
    caller = call(faults="model_500")
    status, result = status_and_result(caller, caller.submit())
    assert (status["status"], "error" in status) == ("COMPLETED", False)
    assert (result.status_code, result.json()["detail"][0]["type"]) == (500, "internal_server_error")


def test_a_runner_that_goes_away_is_told_by_status_and_result(call):
    caller = call(faults="runner_503")
    status, result = status_and_result(caller, caller.submit())
    assert (status["status"], status["error_type"]) == ("COMPLETED", "runner_disconnected")
    assert (result.status_code, result.json()["error_type"]) == (503, "runner_disconnected")
    assert (result.headers["X-Fal-Error-Type"], result.headers["X-Fal-Needs-Retry"]) == (
        "runner_disconnected",
        "1",
    )


def test_submitting_again_may_help_against_a_runner_that_went_away(call):
    caller = call(faults="runner_503=0.5")
    assert {caller.result().status_code for _ in range(20)} == {200, 503}


def test_an_expired_result_was_paid_for_and_is_not_found(call):
    caller = call(faults="expired_result")
    status, result = status_and_result(caller, caller.submit())
    assert (status["status"], result.status_code) == ("COMPLETED", 404)
    assert result.json() == {"detail": "Request not found"}
    assert caller.sandbox.stats().usd > 0


def test_a_truncated_download_breaks_off_once(call):
    caller = call(faults="truncated_download")
    url = caller.result().json()["images"][0]["url"]
    with pytest.raises(httpx2.RemoteProtocolError, match="without sending complete"):
        caller.fetch(url)
    Image.open(io.BytesIO(caller.fetch(url))).load()


def test_a_corrupt_download_has_its_length_and_does_not_decode_once(call):
    caller = call(faults="corrupt_download")
    url = caller.result().json()["images"][0]["url"]
    corrupt, sound = caller.fetch(url), caller.fetch(url)
    assert (len(corrupt), corrupt != sound) == (len(sound), True)
    with pytest.raises((OSError, SyntaxError)):
        Image.open(io.BytesIO(corrupt)).load()
    Image.open(io.BytesIO(sound)).load()


def test_a_missing_download_stays_missing(call):
    caller = call(faults="missing_download")
    url = caller.result().json()["images"][0]["url"]
    assert [caller.without_key.get(url).status_code for _ in range(2)] == [404, 404]


def test_a_rule_strikes_only_prompts_that_contain_its_text(call):
    caller = call(faults=[Fault(FaultKind.POLICY_REFUSAL, match="forbidden")])
    assert caller.result(prompt="a forbidden tree").status_code == 422
    assert caller.result(prompt="a tree").status_code == 200


def strikes(subject, **settings):
    chosen = SandboxSettings(**settings)
    return first_striking(chosen, (FaultKind.STUCK,), subject, "", lambda _: True) is not None


@given(st.text(), st.integers())
def test_who_is_struck_depends_on_nothing_but_seed_kind_and_subject(subject, seed):
    settings = {"faults": "stuck=0.5", "seed": seed}
    assert strikes(subject, **settings) == strikes(subject, **settings)


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_rate_strikes_whom_a_lower_one_strikes(subject, one, other):
    lower, higher = sorted((one, other))
    with_rate = {rate: strikes(subject, faults=[Fault(FaultKind.STUCK, rate)]) for rate in (lower, higher)}
    assert with_rate[higher] or not with_rate[lower]


@given(st.text())
def test_rate_0_strikes_nobody_and_rate_1_everybody(subject):
    assert not strikes(subject, faults="stuck=0")
    assert strikes(subject, faults="stuck=1")


def test_a_rate_is_a_share_of_the_inputs():
    settings, kinds = SandboxSettings(faults="stuck=0.25"), (FaultKind.STUCK,)
    struck = sum(
        first_striking(settings, kinds, f"input {number}", "", lambda _: True) is not None
        for number in range(2000)
    )
    assert 400 < struck < 600


@given(st.lists(st.text()))
def test_a_fraction_is_at_least_0_and_below_1(parts):
    assert 0 <= fraction(*parts) < 1

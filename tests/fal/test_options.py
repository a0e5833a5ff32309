"""Platform headers and query parameters."""

import json

import pytest

from ideogram_pipeline.fal import InvalidCall, SubmitOptions


def test_nothing_is_sent_unless_asked_for():
    assert SubmitOptions().headers() == {}
    assert SubmitOptions().query() == ""


def test_every_option_has_its_header():
    headers = SubmitOptions(
        start_timeout_s=2.5,
        priority="normal",
        runner_hint="batch 7",
        no_server_retries=True,
        no_fallback=True,
        store_payloads=False,
        output_lifetime_s=3600,
        tags={"batch": "spring drop", "row": "7"},
    ).headers()
    lifetime = json.loads(headers.pop("X-Fal-Object-Lifecycle-Preference"))
    assert lifetime == {"expiration_duration_seconds": 3600}
    assert headers == {
        "X-Fal-Request-Start-Timeout": "2.5",
        "X-Fal-Request-Timeout": "2.5",
        "X-Fal-Queue-Priority": "normal",
        "X-Fal-Runner-Hint": "batch 7",
        "X-Fal-No-Retry": "1",
        "x-app-fal-disable-fallback": "true",
        "X-Fal-Store-IO": "0",
        "X-Fal-Tags": "batch=spring drop,row=7",
    }


def test_the_queue_length_and_webhook_are_query_parameters():
    assert SubmitOptions(webhook_url="https://x/y?z=1&w", max_queue_length=5).query() == (
        "?fal_webhook=https%3A%2F%2Fx%2Fy%3Fz%3D1%26w&fal_max_queue_length=5"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"start_timeout_s": 1},
        {"start_timeout_s": float("nan")},
        {"start_timeout_s": float("inf")},
        {"output_lifetime_s": 0},
        {"runner_hint": "a\r\nX-Other: 1"},
        {"tags": {"Upper": "x"}},
        {"tags": {"fal.x": "x"}},
        {"tags": {"x": "a,b"}},
        {"tags": {"x": ""}},
        {"tags": {"x": "a\n"}},
        {"tags": {"x": "ü"}},
        {"tags": {str(number): "x" for number in range(11)}},
        {"tags": {str(number): "x" * 250 for number in range(5)}},
    ],
)
def test_what_fal_would_drop_or_misread_is_refused(options):
    with pytest.raises(InvalidCall):
        SubmitOptions(**options)

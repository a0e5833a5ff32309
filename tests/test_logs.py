"""Lines of the log: each names what it is about, and none opens anything."""

import json
import logging

import pytest

from ideogram_pipeline import logs

LOG = logging.getLogger("ideogram_pipeline.generation.somewhere")
SIGNED = "https://me:secret@bucket.example/a.png?X-Amz-Signature=feed"


@pytest.fixture(autouse=True)
def _afterwards():
    yield
    logs.configure("off")


def test_a_json_line_has_the_ids_of_its_row_and_run(capsys):
    logs.configure("json")
    with logs.of_run("run-1"):
        LOG.info(
            "%s: submitted", "p1", extra={"prompt_id": "p1", "request_id": "r1", "prompt": "a lighthouse"}
        )
    line = json.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "ideogram_pipeline.generation.somewhere",
        "message": "p1: submitted",
        "run_id": "run-1",
        "prompt_id": "p1",
        "request_id": "r1",
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_line_has_what_opens_a_url(capsys, log_format):
    logs.configure(log_format)
    try:
        raise ValueError(f"can't read {SIGNED}")
    except ValueError:
        LOG.exception("failed: %s", SIGNED)
    written = capsys.readouterr().err
    assert written.count("https://…@bucket.example/a.png?…") == 2
    assert "secret" not in written
    assert "feed" not in written


def test_a_text_line_ends_with_the_ids(capsys):
    logs.configure("text")
    LOG.warning("%s: refused", "p1", extra={"prompt_id": "p1", "state": "refused"})
    assert capsys.readouterr().err.endswith(" WARNING p1: refused prompt_id=p1 state=refused\n")


def test_configured_twice_a_line_is_written_once_and_off_writes_none(capsys):
    for log_format in ("json", "json"):
        logs.configure(log_format)
    LOG.info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1
    logs.configure("off")
    LOG.info("never")
    assert capsys.readouterr().err == ""

"""fal's own client for JavaScript (``@fal-ai/client`` from npm) cannot tell the sandbox from fal.

The scripts in ``javascript`` are what a user of the client writes; the last line each prints is what it saw, as JSON.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from ideogram_pipeline.ideogram import ENDPOINTS_BY_ID

CHARACTER = "fal-ai/ideogram/character"
SCRIPTS = Path(__file__).with_name("javascript")
CLIENT = SCRIPTS / "node_modules" / "@fal-ai" / "client" / "package.json"


@pytest.fixture(scope="session")
def node():
    """Node, with the client installed. In CI their absence is a failure."""
    program = shutil.which("node")
    if program is None or not CLIENT.exists():
        word = "fal's JavaScript client is not installed: install Node 20 or newer and run `make oracles-install`"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(word)
    return program


@pytest.fixture
def run(node, pictures):
    """Runs a script and gives the lines it printed."""

    def printed(script, **variables):
        ran = subprocess.run(
            [node, "--import", "./preload.mjs", script],
            cwd=SCRIPTS,
            env={**os.environ, "PICTURES": str(pictures), **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.splitlines()

    return printed


def seen(lines):
    return json.loads(lines[-1])


def fetch(url):
    return httpx2.get(url, verify=False).raise_for_status().content


def accepted_without_fault(sandbox, count):
    stats = sandbox.stats()
    assert (stats.accepted, stats.duplicates, stats.failed) == (count, 0, 0)
    assert (stats.surplus_fields, stats.misplaced_keys) == ({}, 0)
    return True


def test_the_subscribe_snippet_of_fal_s_page_prints_logs_result_and_id(sandbox, run):
    running = sandbox(latency_scale=2)  # long enough that the first look finds it in progress
    lines = run("subscribe.mjs")
    result = seen(lines)
    assert lines[0].startswith("Rendering at BALANCED")  # forEach(console.log) adds index and list
    assert lines[-2] == result["requestId"] == running.requests()[0].request_id
    assert fetch(result["data"]["images"][0]["url"]).startswith(b"\x89PNG")
    assert accepted_without_fault(running, 1)


def test_the_queue_snippets_of_fal_s_page_submit_look_and_fetch(sandbox, run):
    running = sandbox()
    shown = seen(run("queue.mjs"))
    assert shown["request_id"] == shown["status"]["request_id"] == shown["result"]["requestId"]
    assert shown["status"]["status"] == "COMPLETED"
    assert [log["message"] for log in shown["status"]["logs"]] == ["Rendering at BALANCED", "Done"]
    assert len(shown["result"]["data"]["images"]) == 1
    assert accepted_without_fault(running, 1)


def test_every_endpoint_is_subscribed_to_with_pictures_uploaded_on_the_way(sandbox, run, pictures):
    running = sandbox()
    shown = seen(run("every_endpoint.mjs"))
    assert shown.keys() == ENDPOINTS_BY_ID.keys()
    for one in shown.values():
        assert one["result"]["data"]["seed"] == 9
        assert fetch(one["result"]["data"]["images"][0]["url"]).startswith(b"\x89PNG")
        assert one["updates"][-1]["status"] == "COMPLETED"
    sent = {one.endpoint_id: one.arguments for one in running.requests()}
    assert fetch(sent[CHARACTER]["reference_image_urls"][0]) == (pictures / "person.png").read_bytes()
    assert accepted_without_fault(running, len(ENDPOINTS_BY_ID))


def test_uploads_arrive_whole_in_one_piece_and_in_parts(sandbox, run, pictures):
    running, content = sandbox(), (pictures / "person.png").read_bytes()
    named, unnamed, large = (fetch(url) for url in seen(run("upload.mjs")))
    assert named == unnamed == content
    assert large == bytes(90 * 2**20) + content
    assert (running.stats().uploads, running.stats().misplaced_keys) == (3, 0)


def test_what_waits_and_what_runs_can_be_cancelled(sandbox, run):
    running = sandbox(concurrency=1, faults="stuck")
    waited, ran = seen(run("cancel.mjs"))
    assert (waited["status"], ran["status"]) == ("IN_QUEUE", "IN_PROGRESS")
    for one in (waited, ran):
        assert (one["error"], one["code"]) == ("ApiError", 499)
        assert one["body"]["error_type"] == "client_cancelled"
    stats = running.stats()
    assert (stats.accepted, stats.failed, stats.cancels) == (2, 2, 2)


def test_the_stream_of_statuses_tells_each_change_once(sandbox, run):
    running = sandbox(latency_scale=2)
    shown = seen(run("stream.mjs"))
    assert shown["statuses"] == shown["updates"] == ["IN_PROGRESS", "COMPLETED"]
    assert [log["message"] for log in shown["last"]["logs"]] == ["Rendering at BALANCED", "Done"]
    assert len(shown["result"]["data"]["images"]) == 1
    assert running.stats().status_calls == 0
    assert accepted_without_fault(running, 2)


def test_an_invalid_input_raises_what_fal_would_raise(sandbox, run):
    sandbox()
    shown = seen(run("refused.mjs"))
    assert (shown["error"], shown["code"]) == ("ValidationError", 422)
    assert [(field["loc"], field["type"]) for field in shown["fields"]] == [
        (["body", "reference_image_urls"], "missing")
    ]


def test_a_webhook_is_told_about_the_request(sandbox, run, receiver):
    sandbox()
    request_id = seen(run("webhook.mjs", WEBHOOK_URL=receiver.url))
    letter = receiver.next()
    assert (letter["request_id"], letter["status"]) == (request_id, "OK")

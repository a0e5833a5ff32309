"""Serving: in a thread, in a process of its own, and again after an end of any kind."""

import os
import signal
import socket
import subprocess
import sys

import httpx2
import pytest

from ideogram_pipeline.sandbox import SandboxSettings, environment, running_sandbox, serve

HEADERS = {"Authorization": "Key a:b"}
SERVE = "from ideogram_pipeline.sandbox import serve; serve()"
SERVE_ON_ANY_PORT = """
from ideogram_pipeline.sandbox import running_sandbox
with running_sandbox() as sandbox:
    print(sandbox.url, flush=True)
    input()
"""


@pytest.fixture
def process():
    """Starts a sandbox in a process of its own."""
    started = []

    def start(script, **settings):
        variables = {f"SANDBOX_{name.upper()}": str(value) for name, value in settings.items()}
        one = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        started.append(one)
        return one

    yield start
    for one in started:
        one.kill()
        one.communicate()


def submit(url, **arguments):
    body = {"prompt": "a lighthouse", **arguments}
    return httpx2.post(f"{url}/fal-ai/ideogram/v3", json=body, headers=HEADERS, verify=False).json()


def ask(url, submitted, suffix=""):
    path = f"/fal-ai/ideogram/requests/{submitted['request_id']}{suffix}"
    return httpx2.get(f"{url}{path}", headers=HEADERS, verify=False)


def test_it_takes_a_free_port_and_stops_with_the_block():
    with running_sandbox() as one, running_sandbox() as other:
        assert one.url != other.url
        assert one.stats().submits == 0
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(one.url)


def test_it_takes_the_port_that_is_set():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with running_sandbox(SandboxSettings(port=port)) as sandbox:
        assert sandbox.url == f"http://127.0.0.1:{port}"
        with pytest.raises(OSError, match="in use"), running_sandbox(SandboxSettings(port=port)):
            pass
        with pytest.raises(OSError, match="in use"):
            serve(SandboxSettings(port=port))


def test_an_error_in_the_block_is_not_swallowed():
    with pytest.raises(ZeroDivisionError), running_sandbox():
        raise ZeroDivisionError


def test_the_environment_points_everything_at_the_sandbox():
    assert environment("http://127.0.0.1:1", SandboxSettings(key="id:secret")) == {
        "IDEOGRAM_BACKEND": "sandbox",
        "FAL_KEY": "id:secret",
        "FAL_QUEUE_URL": "http://127.0.0.1:1",
        "FAL_REST_URL": "http://127.0.0.1:1",
        "FAL_API_URL": "http://127.0.0.1:1",
    }


def test_in_the_foreground_it_says_where_it_is_and_ends_quietly_when_interrupted(process):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    one = process(SERVE, port=port, latency_scale=0)
    assert one.stdout.readline().startswith(f"Sandbox at http://127.0.0.1:{port}, remembering in :memory:")
    told = dict(one.stdout.readline().strip().removeprefix("export ").split("=") for _ in range(5))
    assert told["FAL_QUEUE_URL"] == f"http://127.0.0.1:{port}"
    assert ask(told["FAL_QUEUE_URL"], submit(told["FAL_QUEUE_URL"])).status_code == 200
    one.send_signal(signal.SIGINT)
    _, complaints = one.communicate()
    assert (one.returncode, complaints) == (0, "")


def test_a_killed_sandbox_carries_on_when_it_is_started_again(process, tmp_path):
    state = tmp_path / "state.db"
    first = process(SERVE_ON_ANY_PORT, state=state, concurrency=1, faults="stuck")
    url = first.stdout.readline().strip()
    running, waiting = submit(url), submit(url, prompt="waits")
    first.kill()
    first.wait()
    with running_sandbox(SandboxSettings(state=state, concurrency=1)) as again:
        assert ask(again.url, running, "/status").json()["status"] == "IN_PROGRESS"
        assert ask(again.url, waiting, "/status").json()["queue_position"] == 0
        path = f"/fal-ai/ideogram/requests/{running['request_id']}/cancel"
        httpx2.put(f"{again.url}{path}", headers=HEADERS, verify=False)
        assert ask(again.url, waiting, "/status").json()["status"] == "IN_PROGRESS"


def test_what_was_under_way_ends_although_nobody_was_there(tmp_path):
    settings = SandboxSettings(state=tmp_path / "state.db", concurrency=1, latency_scale=0.01)
    with running_sandbox(settings) as first:
        submitted = [submit(first.url, prompt=f"number {number}") for number in range(20)]
    with running_sandbox(settings) as again:
        last = httpx2.get(
            f"{again.url}/fal-ai/ideogram/requests/{submitted[-1]['request_id']}/status/stream",
            headers=HEADERS,
            verify=False,
        )
        assert '"COMPLETED"' in last.text.strip().splitlines()[-1]
        answers = [ask(again.url, one) for one in submitted]
        assert {answer.status_code for answer in answers} == {200}
        image = answers[0].json()["images"][0]["url"]
        assert image.startswith(again.url)
        assert httpx2.get(image, verify=False).status_code == 200


def test_two_sandboxes_on_one_file_are_one_queue(tmp_path):
    settings = SandboxSettings(state=tmp_path / "state.db", concurrency=1, faults="stuck")
    with running_sandbox(settings) as one, running_sandbox(settings) as other:
        running, waiting = submit(one.url), submit(other.url, prompt="waits")
        assert ask(other.url, running, "/status").json()["status"] == "IN_PROGRESS"
        assert ask(one.url, waiting, "/status").json()["status"] == "IN_QUEUE"
        assert one.stats().accepted == other.stats().accepted == 2


def test_a_picture_whose_reference_has_gone_is_gone_too(tmp_path, portrait):
    settings = SandboxSettings(state=tmp_path / "deep" / "state.db", latency_scale=0)
    with running_sandbox() as elsewhere:
        token = httpx2.post(f"{elsewhere.url}/storage/auth/token", headers=HEADERS, verify=False).json()[
            "token"
        ]
        file = httpx2.post(
            f"{elsewhere.url}/files/upload",
            content=portrait,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "image/png"},
            verify=False,
        ).json()["access_url"]
        with running_sandbox(settings) as first:
            submitted = httpx2.post(
                f"{first.url}/fal-ai/ideogram/character",
                json={"prompt": "x", "reference_image_urls": [file]},
                headers=HEADERS,
                verify=False,
            ).json()
            assert ask(first.url, submitted).status_code == 200
    with running_sandbox(settings) as again:
        image = ask(again.url, submitted).json()["images"][0]["url"]
        assert httpx2.get(image, verify=False).status_code == 410

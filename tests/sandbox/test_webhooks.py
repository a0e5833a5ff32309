"""Deliveries, as a receiver checks them."""

import base64
import hashlib
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox


@pytest.fixture
def receiver():
    """A receiver, which answers with the statuses in ``answers`` and then with 200."""
    received, answers = queue.Queue(), queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if answers.empty() else answers.get())
            self.send_header("Content-Length", "0")
            self.end_headers()
            received.put((dict(self.headers.items()), body))

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/hook?row=1&x=%20"
    server.next = lambda: received.get(timeout=20)
    server.answers = answers
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def submit(caller, receiver, **arguments):
    return caller.submit(params={"fal_webhook": receiver.url}, **arguments)


def test_a_finished_request_is_announced_with_what_its_result_says(call, receiver):
    caller = call(latency_scale=0.1)
    submitted = submit(caller, receiver)
    _, body = receiver.next()
    assert json.loads(body) == {
        "request_id": submitted["request_id"],
        "gateway_request_id": submitted["request_id"],
        "status": "OK",
        "payload": caller.http.get(submitted["response_url"]).json(),
    }


def test_a_delivery_is_signed_with_the_published_key(call, receiver):
    caller = call()
    submitted = submit(caller, receiver)
    headers, body = receiver.next()
    (key,) = caller.without_key.get("/.well-known/jwks.json").json()["keys"]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    signed = {name.lower(): value for name, value in headers.items()}
    message = "\n".join(
        (
            signed["x-fal-webhook-request-id"],
            signed["x-fal-webhook-user-id"],
            signed["x-fal-webhook-timestamp"],
            hashlib.sha256(body).hexdigest(),
        )
    )
    public.verify(bytes.fromhex(signed["x-fal-webhook-signature"]), message.encode())
    assert signed["x-fal-webhook-request-id"] == submitted["request_id"]


@pytest.mark.parametrize(("fault", "status"), [("policy_refusal", 422), ("runner_503", 503)])
def test_a_failed_request_is_announced_with_its_error(call, receiver, fault, status):
    caller = call(faults=fault)
    submitted = submit(caller, receiver)
    letter = json.loads(receiver.next()[1])
    detail = caller.http.get(submitted["response_url"]).json()["detail"]
    assert (letter["status"], letter["error"]) == ("ERROR", f"Invalid status code: {status}")
    assert letter["payload"] == {"detail": detail}


def test_a_cancelled_request_is_announced(call, receiver):
    caller = call(faults="stuck")
    submitted = submit(caller, receiver)
    caller.http.put(submitted["cancel_url"])
    assert json.loads(receiver.next()[1])["error"] == "Invalid status code: 499"


def test_a_delivery_that_fails_is_tried_again(call, receiver):
    caller = call()
    receiver.answers.put(500)
    submit(caller, receiver)
    assert receiver.next()[1] == receiver.next()[1]
    assert caller.sandbox.stats().webhooks == 2


def test_a_delivery_that_was_taken_may_come_again(call, receiver):
    caller = call(faults="webhook_twice")
    submit(caller, receiver)
    assert receiver.next()[1] == receiver.next()[1]


def test_a_late_delivery_comes_after_that_of_a_request_that_ended_after_it(call, receiver):
    caller = call(faults=(Fault("webhook_late", match="first"),))
    first = submit(caller, receiver, prompt="the first")
    second = submit(caller, receiver, prompt="the second")
    ids = [json.loads(receiver.next()[1])["request_id"] for _ in range(2)]
    assert ids == [second["request_id"], first["request_id"]]


def test_a_lost_delivery_never_comes(call, receiver):
    caller = call(faults=(Fault("webhook_lost", match="first"),))
    submit(caller, receiver, prompt="the first")
    second = submit(caller, receiver, prompt="the second")
    assert json.loads(receiver.next()[1])["request_id"] == second["request_id"]
    assert caller.sandbox.stats().webhooks == 1


def test_what_is_forgotten_is_not_delivered_any_more(call, receiver):
    caller = call()
    receiver.answers.put(500)
    submit(caller, receiver)
    receiver.next()
    caller.sandbox.reset()
    again = submit(caller, receiver, prompt="another")
    assert json.loads(receiver.next()[1])["request_id"] == again["request_id"]


def test_a_redirect_is_not_followed_and_not_tried_again(call, receiver):
    caller = call()
    receiver.answers.put(302)
    first = submit(caller, receiver)
    receiver.next()
    second = submit(caller, receiver, prompt="another")
    ids = json.loads(receiver.next()[1])["request_id"]
    assert ids == second["request_id"] != first["request_id"]


def test_a_receiver_that_is_not_there_harms_nobody(call, receiver):
    caller = call()
    caller.submit(params={"fal_webhook": "http://127.0.0.1:9/"})
    caller.submit(params={"fal_webhook": "not an address"}, prompt="another")
    submitted = submit(caller, receiver, prompt="a third")
    assert json.loads(receiver.next()[1])["request_id"] == submitted["request_id"]


def test_a_sandbox_started_again_announces_what_the_one_before_did_not(receiver, tmp_path):
    settings = SandboxSettings(state=tmp_path / "state.db", faults="stuck")
    with running_sandbox(settings) as first:
        keys = httpx2.get(f"{first.url}/.well-known/jwks.json", verify=False).json()
        answer = httpx2.post(
            f"{first.url}/fal-ai/ideogram/v3",
            params={"fal_webhook": receiver.url},
            json={"prompt": "x"},
            headers={"Authorization": "Key a:b"},
            verify=False,
        )
    with running_sandbox(settings) as again:
        cancel = answer.json()["cancel_url"].replace(first.url, again.url)
        httpx2.put(cancel, headers={"Authorization": "Key a:b"}, verify=False)
        assert json.loads(receiver.next()[1])["request_id"] == answer.json()["request_id"]
        assert httpx2.get(f"{again.url}/.well-known/jwks.json", verify=False).json() == keys

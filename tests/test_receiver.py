"""The receiver over real HTTP: what fal delivers is in the inbox once, whatever else is sent to it."""

import asyncio
import base64
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.applications import Starlette
from starlette.routing import Mount

from ideogram_pipeline import receiver as module
from ideogram_pipeline.doctor import examine
from ideogram_pipeline.errors import ConfigurationError, StoreError
from ideogram_pipeline.fal import no_waiting
from ideogram_pipeline.generation.inbox import Address, Letter, Secret
from ideogram_pipeline.receiver import build_app
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

COMMAND = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()"]
BATCH = "drop"


@dataclass(frozen=True)
class Delivery:
    """One POST to the receiver."""

    path: str
    headers: dict
    body: bytes


class Fal:
    """The keys of a fal, published on 127.0.0.1, and what it signs."""

    def __init__(self):
        self.key = Ed25519PrivateKey.generate()
        self.published = True
        self.asked = 0
        fal = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                fal.asked += 1
                x = base64.urlsafe_b64encode(fal.key.public_key().public_bytes_raw()).rstrip(b"=").decode()
                keys = [{"kty": "OKP", "crv": "Ed25519", "x": x}] if fal.published else []
                content = json.dumps({"keys": keys}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def delivers(self, store, number, *, told=None, key=None, at=None, token=None):
        """What it sends when the request of this number has ended, to the address that a run made for it."""
        address = address_of(number)
        token = token or address.token(Secret.of(store))
        told = told or {"status": "OK", "payload": {"images": [], "seed": number}}
        body = json.dumps({"request_id": f"r{number}", **told}).encode()
        stamp = str(int(time.time() if at is None else at))
        message = "\n".join((f"r{number}", "user", stamp, hashlib.sha256(body).hexdigest()))
        headers = {
            "X-Fal-Webhook-Request-Id": f"r{number}",
            "X-Fal-Webhook-User-Id": "user",
            "X-Fal-Webhook-Timestamp": stamp,
            "X-Fal-Webhook-Signature": (key or self.key).sign(message.encode()).hex(),
        }
        path = f"/{address.batch}/{address.fingerprint}/{address.attempt}/{token}"
        return Delivery(path, headers, body)


def address_of(number):
    return Address(BATCH, hashlib.sha256(str(number).encode()).hexdigest(), 1)


def letters(store):
    """What lies in the inbox, by request id."""
    found = [Letter.model_validate_json(store.get(one.path)) for one in store.objects(f"inbox/batch={BATCH}")]
    assert len({letter.request_id for letter in found}) == len(found)
    return {letter.request_id: letter for letter in found}


@pytest.fixture
def fal():
    fal = Fal()
    yield fal
    fal.close()


@pytest.fixture
def settings(store, fal):
    return Settings(backend="sandbox", store=store.url, fal_rest_url=fal.url)


@pytest.fixture
def post(serve, settings):
    """Post deliveries to the app, one after the other, and return the statuses."""
    url = serve(build_app(settings))

    def send(*deliveries, prefix=url):
        with httpx2.Client(base_url=prefix, timeout=30) as http:
            return [
                http.post(one.path, content=one.body, headers=one.headers).status_code for one in deliveries
            ]

    send.url = url
    return send


class Process:
    """The command, serving."""

    def __init__(self, store, fal):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("IDEOGRAM_", "FAL_"))
        }
        self.process = subprocess.Popen(
            [*COMMAND, "webhooks", "--port", "0"],
            env={**kept, "IDEOGRAM_STORE": store.url, "FAL_REST_URL": fal.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = self.process.stdout.readline().removeprefix("Receiver at ").partition(",")[0]

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        _, log = self.process.communicate()
        return log


@pytest.fixture
def start(store, fal):
    started = []

    def new():
        started.append(Process(store, fal))
        return started[-1]

    yield new
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


async def all_at_once(url, deliveries, on_answer=lambda _: None):
    """Post deliveries fifty at a time; return their statuses, None where no answer came."""
    places = asyncio.Semaphore(50)

    async def send(http, one):
        async with places:
            try:
                answer = await http.post(one.path, content=one.body, headers=one.headers)
            except httpx2.HTTPError:
                return None
            on_answer(answer)
            return answer.status_code

    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        return await asyncio.gather(*(send(http, one) for one in deliveries))


@pytest.mark.slow
def test_a_thousand_deliveries_each_result_once_and_forged_ones_refused(store, fal, start):
    receiver = start()
    forger, secret_text = Ed25519PrivateKey.generate(), "a prompt nobody should log"
    told = {"status": "OK", "payload": {"prompt": secret_text}}
    genuine = [fal.delivers(store, number) for number in range(850)]
    repeated = random.Random(1).sample(genuine, 100)
    altered = fal.delivers(store, 9000)
    hour_ago = time.time() - 3600
    forged = [
        *(fal.delivers(store, number, told=told, key=forger) for number in range(900, 920)),
        *(fal.delivers(store, number, told=told, at=hour_ago) for number in range(920, 935)),
        *(fal.delivers(store, number, told=told, token="0" * 32) for number in range(935, 945)),
        *(Delivery(altered.path, altered.headers, altered.body + b" " * count) for count in range(1, 6)),
    ]
    everything = [*genuine, *repeated, *forged]
    random.Random(2).shuffle(everything)
    statuses = asyncio.run(all_at_once(receiver.url, everything))
    told_to = dict(zip(map(id, everything), statuses, strict=True))
    assert len(everything) == 1000
    assert {told_to[id(one)] for one in [*genuine, *repeated]} == {200}
    assert {told_to[id(one)] for one in forged} == {401}
    before = letters(store)
    assert set(before) == {f"r{number}" for number in range(850)}
    assert all(letter.payload["seed"] == int(name[1:]) for name, letter in before.items())

    again = asyncio.run(all_at_once(receiver.url, genuine[:20]))
    assert set(again) == {200}
    assert letters(store) == before
    log = receiver.stop()
    assert log.count("was refused") == len(forged)
    assert secret_text not in log
    assert Secret.of(store).secret not in log
    assert address_of(1).token(Secret.of(store)) not in log
    assert fal.asked == 1


@pytest.mark.slow
def test_a_receiver_that_is_stopped_amid_deliveries_loses_none_that_it_has_taken(store, fal, start):
    first = start()
    deliveries = [fal.delivers(store, number) for number in range(400)]
    taken = iter(range(100))

    def stop_after_some(_):
        if next(taken, None) == 50:
            first.process.send_signal(signal.SIGTERM)

    statuses = asyncio.run(all_at_once(first.url, deliveries, stop_after_some))
    first.process.communicate()
    answered = [number for number, status in enumerate(statuses) if status == 200]
    assert 50 <= len(answered) < 400
    assert {f"r{number}" for number in answered} <= set(letters(store))
    missed = [one for one, status in zip(deliveries, statuses, strict=True) if status != 200]
    assert set(asyncio.run(all_at_once(start().url, missed))) == {200}
    assert len(letters(store)) == 400


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_receiver_stops_when_it_is_told_to_and_says_nothing_of_it(start, how):
    receiver = start()
    assert httpx2.get(f"{receiver.url}/health").status_code == 200
    assert receiver.stop(how) == ""


def test_what_a_failed_or_withheld_request_says_is_left_to_fal(store, fal, post):
    refused = {"status": "ERROR", "error": "Invalid status code: 422", "payload": {"detail": []}}
    withheld = {"status": "OK", "payload": None, "payload_error": "too large"}
    told = [
        fal.delivers(store, 1),
        fal.delivers(store, 2, told=refused),
        fal.delivers(store, 3, told=withheld),
    ]
    assert post(*told) == [200, 200, 200]
    found = letters(store)
    assert found["r1"] == Letter(request_id="r1", user_id="user", payload={"images": [], "seed": 1})
    assert (found["r2"].payload, found["r3"].payload) == (None, None)


def test_without_the_token_a_body_is_not_even_read(store, fal, post, monkeypatch):
    stranger = fal.delivers(store, 1, token=address_of(2).token(Secret.of(store)))
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 10)
    assert post(stranger, fal.delivers(store, 1)) == [401, 413]
    assert letters(store) == {}


def test_a_body_that_does_not_say_how_long_it_is_is_not_read_beyond_the_limit(store, fal, post, monkeypatch):
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 1000)
    one = fal.delivers(store, 1)
    endless = (b" " * 100 for _ in range(50))
    answer = httpx2.post(post.url + one.path, content=endless, headers=one.headers)
    assert answer.status_code == 413
    assert letters(store) == {}


@pytest.mark.parametrize("path", ["/", "/drop", "/drop/f/1", "/drop/f/1/t/more"])
def test_other_addresses_are_none(post, path):
    assert post(Delivery(path, {}, b"")) == [404]


@pytest.mark.parametrize("attempt", ["0", "-1", "x", "1e3", "%D9%A1", "99999"])
def test_an_attempt_is_a_small_number(store, post, attempt):
    address = address_of(1)
    token = address.token(Secret.of(store))
    assert post(Delivery(f"/{BATCH}/{address.fingerprint}/{attempt}/{token}", {}, b"")) == [401]


def test_while_fals_keys_cannot_be_had_it_is_asked_to_deliver_again(store, fal, post):
    fal.published = False
    ready = f"{post.url}/ready"
    with no_waiting():
        assert post(fal.delivers(store, 1)) == [503]
        assert httpx2.get(ready).status_code == 503
        fal.published = True
        assert httpx2.get(ready).status_code == 200
        assert post(fal.delivers(store, 1)) == [200]
    assert set(letters(store)) == {"r1"}


def test_while_the_store_cannot_be_written_it_is_asked_to_deliver_again(store, fal, post, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.5)
    folder = store.folder / "inbox" / f"batch={BATCH}"
    delivery = fal.delivers(store, 1)
    folder.write_text("in the way")
    assert post(delivery) == [503]
    folder.unlink()
    assert post(delivery) == [200]
    assert set(letters(store)) == {"r1"}


def test_it_is_ready_only_if_the_store_can_be_written(store, post, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_WITHIN_S", 0.5)
    monkeypatch.setattr(module, "READY_FOR_S", 0.0)
    assert httpx2.get(f"{post.url}/ready").status_code == 200
    (store.folder / "inbox" / "ready").unlink()
    (store.folder / "inbox" / "ready").mkdir()
    assert httpx2.get(f"{post.url}/ready").status_code == 503
    assert httpx2.get(f"{post.url}/health").status_code == 200


def test_it_can_be_mounted_in_another_app(store, fal, serve, settings, post):
    app = build_app(settings)
    url = serve(Starlette(routes=[Mount("/ideogram", app)], lifespan=app.router.lifespan_context))
    assert post(fal.delivers(store, 1), prefix=f"{url}/ideogram") == [200]
    assert set(letters(store)) == {"r1"}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "is ready, and has this store"),
        ("store", "has another store"),
        ("keys", "is not ready"),
        ("app", "is no receiver"),
        ("nobody", "no answer"),
    ],
)
def test_the_doctor_tells_whether_the_receiver_is_the_runs_own(tmp_path, fal, serve, settings, wrong, says):
    fal.published = wrong != "keys"
    stores = {"store": settings.model_copy(update={"store": str(tmp_path / "other")})}
    app = Starlette() if wrong == "app" else build_app(stores.get(wrong, settings))
    url = "http://127.0.0.1:9" if wrong == "nobody" else serve(app)
    of_runs = settings.model_copy(update={"webhook_url": url, "fal_queue_url": fal.url})
    with no_waiting():
        (finding,) = [found for found in examine(of_runs) if found.what == "webhooks"]
    assert finding.ok == (wrong is None)
    assert says in finding.says


def test_all_receivers_and_runs_on_a_store_make_and_know_the_same_addresses(store):
    other = Store.open(store.url)
    assert Secret.of(store) == Secret.of(other)
    url = address_of(1).url("https://hooks.example.org/x/", Secret.of(store))
    assert url.startswith(f"https://hooks.example.org/x/{BATCH}/{address_of(1).fingerprint}/1/")
    assert Secret.of(store).secret not in repr(Secret.of(store)) + url


def test_a_damaged_secret_says_what_to_do(store):
    store.put("inbox/secret.json", b"{}")
    with pytest.raises(StoreError, match="Remove it"):
        Secret.of(store)


def test_a_sandbox_that_is_nowhere_has_no_receiver(store):
    with pytest.raises(ConfigurationError, match="FAL_QUEUE_URL"):
        build_app(Settings(backend="sandbox", store=store.url))

"""What fal's own clients share here: a sandbox, the pictures they send it, and somebody who waits for webhooks."""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image, ImageDraw
from pydantic import SecretStr

from ideogram_pipeline.sandbox import Change, SandboxSettings, environment, running_sandbox

SETTINGS = SandboxSettings(key=SecretStr("an-id:a-secret"))
CHANGEABLE = {"latency_scale": 0, "faults": (), "concurrency": 10}


@pytest.fixture(scope="session")
def shared():
    """One sandbox for all tests, which accepts one key only."""
    with running_sandbox(SETTINGS) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared, monkeypatch):
    """Gives the sandbox with nothing in its memory, its key and its address where clients look for them."""
    for name, value in environment(shared.url, SETTINGS).items():
        monkeypatch.setenv(name, value)

    def changed(**settings):
        shared.reset()
        shared.change(Change(**CHANGEABLE | settings))
        return shared

    return changed


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder with somebody's portrait, a landscape, and a mask of the landscape's right half."""
    folder = tmp_path_factory.mktemp("pictures")
    person = Image.new("RGB", (256, 320), (226, 218, 204))
    pen = ImageDraw.Draw(person)
    pen.ellipse((30, 200, 226, 450), fill=(30, 60, 140))
    pen.ellipse((75, 55, 181, 210), fill=(214, 160, 120))
    person.save(folder / "person.png")
    ramp = Image.linear_gradient("L")
    Image.merge("RGB", (ramp, ramp.rotate(90), Image.new("L", ramp.size, 90))).save(folder / "scene.png")
    mask = Image.new("L", ramp.size, 255)
    mask.paste(0, (128, 0, 256, 256))
    mask.save(folder / "mask.png")
    return folder


@pytest.fixture
def receiver():
    """Where webhooks can be sent: ``url``, and ``next()`` for the letter that comes next."""
    letters = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            letter = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            letters.put(letter)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/results?row=a b"
    server.next = lambda: letters.get(timeout=20)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()

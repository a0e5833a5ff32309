"""Sandboxes to call, and pictures to send them."""

import base64
import io
from contextlib import ExitStack
from dataclasses import dataclass

import httpx2
import pytest
from PIL import Image, ImageDraw

from ideogram_pipeline.sandbox import Change, RunningSandbox, SandboxSettings, running_sandbox

KEY = "an-id:a-secret"
CHANGEABLE = {"latency_scale": 0, "faults": (), "concurrency": 10, "result_ttl": 3600}


@dataclass(frozen=True)
class Caller:
    """Somebody with a key who calls a sandbox."""

    sandbox: RunningSandbox
    http: httpx2.Client
    without_key: httpx2.Client

    def post(self, endpoint="v3", /, headers=None, params=None, **arguments):
        path = f"/fal-ai/ideogram/{endpoint}"
        return self.http.post(path, json=arguments, headers=headers or {}, params=params or {})

    def submit(self, endpoint="v3", /, headers=None, params=None, **arguments):
        arguments = {"prompt": "a lighthouse", **arguments}
        answer = self.post(endpoint, headers, params, **arguments)
        answer.raise_for_status()
        return answer.json()

    def events(self, submitted):
        """Every status the stream tells, up to the last one."""
        with self.http.stream("GET", f"{submitted['status_url']}/stream") as answer:
            answer.raise_for_status()
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        return [httpx2.Response(200, text=line.removeprefix("data: ")).json() for line in lines]

    def result(self, endpoint="v3", /, **arguments):
        submitted = self.submit(endpoint, **arguments)
        self.events(submitted)
        return self.http.get(submitted["response_url"])

    def pictures(self, endpoint="v3", /, **arguments):
        answer = self.result(endpoint, **arguments)
        assert answer.status_code == 200, answer.text
        return [self.fetch(image["url"]) for image in answer.json()["images"]]

    def fetch(self, url):
        return self.without_key.get(url).raise_for_status().content

    def upload(self, content, file_name="picture.png", content_type="image/png"):
        announced = {"content_type": content_type, "file_name": file_name}
        urls = self.http.post("/storage/upload/initiate?storage_type=fal-cdn-v3", json=announced).json()
        self.without_key.put(urls["upload_url"], content=content).raise_for_status()
        return urls["file_url"]


@pytest.fixture(scope="session")
def shared():
    """One sandbox for all tests that need no other settings than those that can be changed."""
    with running_sandbox(SandboxSettings()) as sandbox:
        yield sandbox


@pytest.fixture
def call(shared):
    """Gives somebody who calls a sandbox with these settings."""
    with ExitStack() as stack:

        def start(expected_key=None, **settings):
            wanted = {**CHANGEABLE, **settings}
            if expected_key is None and wanted.keys() == CHANGEABLE.keys():
                shared.reset()
                shared.change(Change(**wanted))
                sandbox = shared
            else:
                sandbox = stack.enter_context(running_sandbox(SandboxSettings(key=expected_key, **wanted)))
            common = {"base_url": sandbox.url, "timeout": 30, "verify": False}
            with_key = httpx2.Client(headers={"Authorization": f"Key {KEY}"}, **common)
            without_key = httpx2.Client(**common)
            return Caller(sandbox, stack.enter_context(with_key), stack.enter_context(without_key))

        yield start


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def portrait():
    """A picture of somebody, 512 x 640: light hair, a face, a blue coat."""
    image = Image.new("RGB", (512, 640), (226, 218, 204))
    pen = ImageDraw.Draw(image)
    pen.ellipse((60, 400, 452, 900), fill=(30, 60, 140))
    pen.ellipse((150, 110, 362, 420), fill=(214, 160, 120))
    return png(image)


@pytest.fixture(scope="session")
def scenery():
    """A source picture in a size that Ideogram renders, 1024 x 1024, every pixel known."""
    ramp = Image.linear_gradient("L").resize((1024, 1024))
    return png(Image.merge("RGB", (ramp, ramp.rotate(90), Image.new("L", ramp.size, 90))))


@pytest.fixture(scope="session")
def mask():
    """Black in its right half, white in its left."""
    image = Image.new("L", (1024, 1024), 255)
    image.paste(0, (512, 0, 1024, 1024))
    return png(image)


@pytest.fixture(scope="session")
def as_data_uri():
    """Turns a PNG into a data URI."""
    return lambda content: f"data:image/png;base64,{base64.b64encode(content).decode()}"

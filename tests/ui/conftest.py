"""A browser on Dagster's UI: `dagster dev` on loopback over batches that were run, with a planted key to look for."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from ideogram_pipeline.sandbox import Fault, RunningSandbox, SandboxSettings, running_sandbox

BIN = Path(sys.executable).parent
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
KEY = "planted-id:planted-secret"
SECRET = "planted-secret"
START_S, STOP_S, PAGE_MS = 120, 30, 60_000

ROWS = (
    ("ada-1", "ada", "a lighthouse in a storm", "TURBO"),
    ("ada-2", "ada", "the same lighthouse at dawn", "TURBO"),
    ("ada-3", "ada", "a forbidden lighthouse", "TURBO"),
    ("ada-4", "ada", "a slow lighthouse", "SLOWEST"),
    ("bea-1", "bea", "a boat", "TURBO"),
)
"""In the batch `ada` two rows get pictures, one is refused by the model and one rejected; `bea` is whole."""


@dataclass(frozen=True)
class Deployment:
    """What the browser looks at."""

    url: str
    sandbox: RunningSandbox


@pytest.fixture(scope="session")
def deployment(tmp_path_factory):
    """Run the batches by the command, as anyone would, and open Dagster on them as `make ui` does."""
    folder = tmp_path_factory.mktemp("ui")
    Image.new("RGB", (64, 64), "teal").save(folder / "ada.png")
    (folder / "references.csv").write_text("reference_id,uri\nada,ada.png\n")
    with (folder / "prompts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("prompt_id", "batch", "prompt", "rendering_speed"), *ROWS])
    faults = (Fault("policy_refusal", match="forbidden"),)
    with running_sandbox(SandboxSettings(key=KEY, faults=faults, latency_scale=0)) as sandbox:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("IDEOGRAM_")}
        environment = {
            **kept,
            "DAGSTER_HOME": str(folder / "home"),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "FAL_KEY": KEY,
            "FAL_QUEUE_URL": sandbox.url,
            "IDEOGRAM_STORE": str(folder / "store"),
            "IDEOGRAM_PROMPTS": str(folder / "prompts.csv"),
            "IDEOGRAM_REFERENCES": str(folder / "references.csv"),
        }
        run = subprocess.run(
            [str(BIN / "ideogram-pipeline"), "run"],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 3, run.stdout + run.stderr  # finished, and two rows have no picture
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        log = folder / "dev.log"
        with log.open("wb") as sink:
            dev = subprocess.Popen(
                [
                    *(str(BIN / "dagster"), "dev", "--host", "127.0.0.1", "--port", str(port)),
                    *("-m", "ideogram_pipeline.definitions"),
                ],
                env=environment,
                cwd=folder,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + START_S
            while not answers(url):
                assert dev.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield Deployment(url, sandbox)
        finally:
            stop(dev)
        holding = [
            file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()
        ]
        assert holding == []


def answers(url):
    try:
        return httpx2.get(f"{url}/server_info", timeout=5).is_success
    except httpx2.TransportError:
        return False


def stop(dev):
    """Ask Dagster to end its processes; what is left of its session after that is killed."""
    dev.send_signal(signal.SIGINT)
    try:
        dev.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(dev.pid, signal.SIGKILL)
        dev.wait(STOP_S)


def missing(what):
    """Skip, except where the tests are meant to run."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright (pip install 'ideogram-pipeline[browser]')")
    if not Path(CHROMIUM).exists():
        missing("chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, deployment, tmp_path):
    """A page of its own, of which a picture is left. Nothing that it is sent or shows may hold the key."""
    context = browser.new_context(base_url=deployment.url, viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    page.set_default_timeout(PAGE_MS)
    answered, frames = [], []

    def answer_came(answer):
        answered.append(answer)

    def socket_opened(socket):
        socket.on("framereceived", lambda frame: frames.append(str(frame)))

    page.on("response", answer_came)
    page.on("websocket", socket_opened)
    yield page
    page.screenshot(path=tmp_path / "page.png")
    told = [
        answer.text()
        for answer in answered
        if answer.ok and answer.request.resource_type in ("document", "fetch", "xhr")
    ]
    heard = [page.content(), page.inner_text("body"), *frames, *told]
    context.close()
    assert [text for text in told if text.startswith('{"data":')]
    assert [text[:200] for text in heard if SECRET in text] == []

"""What the tests of several rooms share: Hypothesis without its stopwatch, a store, a batch that was run, and bills."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import boto3
import pytest
import uvicorn
from hypothesis import HealthCheck, settings
from PIL import Image
from starlette.types import ASGIApp

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.ledger import Ledger, Reserved, Settled, StoredImage, Submitted
from ideogram_pipeline.generation.outcomes import (
    Failed,
    Generated,
    NotReached,
    Outcome,
    Refused,
    Reused,
    Unknown,
)
from ideogram_pipeline.generation.picture_names import picture_path
from ideogram_pipeline.generation.planner import Plan, References, plan_batch
from ideogram_pipeline.generation.records import image_rows, outcome_rows
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.marks.credentials import write_development_certificate
from ideogram_pipeline.pictures import inspect
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.reader import RawRow
from ideogram_pipeline.tables.rows import PromptRow, Rejection, parse_row

# How fast an example runs says nothing about whether it is right.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NO_REFERENCES = References({}, {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Make a picture file of one colour."""

    def make(
        color: str = "teal", size: tuple[int, int] = (64, 48), kind: str = "PNG", mode: str = "RGB"
    ) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", size, color).convert(mode).save(sink, kind)
        return sink.getvalue()

    return make


SERVE_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Serves S3 from memory: quick, and no ground for claims, of which two writers may win the same one."""

SERVE_SEAWEEDFS = """
import json, socket, subprocess, sys, tempfile, time
from pathlib import Path
import httpx2

SERVERS = ("master", "volume", "filer", "s3")
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2 * len(SERVERS))]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": sys.argv[1], "secretKey": sys.argv[2]}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    config = Path(folder, "s3.json")
    config.write_text(json.dumps({"identities": [identity]}))
    log = Path(folder, "log").open("w+")
    server = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("weed")), "server", "-dir", folder, "-ip=127.0.0.1", "-filer", "-s3",
            f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
            "-master.volumeSizeLimitMB=64", "-volume.max=0",
            f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock",
            *(f"-{name}.port={port}" for name, port in zip(SERVERS, ports)),
            *(f"-{name}.port.grpc={port}" for name, port in zip(SERVERS, ports[len(SERVERS):])),
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        while True:
            try:
                if httpx2.get(f"http://127.0.0.1:{ports[3]}/status").is_success:
                    break
            except httpx2.HTTPError:
                pass
            if server.poll() is not None:
                log.seek(0)
                sys.exit("SeaweedFS ended: " + log.read()[-2000:])
            time.sleep(0.05)
        print(ports[3], flush=True)
        sys.stdin.read()
    finally:
        server.kill()
        server.wait()
"""
"""Serves S3 as a real store does, in a temporary folder; it checks signatures, and of many claims one wins."""

ACCESS_KEY, SECRET_KEY = "an-access-key", "planted-aws-secret"


class DevelopmentCertificate(NamedTuple):
    """The files that pictures are signed and validated with."""

    authority: Path
    chain: Path
    key: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> DevelopmentCertificate:
    """A certificate to sign with, as the command makes it."""
    return DevelopmentCertificate(*write_development_certificate(tmp_path_factory.mktemp("keys")))


class S3Server:
    """A server of the S3 protocol on 127.0.0.1, in a process of its own that ends with this one."""

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, ACCESS_KEY, SECRET_KEY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if program == SERVE_SEAWEEDFS else subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout
        port = self._process.stdout.readline().strip()
        assert port, "the S3 server did not start"
        self.url = f"http://127.0.0.1:{port}"
        self._names = itertools.count()

    def environment(self, url: str | None = None) -> dict[str, str]:
        """Variables that lead a process to this server, or to what stands before it at `url`, and nowhere else."""
        return {
            "AWS_ENDPOINT_URL": url or self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"bucket-{next(self._names)}"
        session = boto3.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1")
        session.client("s3", endpoint_url=self.url).create_bucket(Bucket=name)
        return name

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """A server that is quick to start and to answer, and checks no signature."""
    server = S3Server(SERVE_MOTO)
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_server(moto: S3Server) -> S3Server:
    return moto


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """A real S3 server, on which claims can be tested."""
    server = S3Server(SERVE_SEAWEEDFS)
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with this process's environment leading to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return s3_server


class S3Wire:
    """What stands between a store and the S3 server, on 127.0.0.1: it passes everything on, unless it is to fail."""

    def __init__(self, server: S3Server) -> None:
        self.seen: list[tuple[str, str]] = []
        """Method and target of every request, in order."""
        self.failed = 0
        """Requests that were failed so far."""
        self._faults: list[list[Any]] = []
        self._over = threading.Event()
        wire, behind = self, server.url.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                wire.seen.append((self.command, self.path))
                fault = wire._fault(self.command, self.path)
                if fault == "reset":
                    return self.hang_up()
                if fault in CODES:
                    content = (
                        f"<Error><Code>{fault}</Code><Message>planted-message</Message></Error>".encode()
                    )
                    return self.answer(CODES[fault], {}, content)
                if fault == "overwrite":
                    del self.headers["If-None-Match"]
                if fault == "list nothing":
                    self.path = self.path.replace("prefix=", "prefix=nothing-")
                connection = HTTPConnection(behind)
                connection.request(self.command, self.path, body, dict(self.headers))
                found = connection.getresponse()
                content = found.read()
                connection.close()
                if fault == "hang":
                    wire._over.wait()
                if fault in ("hang", "lose the answer"):
                    return self.hang_up()
                return self.answer(found.status, dict(found.getheaders()), content)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

            def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                headers = {name.lower(): value for name, value in headers.items()}
                length = headers.get("content-length") if self.command == "HEAD" else None
                self.send_response_only(status)
                for name, value in headers.items():
                    if name not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def hang_up(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                self.wfile = io.BytesIO()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass  # a client that has gone, or was hung up on

            def shutdown_request(self, request: Any) -> None:
                with contextlib.suppress(OSError):
                    super().shutdown_request(request)

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def fail(self, kind: str, method: str = "", target: str = "", *, times: float = 1) -> None:
        """Fail the next requests with this method whose target holds this text.

        `reset` never reaches the server, `lose the answer` does; `hang` does and is never answered; `overwrite` makes a
        conditional write a plain one, `list nothing` lists a folder that isn't there; a code of `CODES` is S3's own
        answer.
        """
        self._faults.append([kind, method, target, times])

    def mend(self) -> None:
        """Fail no more."""
        self._faults.clear()

    def _fault(self, method: str, target: str) -> str | None:
        for fault in self._faults:
            kind, its_method, its_target, times = fault
            if times > 0 and its_method in ("", method) and its_target in target:
                fault[3] -= 1
                self.failed += 1
                return str(kind)
        return None

    def close(self) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


CODES = {
    "SlowDown": 503,
    "InternalError": 500,
    "AccessDenied": 403,
    "InvalidAccessKeyId": 403,
    "RequestTimeTooSkewed": 403,
    "PermanentRedirect": 301,
    "ConditionalRequestConflict": 409,
    "NotImplemented": 501,
}


@pytest.fixture
def wire_to(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[S3Server], S3Wire]]:
    """Lay a wire to an S3 server that can fail, and lead this process's environment through it."""
    with ExitStack() as stack:

        def lay(server: S3Server) -> S3Wire:
            wire = S3Wire(server)
            stack.callback(wire.close)
            monkeypatch.setenv("AWS_ENDPOINT_URL", wire.url)
            return wire

        yield lay


@pytest.fixture
def s3_wire(s3: S3Server, wire_to: Callable[[S3Server], S3Wire]) -> S3Wire:
    """A wire to the S3 server that can fail, with this process's environment leading through it."""
    return wire_to(s3)


@pytest.fixture
def prompts_table() -> Callable[..., PromptsTable]:
    """Make a prompts table with a row in each of some batches."""

    def make(*batches: str) -> PromptsTable:
        numbered = enumerate(batches, 2)
        return PromptsTable(
            tuple(
                PromptRow(prompt_id=f"p{number}", batch=batch, row_number=number, prompt="x")
                for number, batch in numbered
            ),
            (),
        )

    return make


class BillingDesk:
    """fal's billing events as a test has them, on 127.0.0.1, and what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.events: list[dict[str, Any]] = []
        """What is known; a question by ids is answered with those."""
        self.status = 200
        self.cut_short = False
        """Whether an answer says that there is more, and not where."""
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = desk.answer(self.path)
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, target: str) -> tuple[int, dict[str, Any]]:
        path, _, query = target.partition("?")
        assert path == "/v1/models/billing-events"
        self.asked.append(parse_qs(query))
        if self.status != 200:
            return self.status, {"error": {"type": "authorization_error", "message": "Not for this key"}}
        found = [event for event in self.events if event["request_id"] in self.asked[-1]["request_id"]]
        return 200, {"billing_events": found, "has_more": self.cut_short, "next_cursor": None}

    def book(self, request_id: str, **facts: Any) -> None:
        """Charge 10 cents for a request, or what the facts say."""
        event = {
            "request_id": request_id,
            "endpoint_id": "fal-ai/ideogram/v3",
            "timestamp": "2026-11-22T12:00:05Z",
            "output_units": 1,
            "unit_price": 0.1,
            "cost_total": 0.1,
        }
        self.events.append(event | facts)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def billing_desk() -> Iterator[BillingDesk]:
    desk = BillingDesk()
    yield desk
    desk.close()


@contextmanager
def _served(app: ASGIApp) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        # connections wait in the listener's backlog until the server takes them
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[[ASGIApp], str]]:
    """Serve an app on 127.0.0.1 until the test ends, and return its address."""
    with ExitStack() as stack:
        yield lambda app: stack.enter_context(_served(app))


@dataclass(frozen=True)
class WorkedBatch:
    """A batch as a run leaves it in the store."""

    plan: Plan
    ledger: Ledger
    outcomes: list[Outcome]

    def request(self, prompt_id: str) -> GenerationRequest:
        return next(row.request for row in self.plan.rows if row.prompt_id == prompt_id and row.request)


@pytest.fixture
def work_batch(store: Store, picture: Callable[..., bytes]) -> Callable[..., WorkedBatch]:
    """Plan rows, write how each ended into the ledger as the engine would, and write plan and results."""

    def work(
        records: Iterable[Mapping[str, Any]],
        *,
        endings: Mapping[str, str] | None = None,
        batch: str = "drop",
        rejections: Iterable[Rejection] = (),
        references: References = NO_REFERENCES,
        kinds: Mapping[str, str] | None = None,
    ) -> WorkedBatch:
        numbered = enumerate(records, 2)
        rows = [parse_row(PromptRow, RawRow(number, {"batch": batch, **cells})) for number, cells in numbered]
        ledger = Ledger(store, batch)
        plan = plan_batch(batch, rows, rejections, references, ledger.entries)
        requests = [row.request for row in plan.rows if row.request]
        how = {request.prompt_id: "generated" for request in requests} | dict(endings or {})

        async def end_all() -> list[Outcome]:
            return [
                await _end(
                    store,
                    ledger,
                    request,
                    how[request.prompt_id],
                    picture(kind=(kinds or {}).get(request.prompt_id, "PNG")),
                )
                for request in requests
            ]

        outcomes = asyncio.run(end_all())
        files.write_plan(store, plan)
        rows = outcome_rows(plan, outcomes, ledger.entries)
        files.write_results(store, batch, image_rows(plan, ledger.entries), rows)
        return WorkedBatch(plan, ledger, outcomes)

    return work


async def _end(
    store: Store, ledger: Ledger, request: GenerationRequest, ending: str, content: bytes
) -> Outcome:
    """Bring a request to its end, unless the ledger knows that it has ended before."""
    fingerprint = request.fingerprint
    if fingerprint in ledger.entries:
        return Reused(request, ledger.entries[fingerprint])
    if ending == "not_reached":
        return NotReached(request, None, "the brake was pulled")
    await ledger.reserve(
        Reserved(
            request=request,
            sent_sha256="0",
            attempt=1,
            owner="run-1",
            reserved_at=NOON,
            backend="sandbox",
            code_version="1.2.3",
        )
    )
    if ending == "unknown":
        return Unknown(request, ledger.entries[fingerprint], "the answer was lost")
    url = f"https://queue.example/{fingerprint[:8]}"
    await ledger.submitted(
        fingerprint,
        Submitted(
            request_id=f"request-{request.prompt_id}",
            status_url=f"{url}/status",
            response_url=url,
            cancel_url=f"{url}/cancel",
            submitted_at=NOON,
        ),
    )
    images = _store_images(store, request, content) if ending == "generated" else ()
    await ledger.settle(
        fingerprint,
        Settled(
            state=ending,
            reason="" if images else f"it was {ending}",
            images=images,
            seed=7 if images else None,
            inference_s=2.5 if images else None,
            completed_at=NOON + timedelta(seconds=10),
            cost_usd=request.price_usd if images else Decimal(0),
            cost_source="price_list",
        ),
    )
    entry = ledger.entries[fingerprint]
    if images:
        return Generated(request, entry)
    return (Refused if ending == "refused" else Failed)(request, entry, f"it was {ending}")


def _store_images(store: Store, request: GenerationRequest, content: bytes) -> tuple[StoredImage, ...]:
    facts = inspect(content)
    images = []
    for index in range(request.num_images):
        path = picture_path(request, index, facts.kind)
        store.put(path, content)
        images.append(
            StoredImage(
                index=index,
                path=path,
                sha256=facts.sha256,
                bytes=facts.bytes,
                width=facts.width,
                height=facts.height,
                format=facts.kind,
                perceptual_hash=facts.perceptual_hash,
            )
        )
    return tuple(images)

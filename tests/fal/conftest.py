"""A loopback HTTP server that says whatever a test scripts, faults included, and records what it read."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ideogram_pipeline.fal import FalClient, FalHosts, Timeouts, no_waiting

T = TypeVar("T")
KEY = "abcd1234-key-id:5ecre7-5ecre7-5ecre7"


@dataclass(frozen=True)
class Seen:
    """One request the server has read whole."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """One answer. `raw` replaces all of it; `drop`, `reset` and `hang` come instead of it."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    drop: bool = False
    reset: bool = False
    hang: bool = False

    def encoded(self) -> bytes:
        if self.raw is not None:
            return self.raw
        if self.drop or self.reset or self.hang:
            return b""
        is_json = not isinstance(self.body, bytes)
        body = json.dumps(self.body).encode() if is_json else self.body
        headers = {
            "Content-Type": "application/json" if is_json else "text/html",
            "Content-Length": str(len(body)),
            **self.headers,
        }
        head = f"HTTP/1.1 {self.status} Scripted\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
        return head.encode() + b"\r\n" + body


Script = Callable[[Seen], Reply]


class FakeFal:
    """Serves a script on 127.0.0.1, on a free port, from a thread of its own."""

    key = KEY
    reply = Reply

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.seen: list[Seen] = []
        self.script: Script = lambda _: Reply(500)
        self._connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.port = self._ready.result(10)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def replies(self, *replies: Reply) -> None:
        """Answer with these in turn, the last one for ever."""
        waiting = list(replies)
        self.script = lambda _: waiting.pop(0) if len(waiting) > 1 else waiting[0]

    def count(self, method: str) -> int:
        return sum(one.method == method for one in self.seen)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        )
        self._ready.set_result(server.sockets[0].getsockname()[1])
        self._loop.run_forever()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        connection = self._connections
        self._writers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode("latin-1").split("\r\n")
                method, target, _ = first.split(" ", 2)
                headers = {
                    k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                seen = Seen(method, target, headers, body, connection)
                self.seen.append(seen)
                reply = self.script(seen)
                writer.write(reply.encoded())
                await writer.drain()
                if reply.hang:
                    await reader.read()
                if reply.reset:
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                if reply.drop or reply.reset or reply.raw is not None:
                    return
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()


def running(tls: ssl.SSLContext | None = None) -> Iterator[FakeFal]:
    server = FakeFal(tls)
    yield server
    server.close()


@pytest.fixture
def fake() -> Iterator[FakeFal]:
    """A server that the client takes for fal."""
    yield from running()


@pytest.fixture
def other() -> Iterator[FakeFal]:
    """A second server, which the client does not know."""
    yield from running()


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[FakeFal]:
    """A TLS server with a certificate nobody signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "nobody.pem"
    pem.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + certificate.public_bytes(Encoding.PEM)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    yield from running(tls)


@pytest.fixture
def dead_url() -> Iterator[str]:
    """A URL nobody listens at, for as long as the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with no_waiting():
        yield


QUICK = Timeouts(connect_s=5.0, call_s=10.0, submit_s=10.0, transfer_s=10.0, silence_s=10.0)

Asking = Callable[[Callable[[FalClient], Awaitable[T]]], T]


@pytest.fixture
def connect(fake: FakeFal) -> Callable[..., Asking[Any]]:
    """Makes a client (of the fake, unless told otherwise) and returns what runs a call on it, open, in a new loop."""

    def make(hosts: FalHosts | None = None, timeouts: Timeouts = QUICK) -> Asking[Any]:
        async def run(call: Callable[[FalClient], Awaitable[T]]) -> T:
            async with FalClient(KEY, hosts or FalHosts.at(fake.url), timeouts=timeouts) as client:
                return await call(client)

        return lambda call: asyncio.run(run(call))

    return make


@pytest.fixture
def ask(connect: Callable[..., Asking[Any]]) -> Asking[Any]:
    """Runs a call on a client of the fake."""
    return connect()

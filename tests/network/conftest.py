"""A company's network on 127.0.0.1: a proxy that records and refuses, its own authority, TLS before a server."""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import itertools
import os
import shutil
import ssl
import subprocess
import threading
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from tests.chaos.conftest import PLANTED_KEY, Project

NETWORK_VARIABLES = ("_PROXY", "SSL_CERT_", "AWS_", "AZURE_", "AZURITE_", "GOOGLE_")


class Listener:
    """Serves connections on 127.0.0.1, on a free port, from a thread of its own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._tls = tls
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.port = self._ready.result(10)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self.serve(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                writer.close()

        server = self._loop.run_until_complete(asyncio.start_server(one, "127.0.0.1", 0, ssl=self._tls))
        self._ready.set_result(server.sockets[0].getsockname()[1])
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(2**16):
        writer.write(part)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def join(reader, writer, port: int, first: bytes = b"") -> None:
    """Pass on between a caller and a server on this machine, until both are done."""
    other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
    other_writer.write(first)
    try:
        await asyncio.gather(pass_on(reader, other_writer), pass_on(other_reader, writer))
    finally:
        other_writer.close()


class Front(Listener):
    """TLS before a server that has none."""

    def __init__(self, tls: ssl.SSLContext, behind: str) -> None:
        self._behind = urlsplit(behind).port or 0
        super().__init__(tls)

    async def serve(self, reader, writer) -> None:
        await join(reader, writer, self._behind)


class Proxy(Listener):
    """A company's HTTP proxy."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        """Method and target of every request, in order."""
        self.login = ""
        """`user:password`, if it wants one."""
        self.refuses = 0
        """Status with which it answers everything, if it does."""
        self.names: dict[str, int] = {}
        """Ports on this machine that host names lead to."""
        super().__init__()

    async def serve(self, reader, writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode("latin-1").split(" ", 2)
        self.seen.append(f"{method} {target}")
        wanted = b"proxy-authorization: basic " + base64.b64encode(self.login.encode()).lower()
        if self.login and wanted not in head.lower():
            return self.answer(writer, 407, 'Proxy-Authenticate: Basic realm="company"\r\n')
        if self.refuses:
            return self.answer(writer, self.refuses)
        parts = urlsplit(target if "://" in target else f"//{target}")
        port = self.names.get(parts.hostname or "", parts.port)
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            return await join(reader, writer, port)
        path = target.partition("://")[2].partition("/")[2]
        return await join(reader, writer, port, head.replace(target.encode(), f"/{path}".encode(), 1))

    def answer(self, writer, status: int, headers: str = "") -> None:
        page = b"<html>the company's proxy</html>"
        head = f"HTTP/1.1 {status} No\r\nVia: 1.1 company\r\nContent-Type: text/html\r\n{headers}"
        writer.write(f"{head}Content-Length: {len(page)}\r\nConnection: close\r\n\r\n".encode() + page)


@dataclass(frozen=True)
class Authority:
    """A company's own certificate authority."""

    pem: Path
    """Its certificate."""
    tls: ssl.SSLContext
    """For servers whose certificate it signed: 127.0.0.1, localhost and every name below `company.test`."""

    def name_hash(self) -> str:
        """The name that OpenSSL looks for in a folder of certificates."""
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed, which names the files of a folder of certificates")
        said = subprocess.run(
            ["openssl", "x509", "-hash", "-noout", "-in", str(self.pem)], capture_output=True, check=True
        )
        return said.stdout.decode().strip()


def certificate_of(name: str, key, issuer, issuer_key, *, is_authority: bool):
    now = datetime.now(UTC)
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names = [
        x509.DNSName("localhost"),
        x509.DNSName("*.company.test"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    built = (
        x509.CertificateBuilder(issuer or named, named, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if is_authority:
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        built = built.add_extension(usage, critical=True)
    else:
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return built.sign(issuer_key, hashes.SHA256())


@pytest.fixture(scope="session")
def authority(tmp_path_factory) -> Authority:
    folder = tmp_path_factory.mktemp("authority")
    its_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate_of("The company", its_key, None, its_key, is_authority=True)
    leaf = certificate_of("a server", key, root.subject, its_key, is_authority=False)
    pem, server = folder / "company.pem", folder / "server.pem"
    pem.write_bytes(root.public_bytes(Encoding.PEM))
    server.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + leaf.public_bytes(Encoding.PEM)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(server)
    return Authority(pem, tls)


@pytest.fixture(autouse=True)
def _no_network_of_its_own(monkeypatch) -> None:
    """Whoever runs the tests may have a proxy and a cloud."""
    for name in list(os.environ):
        if any(part in name.upper() for part in NETWORK_VARIABLES):
            monkeypatch.delenv(name)


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def proxy(stack) -> Proxy:
    """A proxy; nothing leads there yet."""
    made = Proxy()
    stack.callback(made.close)
    return made


@pytest.fixture
def behind_proxy(proxy, monkeypatch) -> Proxy:
    """A proxy that the environment leads to, as a company's machine has it: `NO_PROXY` is not set."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    return proxy


@pytest.fixture
def with_tls(stack, authority):
    """Put TLS before a server, with a certificate of the company's authority; returns the address."""

    def make(behind: str) -> str:
        front = Front(authority.tls, behind)
        stack.callback(front.close)
        return front.url

    return make


AZURITE = Path(__file__).with_name("azurite") / "node_modules" / ".bin" / "azurite-blob"
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""What Azurite's documentation gives everybody."""


class AzureServer:
    """Azurite, Microsoft's own emulator of Azure's blob store, on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [
                str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(folder),
                "--skipApiVersionCheck", "--disableTelemetry", "--silent",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        said = next((line for line in self._process.stdout if "listens on" in line), "")
        assert said, "Azurite did not start"
        self.url = said.split()[-1]
        self._names = itertools.count()

    def signature(self, text: str) -> str:
        return base64.b64encode(
            hmac.digest(base64.b64decode(ACCOUNT_KEY), text.encode(), hashlib.sha256)
        ).decode()

    def container(self) -> str:
        """Make an empty container and return its name."""
        name, date, version = f"container-{next(self._names)}", formatdate(usegmt=True), "2021-12-02"
        resource = f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        signed = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
        headers = {
            "x-ms-date": date,
            "x-ms-version": version,
            "Authorization": f"SharedKey {ACCOUNT}:{self.signature(signed)}",
        }
        made = httpx2.put(f"{self.url}/{ACCOUNT}/{name}?restype=container", headers=headers, trust_env=False)
        assert made.status_code == 201, made.text
        return name

    def connection_string(self, url: str | None = None, **parts: str) -> str:
        given = {"AccountName": ACCOUNT, "AccountKey": ACCOUNT_KEY} | parts
        endpoint = f"BlobEndpoint={url or self.url}/{ACCOUNT};"
        return "DefaultEndpointsProtocol=http;" + "".join(f"{k}={v};" for k, v in given.items()) + endpoint

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


@pytest.fixture(scope="session")
def azurite(tmp_path_factory):
    """Azurite, where it is installed. In CI its absence is a failure."""
    if shutil.which("node") is None or not AZURITE.exists():
        word = "Azurite is not installed: install Node 20 or newer and run `make oracles-install`"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(word)
    server = AzureServer(tmp_path_factory.mktemp("azurite"))
    yield server
    server.close()


@pytest.fixture
def project(tmp_path):
    """Make a table, and a standing sandbox that stands for fal."""
    with ExitStack() as opened:

        def make(rows: int, **settings) -> Project:
            settings = SandboxSettings(key=SecretStr(PLANTED_KEY), latency_scale=0, **settings)
            return Project(tmp_path, opened.enter_context(running_sandbox(settings)), rows)

        yield make

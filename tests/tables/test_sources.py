"""Where bytes come from: the web, data URIs and files, each with its own way to fail."""

import base64
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.fal.http import _tls
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables import sources
from ideogram_pipeline.tables.sources import Sources


class Web(BaseHTTPRequestHandler):
    """A web server with one picture, a redirect to it, and every way not to have one."""

    agents: ClassVar[list[str]] = []
    """Who has asked."""
    gone: ClassVar[threading.Event] = threading.Event()
    """Never set: who waits for it waits as long as it says."""

    def do_GET(self) -> None:
        self.agents.append(self.headers["User-Agent"])
        match self.path:
            case "/a.png":
                self.answer(200, b"a picture")
            case "/moved":
                self.answer(302, b"", Location="/a.png")
            case "/round":
                self.answer(302, b"", Location="/round")
            case "/into-the-network":
                self.answer(302, b"", Location=f"https://localhost:{self.server.server_port}/a.png")
            case "/slow":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab")
                self.rfile.read()  # until the reader has gone
            case "/dripping":
                self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            case "/dripping-head":
                self.drip(b"HTTP/1.1 200 OK\r\nX-Long: ")
            case "/huge":
                self.answer(200, b"x", length=50 * 1024 * 1024 + 1, times=50 * 1024 * 1024 + 1)
            case "/cut":
                self.answer(200, b"half", length=8)
            case _:
                self.answer(404, b"")

    def drip(self, head: bytes) -> None:
        """Give a byte now and then, so that no wait for the next one is ever long."""
        try:
            self.wfile.write(head)
            while not self.gone.wait(0.05):
                self.wfile.write(b"a")
        except OSError:
            return  # the reader had enough

    def answer(
        self, status: int, body: bytes, length: int | None = None, times: int = 1, **headers: str
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        try:
            self.wfile.write(body * times)
        except OSError:
            return  # the reader had enough

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> str:
    """A certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(path)


@pytest.fixture
def web(certificate, monkeypatch) -> Iterator[str]:
    """The address of a web server that this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    _tls.cache_clear()
    with serving(context) as server:
        yield f"https://127.0.0.1:{server.server_port}"
    _tls.cache_clear()


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


HERE = ["127.0.0.1"]


@pytest.mark.parametrize("path", ["/a.png", "/moved"])
def test_a_picture_of_the_web_is_fetched(web, path):
    assert Sources("r.csv", HERE).reference(f"{web}{path}") == b"a picture"
    assert Web.agents[-1] == "ideogram-pipeline"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing", "404"),
        ("/cut", "can't be fetched"),
        ("/huge", "the file is larger than 50 MiB"),
        ("/round", "More than 5 redirects"),
    ],
)
def test_what_the_web_does_not_give_whole_is_an_error(web, path, reason):
    with pytest.raises(OSError, match=reason):
        Sources("r.csv", HERE).reference(f"{web}{path}")


@pytest.mark.parametrize("path", ["/slow", "/dripping", "/dripping-head"])
def test_a_picture_that_comes_too_slowly_is_an_error(web, monkeypatch, path):
    monkeypatch.setattr(sources, "DEADLINE_S", 0.3)
    with pytest.raises(OSError, match=rf"can't be fetched .*{path}"):
        Sources("r.csv", HERE).reference(f"{web}{path}")


@pytest.mark.parametrize("private", [[], ["localhost"], ["127.0.0.2"]])
def test_a_reference_on_a_private_host_is_refused_unless_that_host_is_named(web, private):
    asked = len(Web.agents)
    with pytest.raises(OSError, match=r"neither public https.*name the host in IDEOGRAM_PRIVATE_HOSTS"):
        Sources("r.csv", private).reference(f"{web}/a.png")
    assert len(Web.agents) == asked


def test_a_name_or_a_redirect_that_leads_into_a_private_network_is_refused(web):
    asked = len(Web.agents)
    with pytest.raises(OSError, match=r"localhost has a private address.*IDEOGRAM_PRIVATE_HOSTS"):
        Sources("r.csv").reference(web.replace("127.0.0.1", "localhost") + "/a.png")
    assert len(Web.agents) == asked
    with pytest.raises(OSError, match=r"localhost has a private address.*IDEOGRAM_PRIVATE_HOSTS"):
        Sources("r.csv", HERE).reference(f"{web}/into-the-network")
    assert len(Web.agents) == asked + 1


def test_plain_http_is_for_private_hosts_that_are_named():
    with serving() as server:
        for host, private in (("127.0.0.1", HERE), ("localhost", ["localhost"])):
            url = f"http://{host}:{server.server_port}/a.png"
            assert Sources("r.csv", private).reference(url) == b"a picture"
            with pytest.raises(OSError, match="Use a public https:// address"):
                Sources("r.csv").reference(url)


@given(content=st.binary(max_size=100))
def test_a_data_uri_gives_its_bytes(content):
    in_base64 = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    in_percent = "data:image/png," + "".join(f"%{byte:02x}" for byte in content)
    assert Sources("r.csv").reference(in_base64) == Sources("r.csv").reference(in_percent) == content


@given(text=st.text(max_size=30))
def test_any_data_uri_gives_bytes_or_an_error(text):
    try:
        assert isinstance(Sources("r.csv").reference(f"data:{text}"), bytes)
    except OSError as error:
        reason = str(error)
    else:
        return
    assert "data URI" in reason


def test_a_path_is_read_beside_its_table(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"beside")
    assert Sources(str(tmp_path / "r.csv")).reference("pictures/a.png") == b"beside"
    assert Sources("elsewhere/r.csv").reference(str(tmp_path / "pictures" / "a.png")) == b"beside"


@pytest.fixture
def bucket(s3):
    """A bucket with a table in a folder, and pictures beside it, above it and elsewhere."""
    bucket = Store.open(f"s3://{s3.bucket()}")
    for path in ("team/tables/a.png", "team/b c.png", "d.png"):
        bucket.put(path, path.encode())
    bucket.put("team/tables/r.csv", b"a table")
    return bucket


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("a.png", "team/tables/a.png"),
        ("../b c.png", "team/b c.png"),
        ("/d.png", "d.png"),
        ("{bucket}/d.png", "d.png"),
    ],
)
def test_a_path_in_a_table_in_s3_is_read_beside_it(bucket, uri, path):
    of_table = Sources(f"{bucket.url}/team/tables/r.csv")
    assert of_table.table() == b"a table"
    assert of_table.reference(uri.format(bucket=bucket.url)) == path.encode()
    assert of_table.stamp(uri.format(bucket=bucket.url)) == bucket.etag(path)


def test_a_table_on_disk_may_name_pictures_in_s3(bucket):
    assert Sources("r.csv").reference(f"{bucket.url}/d.png") == b"d.png"


def test_a_bucket_is_opened_once_for_all_that_a_table_names(bucket, monkeypatch):
    opened, really = [], Store.open
    monkeypatch.setattr(Store, "open", lambda url: opened.append(url) or really(url))
    of_table = Sources(f"{bucket.url}/team/tables/r.csv")
    for uri in ("a.png", "../b c.png", f"{bucket.url}/d.png"):
        of_table.reference(uri)
        of_table.stamp(uri)
    assert opened == [bucket.url]


def test_what_is_missing_or_too_large_in_s3_is_named(bucket, monkeypatch):
    of_table = Sources(f"{bucket.url}/team/tables/r.csv")
    with pytest.raises(FileNotFoundError, match=f"{bucket.url}/team/tables/nothing.png"):
        of_table.reference("nothing.png")
    assert of_table.stamp("nothing.png") == "absent"
    with pytest.raises(OSError, match="names no object"):
        of_table.reference(f"{bucket.url}/")
    bucket.put("d.png", b"x" * (1024 * 1024 + 1))
    monkeypatch.setattr(sources, "MAX_BYTES", 1024 * 1024)
    with pytest.raises(StoreError, match=f"{bucket.url}/d.png.*larger than 1 MiB"):
        of_table.reference("/d.png")


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_table_that_is_too_large_is_not_read(bucket, tmp_path, monkeypatch, place):
    monkeypatch.setattr(sources, "MAX_TABLE_BYTES", 1024 * 1024)
    large = b"x" * (1024 * 1024 + 1)
    (tmp_path / "r.csv").write_bytes(large)
    bucket.put("r.csv", large)
    table = str(tmp_path / "r.csv") if place == "disk" else f"{bucket.url}/r.csv"
    with pytest.raises((OSError, StoreError), match="larger than 1 MiB"):
        Sources(table).table()


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "device", "socket", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.png"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "link to a fifo":
            os.mkfifo(tmp_path / "pipe")
            path.symlink_to("pipe")
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(path))
        case "folder":
            path.mkdir()
    with pytest.raises(OSError, match=r"a\.png' is (a folder, not a file|no file)"):
        Sources(str(tmp_path / "r.csv")).reference("a.png")


def test_a_table_that_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(OSError, match="is no file"):
        Sources(str(tmp_path / "p.csv")).table()


def test_a_file_that_says_it_is_small_and_goes_on_is_not_read_on(monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    with pytest.raises(OSError, match="larger than"):  # its size is said to be 0
        Sources("r.csv").reference("/proc/self/maps")


@pytest.mark.parametrize(
    "name", ["localhost", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_this_machine_is_refused_by_each_of_its_names(web, name):
    asked = len(Web.agents)
    with pytest.raises(OSError, match=r"IDEOGRAM_PRIVATE_HOSTS|InvalidUrl"):
        Sources("r.csv").reference(web.replace("127.0.0.1", name) + "/a.png")
    assert len(Web.agents) == asked

"""A company's proxy: what goes through it, what never does, and what its refusals are said to be."""

import asyncio
import queue
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ideogram_pipeline import fal, network
from ideogram_pipeline.doctor import examine
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.fal.media import fetch_file
from ideogram_pipeline.receiver import build_app
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from tests.chaos.conftest import PLANTED_KEY

FAR_AWAY = "https://queue.company.test"
LOGIN = "ada:p@ss:word"
LOGIN_WRITTEN = "ada:p%40ss%3Aword"


@pytest.fixture
def sandbox(stack):
    return stack.enter_context(running_sandbox(SandboxSettings(latency_scale=0)))


@pytest.fixture
def far_away(sandbox, proxy, authority, with_tls, monkeypatch):
    """A sandbox that only the proxy can reach, under a name that only it knows, by TLS of the company's authority."""
    proxy.names["queue.company.test"] = int(with_tls(sandbox.url).rpartition(":")[2])
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))
    return sandbox


@pytest.fixture
def nowhere():
    """An address that nobody listens at, as long as the test runs."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def on_client(call, base=FAR_AWAY):
    async def run():
        async with fal.FalClient(PLANTED_KEY, fal.FalHosts.at(base)) as client:
            return await call(client)

    with fal.no_waiting():
        return asyncio.run(run())


def submitted(base=FAR_AWAY):
    return on_client(lambda client: client.submit("fal-ai/ideogram/v3", {"prompt": "x"}), base)


def finding(what, **settings):
    return next(found for found in examine(Settings(**settings)) if found.what == what)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_calls_and_files_go_through_the_proxy_with_its_login(far_away, proxy, monkeypatch, variable):
    proxy.login = LOGIN
    monkeypatch.delenv("HTTPS_PROXY")
    monkeypatch.setenv(variable, proxy.url.replace("://", f"://{LOGIN_WRITTEN}@"))
    assert submitted().request_id
    picture = fetch_file(f"{FAR_AWAY}/v1/meta", private=frozenset(), deadline_s=10, max_bytes=999)
    assert asyncio.run(picture).content
    assert proxy.seen
    assert set(proxy.seen) == {"CONNECT queue.company.test:443"}
    assert far_away.stats().accepted == 1


@pytest.mark.parametrize(
    "no_proxy", ["queue.company.test", ".company.test", "other.example, company.test", "*"]
)
def test_what_no_proxy_names_goes_directly(far_away, proxy, monkeypatch, no_proxy):
    monkeypatch.setenv("NO_PROXY", no_proxy)
    with pytest.raises(fal.ConnectionFailed):  # nobody but the proxy knows the name
        submitted()
    assert proxy.seen == []


def test_no_proxy_takes_a_network_for_calls_and_for_the_store(sandbox, s3, behind_proxy, monkeypatch):
    """0.0.0.0 leads to this machine without being one of its own addresses."""
    name, far = s3.bucket(), sandbox.url.replace("127.0.0.1", "0.0.0.0")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url.replace("127.0.0.1", "0.0.0.0"))
    behind_proxy.seen.clear()
    submitted(far)
    Store.open(f"s3://{name}").put("x", b"1")
    assert len(behind_proxy.seen) == 2
    assert network.proxy_for(far)
    monkeypatch.setenv("NO_PROXY", "intranet.example, 0.0.0.0/8")
    submitted(far)
    Store.open(f"s3://{name}").put("x", b"1")
    assert len(behind_proxy.seen) == 2
    assert network.proxy_for(far) is None


@pytest.mark.parametrize(
    ("login", "refuses", "says"),
    [
        (
            LOGIN,
            0,
            r"the proxy of HTTPS_PROXY \(127.*\) wants a login \(407\)\. Write it into HTTPS_PROXY as",
        ),
        (
            "",
            403,
            r"does not let queue\.company\.test through \(403\)\. Have it allowed there, or name the host in NO_",
        ),
        ("", 503, r"does not let queue\.company\.test through \(503\)"),
    ],
)
def test_a_refusal_of_the_proxy_is_said_to_be_its_own_and_nothing_was_sent(
    far_away, proxy, login, refuses, says
):
    proxy.login, proxy.refuses = login, refuses
    with pytest.raises(fal.ConnectionFailed, match=says) as refused:
        submitted()
    assert not refused.value.may_be_billed
    assert refused.value.may_repeat == (refuses == 503)
    assert len(proxy.seen) == (6 if refuses == 503 else 1)
    assert far_away.stats().submits == 0


def test_a_login_that_a_proxy_wants_for_plain_http_is_told_apart_from_a_refused_key(behind_proxy):
    behind_proxy.login = LOGIN
    with pytest.raises(fal.ConnectionFailed, match=r"the proxy of HTTP_PROXY .* wants a login"):
        submitted("http://queue.company.test")
    assert len(behind_proxy.seen) == 1


def test_a_page_of_the_proxy_is_not_taken_for_a_key_that_fal_refuses(behind_proxy):
    behind_proxy.refuses = 403
    base = "http://queue.company.test"
    told = r"no answer of fal's own: the proxy of HTTP_PROXY .* may have given it"
    with pytest.raises(fal.Forbidden, match=told):
        on_client(lambda client: client.status(client.attach("fal-ai/ideogram/v3", "r1")), base)
    with pytest.raises(fal.SubmitUnknown):  # it may stand over an answer of fal's
        submitted(base)


def test_a_proxy_that_is_away_is_named_without_its_password(far_away, nowhere, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://ada:planted-password@{nowhere}")
    with pytest.raises(fal.ConnectionFailed, match=rf"proxy of HTTPS_PROXY \({nowhere}\) can't be") as failed:
        submitted()
    assert "planted-password" not in str(failed.value)


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"])
@pytest.mark.parametrize(
    "value", ["socks5://ada:planted@10.0.0.1:1080", "http://", "ftp://proxy:21", "proxy:port"]
)
def test_a_proxy_that_can_not_be_used_is_refused_by_its_variable(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    found = finding("fal", store="memory://")
    assert not found.ok
    assert found.says.startswith(f"{variable} is no address of an HTTP proxy.")
    assert "planted" not in found.says
    with pytest.raises(fal.InvalidCall, match=variable):
        submitted()
    with pytest.raises(ConfigurationError, match=variable):
        build_app(Settings(store="memory://", backend="fal"))


def test_this_machine_is_never_asked_for_through_a_proxy(behind_proxy, stack):
    """The sandbox, its pictures and its webhooks; `HTTP_PROXY` without `NO_PROXY` sent all of them to the proxy."""
    letters = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            letters.put(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    sandbox = stack.enter_context(running_sandbox(SandboxSettings(latency_scale=0)))
    port = sandbox.url.rpartition(":")[2]
    options = fal.SubmitOptions(webhook_url=f"http://127.0.0.1:{server.server_port}/told")

    async def work(client):
        request = await client.submit("fal-ai/ideogram/v3", {"prompt": "x"}, options)
        while not isinstance(await client.status(request), fal.Completed):
            await asyncio.sleep(0.01)
        result = await client.result(request)
        return await client.download(result.payload["images"][0]["url"], max_bytes=2**24)

    for host in ("127.0.0.1", "localhost"):
        assert on_client(work, f"http://{host}:{port}").content
        assert letters.get(timeout=20) == "/told"
    assert sandbox.stats().accepted == 2
    assert behind_proxy.seen == []


def test_a_store_on_this_machine_is_never_asked_for_through_a_proxy(behind_proxy, s3):
    name = s3.bucket()
    behind_proxy.seen.clear()
    Store.open(f"s3://{name}").put("x", b"1")
    assert behind_proxy.seen == []


@pytest.mark.parametrize("answer", [200, 403, 502])
def test_the_doctor_sees_a_proxy_that_answers_in_a_hosts_place(behind_proxy, tmp_path, monkeypatch, answer):
    behind_proxy.refuses = answer
    settings = {"backend": "fal", "fal_key": PLANTED_KEY, "store": str(tmp_path)}
    hosts = {f"fal_{name}_url": f"http://{name}.company.test" for name in ("queue", "rest", "api")}
    with fal.no_waiting():
        found = {one.what: one for one in examine(Settings(**settings, **hosts))}
    assert not found["fal"].ok
    for name in ("queue", "rest", "api"):
        host = found[f"{name} host"]
        assert not host.ok
        assert f"what answers at http://{name}.company.test is not fal" in host.says
        assert f"brings {answer} and text/html. The proxy of HTTP_PROXY (127.0.0.1:" in host.says
        assert f"Check FAL_{name.upper()}_URL" in host.says


def test_the_doctor_sees_an_address_that_is_another_servers_or_has_a_wrong_path(sandbox, tmp_path):
    settings = {
        "backend": "fal",
        "fal_key": PLANTED_KEY,
        "store": str(tmp_path),
        "fal_queue_url": sandbox.url,
    }
    wrong = {"fal_api_url": f"{sandbox.url}/no/such/path", "fal_rest_url": f"{sandbox.url}/nor/this"}
    found = {one.what: one for one in examine(Settings(**settings, **wrong))}
    assert found["fal"].ok
    assert found["queue host"].ok
    for name, path in (("api", "/no/such/path"), ("rest", "/nor/this")):
        assert not found[f"{name} host"].ok
        assert f"{path} is not fal" in found[f"{name} host"].says
        assert f"Check FAL_{name.upper()}_URL" in found[f"{name} host"].says
        assert "proxy" not in found[f"{name} host"].says


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_behind_a_proxy_pays_nothing_until_it_is_let_through(project, proxy, with_tls):
    """It wants a login, it opens TLS by an authority nobody trusts, then it lets a run through: rows are paid once."""
    project = project(rows=4)
    name = "queue.company.test"
    written = proxy.url.replace("://", f"://{LOGIN_WRITTEN}@")
    through = {"HTTPS_PROXY": written, "HTTP_PROXY": written}
    proxy.login = LOGIN

    def hosts(scheme):
        return {f"FAL_{host}_URL": f"{scheme}://{name}" for host in ("QUEUE", "REST", "API")}

    def refused(says, **environment):
        code, out = project("run", **hosts("https"), **environment)
        assert code == 3
        assert says in " ".join((out + project.output[-1]).split()), (out, project.output[-1])
        assert project.sandbox.stats().submits == 0

    proxy.names[name] = int(with_tls(project.sandbox.url).rpartition(":")[2])
    refused("wants a login (407)", HTTPS_PROXY=proxy.url)
    refused("the certificate of queue.company.test is not trusted", **through)
    # The sandbox names its files by the scheme that it sees, and here that is http.
    proxy.names[name] = int(project.sandbox.url.rpartition(":")[2])
    project.check_that_every_row_was_paid_once(project.run(**hosts("http"), **through))
    assert f"POST http://{name}/fal-ai/ideogram/v3" in proxy.seen
    assert not any("p@ss" in said or "p%40ss" in said for said in project.output)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_of_the_embedded_sandbox_leaves_the_proxy_of_the_environment_alone(project, proxy):
    project = project(rows=2)
    nowhere = {f"FAL_{host}_URL": "" for host in ("QUEUE", "REST", "API")}
    behind = {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url, "ALL_PROXY": proxy.url}
    sandbox = {**nowhere, **behind, "IDEOGRAM_BACKEND": "sandbox", "SANDBOX_LATENCY_SCALE": "0"}
    assert project.run(**sandbox)["images"] == 2
    code, out = project("doctor", **sandbox)
    assert (code, out.count("bad ")) == (0, 0), out
    assert proxy.seen == []

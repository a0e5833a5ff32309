"""Authorities of a company's own: whom fal's calls, files and stores trust, and what is said where they don't."""

import asyncio

import pytest

from ideogram_pipeline import fal
from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.fal.media import fetch_file
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.claims import prove_claims
from ideogram_pipeline.tables.sources import Sources
from tests.chaos.conftest import PLANTED_KEY

UNTRUSTED = r"the certificate of 127\.0\.0\.1 is not trusted \(.+\)\. Where the network .* set SSL_CERT_FILE"


@pytest.fixture
def sandbox(stack):
    return stack.enter_context(running_sandbox(SandboxSettings(latency_scale=0)))


def submitted(base):
    async def run():
        async with fal.FalClient(PLANTED_KEY, fal.FalHosts.at(base)) as client:
            return await client.submit("fal-ai/ideogram/v3", {"prompt": "x"})

    with fal.no_waiting():
        return asyncio.run(run())


@pytest.fixture(autouse=True)
def _repeat_briefly(monkeypatch):
    """A store is asked again for seconds, whatever is in the way."""
    monkeypatch.setattr("ideogram_pipeline.storage.remote.REPEAT_FOR_S", 0.2)


@pytest.fixture
def s3_by_tls(s3, with_tls, monkeypatch):
    """A bucket whose server has a certificate of the company's authority."""
    name = s3.bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", with_tls(s3.url))
    return f"s3://{name}/folder"


def test_a_certificate_nobody_vouches_for_is_named_with_what_mends_it_and_nothing_is_sent(sandbox, with_tls):
    with pytest.raises(fal.ConnectionFailed, match=UNTRUSTED) as failed:
        submitted(with_tls(sandbox.url))
    assert not failed.value.may_repeat
    assert sandbox.stats().submits == 0


def test_a_reference_behind_an_untrusted_certificate_is_rejected_with_what_mends_it(sandbox, with_tls):
    sources = Sources("references.csv", private_hosts=["127.0.0.1"])
    with pytest.raises(OSError, match=UNTRUSTED):
        sources.reference(f"{with_tls(sandbox.url)}/v1/meta")


def test_a_certificate_of_another_host_is_told_apart(sandbox, proxy, with_tls, authority, monkeypatch):
    proxy.names["other.example"] = int(with_tls(sandbox.url).rpartition(":")[2])
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))
    with pytest.raises(fal.ConnectionFailed, match=r"the certificate of other\.example is another host's"):
        submitted("https://other.example")


def test_ssl_cert_file_is_trusted_by_calls_files_and_the_store(
    sandbox, with_tls, authority, s3_by_tls, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))
    front = with_tls(sandbox.url)
    assert submitted(front).request_id
    here = frozenset({"127.0.0.1"})
    assert asyncio.run(fetch_file(f"{front}/v1/meta", private=here, deadline_s=10, max_bytes=999)).content
    store = Store.open(s3_by_tls)
    store.put("x", b"1")
    assert store.get("x") == b"1"


def test_ssl_cert_dir_is_trusted_by_calls_and_the_store(
    sandbox, with_tls, authority, s3_by_tls, monkeypatch, tmp_path
):
    (tmp_path / f"{authority.name_hash()}.0").write_bytes(authority.pem.read_bytes())
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert submitted(with_tls(sandbox.url)).request_id
    Store.open(s3_by_tls).put("x", b"1")


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file or directory"), (b"none", "it holds no certificates")]
)
def test_a_file_of_certificates_that_can_not_be_read_is_refused_by_its_variable(
    content, says, monkeypatch, tmp_path, s3
):
    path = tmp_path / "company.pem"
    if content is not None:
        path.write_bytes(content)
    url = f"s3://{s3.bucket()}"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(path))
    with pytest.raises(StoreError, match=rf"AWS_CA_BUNDLE.* is '{path}', which can't be used: {says}"):
        Store.open(url)
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(StoreError, match=rf"SSL_CERT_FILE is '{path}', which can't be used: {says}"):
        Store.open(url)
    with pytest.raises(fal.InvalidCall, match=f"SSL_CERT_FILE is '{path}'"):
        submitted("http://127.0.0.1:1")


def test_a_bucket_of_a_private_authority_is_trusted_by_aws_ca_bundle_as_boto3_does(
    s3_by_tls, authority, monkeypatch, tmp_path
):
    with pytest.raises(
        StoreError, match=UNTRUSTED.replace("SSL_CERT_FILE", r"SSL_CERT_FILE \(or AWS_CA_BUNDLE")
    ):
        Store.open(s3_by_tls).get("x")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.pem))
    store = Store.open(s3_by_tls)
    store.put("x", b"1")
    assert store.get("x") == b"1"
    monkeypatch.delenv("AWS_CA_BUNDLE")
    config = tmp_path / "config"
    config.write_text(f"[default]\nca_bundle = {authority.pem}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    assert Store.open(s3_by_tls).get("x") == b"1"


def test_fal_is_given_no_address_of_a_server_that_perhaps_only_this_machine_trusts(
    s3, s3_by_tls, authority, monkeypatch
):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.pem))
    store = Store.open(s3_by_tls)
    store.put("x", b"1")
    assert asyncio.run(store.presigned("x", lasting_s=60)) is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)  # without TLS there is nothing to trust
    assert asyncio.run(Store.open(s3_by_tls).presigned("x", lasting_s=60))


@pytest.mark.parametrize(
    ("login", "refuses", "says"),
    [
        ("ada:word", 0, r"the proxy of HTTPS_PROXY \(127.*\) wants a login \(407\)"),
        ("", 403, r"the proxy of HTTPS_PROXY \(127.*\) does not let bucket-\d+\.company\.test through"),
        ("", 0, None),
    ],
)
def test_a_bucket_behind_a_proxy(s3, proxy, authority, with_tls, monkeypatch, login, refuses, says):
    name = s3.bucket()
    host = f"{name}.company.test"  # moto takes the first part of a name for the bucket
    proxy.names[host] = int(with_tls(s3.url).rpartition(":")[2])
    proxy.login, proxy.refuses = login, refuses
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{host}")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.pem))
    store = Store.open(f"s3://{name}")
    if says:
        with pytest.raises(StoreError, match=says):
            store.get("x")
    else:
        store.put("x", b"1")
    assert set(proxy.seen) == {f"CONNECT {host}:443"}


def test_a_page_of_a_proxy_is_not_taken_for_a_stores_refusal(s3, proxy, monkeypatch):
    proxy.refuses = 403
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.company.test")
    with pytest.raises(
        StoreError, match=r"the proxy of HTTP_PROXY .* does not let s3\.company\.test through \(403\)"
    ):
        Store.open("s3://bucket").get("x")


def test_credentials_that_a_proxy_or_a_certificate_keeps_away_are_said_to_be_so(
    with_tls, sandbox, monkeypatch, s3, tmp_path
):
    """Roles are assumed by asking Amazon's token service, which botocore does on its own."""
    token = tmp_path / "token"
    token.write_text("a-token")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/pictures")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", with_tls(sandbox.url))
    with pytest.raises(
        StoreError, match=r"the certificate of .* is not trusted .* SSL_CERT_FILE or AWS_CA_BUNDLE"
    ):
        Store.open("s3://bucket").get("x")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_run_on_a_bucket_of_a_private_authority(project, seaweedfs, authority, with_tls, monkeypatch):
    """A real S3 server behind TLS that only `AWS_CA_BUNDLE` vouches for, on a machine whose proxy nothing may touch."""
    name = seaweedfs.bucket()
    for variable, value in seaweedfs.environment(with_tls(seaweedfs.url)).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.pem))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    url = f"s3://{name}/store"
    prove_claims(Store.open(url))
    project = project(rows=4)
    summary = project.run(IDEOGRAM_STORE=url)
    assert (summary["images"], project.sandbox.stats().accepted) == (4, 4)
    assert project.run(IDEOGRAM_STORE=url)["reused"] == 4


@pytest.mark.slow
def test_a_container_of_a_private_authority_is_trusted_by_ssl_cert_file(
    azurite, with_tls, authority, monkeypatch
):
    name, front = azurite.container(), with_tls(azurite.url)
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.connection_string(front))
    with pytest.raises(StoreError, match=UNTRUSTED):
        Store.open(f"az://{name}").get("x")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.pem))
    store = Store.open(f"az://{name}")
    store.put("x", b"1")
    assert store.get("x") == b"1"

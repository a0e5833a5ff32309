"""The owner/app rule, and which URLs are talked to."""

import pytest
from fal_client.client import AppId
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.fal import FalHosts, InvalidCall, UnsafeUrl
from ideogram_pipeline.fal.urls import PUBLIC_FAL, app_path, is_public, normal_endpoint, shown


@pytest.mark.parametrize(
    ("endpoint_id", "path"),
    [
        ("fal-ai/ideogram", "fal-ai/ideogram"),
        ("fal-ai/ideogram/character", "fal-ai/ideogram"),
        ("fal-ai/ideogram/character/edit", "fal-ai/ideogram"),
        ("workflows/me/flow", "workflows/me/flow"),
        ("workflows/me/flow/step", "workflows/me/flow"),
        ("comfy/me/graph/a/b", "comfy/me/graph"),
        ("12345-app", "12345/app"),
        ("12345-my-app", "12345/my-app"),
    ],
)
def test_a_requests_urls_use_owner_and_app_only(endpoint_id, path):
    assert app_path(endpoint_id) == path


@pytest.mark.parametrize(
    "endpoint_id",
    ["", "app", "my-app", "/", "a/", "/a", "a//b", "a/../b", "a/.", "workflows/me", "12345-", "a/b\nc"],
)
def test_what_is_no_endpoint_id_is_refused(endpoint_id):
    with pytest.raises(InvalidCall):
        app_path(endpoint_id)


@given(st.from_regex(r"(workflows/|comfy/|[0-9]{1,3}-)?[a-z-]{1,5}(/[a-z0-9.-]{1,5}){0,3}", fullmatch=True))
def test_the_rule_is_the_official_clients(endpoint_id):
    try:
        theirs = AppId.from_endpoint_id(endpoint_id)
    except (ValueError, IndexError):
        with pytest.raises(InvalidCall):
            app_path(endpoint_id)
        return
    expected = "/".join(part for part in (theirs.namespace, theirs.owner, theirs.alias) if part)
    if not {".", ".."} & set(endpoint_id.split("/")):
        assert app_path(endpoint_id) == expected


@given(st.text(max_size=40))
def test_an_endpoint_id_is_a_harmless_path_or_refused(endpoint_id):
    try:
        path = normal_endpoint(endpoint_id)
    except InvalidCall:
        return
    assert path.isascii()
    assert not set(path) & set('?# \\"<>')
    assert not set(path.split("/")) & {"", ".", ".."}


@pytest.mark.parametrize(
    ("url", "takes"),
    [
        ("https://queue.fal.run/x", True),
        ("https://QUEUE.fal.run:443/x", True),
        ("https://queue.falrun.com/x", True),
        ("https://rest.fal.ai/x", True),
        ("https://api.fal.ai/v1", True),
        ("http://queue.fal.run/x", False),
        ("https://queue.fal.run:8443/x", False),
        ("https://queue.fal.run.evil.example/x", False),
        ("https://queue.fal.run@evil.example/x", False),
        ("https://user:password@queue.fal.run/x", False),
        ("https://v3.fal.media/x", False),
        ("//queue.fal.run/x", False),
        ("", False),
        ("https://queue.fal.run\x00/", False),
    ],
)
def test_the_key_goes_to_fal_alone(url, takes):
    assert PUBLIC_FAL.takes_key(url) is takes


@pytest.mark.parametrize(
    "url",
    [
        "http://v3.fal.media/x.png",
        "https://127.0.0.1/x",
        "https://10.1.2.3/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://[::ffff:10.0.0.1]/x",
        "https://[fe80::1]/x",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "https://",
        "x.png",
    ],
)
def test_files_come_from_public_https_only(url):
    with pytest.raises(UnsafeUrl):
        PUBLIC_FAL.check_media(url)


@pytest.mark.parametrize(
    "url", ["https://v3.fal.media/x.png", "https://8.8.8.8/x", "https://example.com:8443/x?y"]
)
def test_public_https_is_welcome(url):
    PUBLIC_FAL.check_media(url)


def test_configured_hosts_are_welcome_on_their_own_port():
    hosts = FalHosts.at("http://127.0.0.1:9000/")
    assert hosts.queue == "http://127.0.0.1:9000"
    hosts.check_media("http://127.0.0.1:9000/files/x.png")
    with pytest.raises(UnsafeUrl):
        hosts.check_media("http://127.0.0.1:9001/files/x.png")


@pytest.mark.parametrize(
    "url", ["https://intranet.example:8443/x", "http://10.0.0.5/x", "https://[fd00::5]/x"]
)
def test_private_hosts_that_are_named_are_welcome(url):
    hosts = FalHosts(private=frozenset({"intranet.example", "10.0.0.5", "fd00::5"}))
    assert hosts.private < hosts.names
    hosts.check_media(url)
    assert not hosts.takes_key(url)
    with pytest.raises(UnsafeUrl):
        hosts.check_media("http://10.0.0.6/x")


def test_hosts_that_are_not_fals_have_no_backup_at_fal():
    assert FalHosts(queue="https://fal.internal").backup_queue is None
    assert FalHosts().backup_queue == "https://queue.falrun.com"


@pytest.mark.parametrize("base", ["", "127.0.0.1:9000", "ftp://x", "https://user:password@x"])
def test_a_base_url_that_is_none_is_refused_at_once(base):
    with pytest.raises(UnsafeUrl):
        FalHosts.at(base)


@pytest.mark.parametrize(
    "address", ["0.0.0.0", "100.64.0.1", "192.168.0.1", "224.0.0.1", "fd00::1", "::", "::1"]
)
def test_special_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("prefix", ["::", "::ffff:", "64:ff9b::", "64:ff9b:1::"])
def test_an_address_that_leads_to_an_ipv4_one_is_as_public_as_that(prefix):
    for private in ("127.0.0.1", "10.0.0.5", "169.254.169.254"):
        assert not is_public(f"{prefix}{private}")
    assert is_public(f"{prefix}93.184.216.34")
    assert not is_public("2002:a00:5::1")  # 6to4 of 10.0.0.5
    assert is_public("2002:5db8:d822::1")


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://s3/x.png?X-Amz-Signature=1", "https://s3/x.png"),
        ("https://u:p@s3/x.png", "(URL not shown)"),
        ("data:image/png;base64,AAAA", "(URL not shown)"),
    ],
)
def test_messages_show_no_signature_and_no_password(url, text):
    assert shown(url) == text

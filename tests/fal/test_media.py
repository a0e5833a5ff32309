"""Downloads: whole or not at all, from public places only, never with the key."""

import asyncio
import base64
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline import fal
from ideogram_pipeline.fal.media import decode_data_uri

PICTURE = os.urandom(100_000)


def download(url, max_bytes=2**20):
    return lambda client: client.download(url, max_bytes=max_bytes)


def test_a_file_comes_whole_with_its_type_and_the_key_stays_here(fake, ask):
    fake.replies(fake.reply(200, PICTURE, {"Content-Type": "image/PNG; charset=x"}))
    assert ask(download(f"{fake.url}/files/x.png?sig=a%2Fb")) == fal.Downloaded(PICTURE, "image/png")
    (seen,) = fake.seen
    assert "authorization" not in seen.headers
    assert fake.key not in str(seen)


def test_the_clients_own_log_shows_no_signature(fake, ask, caplog):
    fake.replies(fake.reply(200, PICTURE))
    with caplog.at_level("INFO", "httpx2"):  # as Celery's workers have it
        ask(download(f"{fake.url}/files/x.png?sig=5ecre7"))
    assert "/files/x.png " in caplog.text
    assert "5ecre7" not in caplog.text


def test_a_short_body_is_fetched_again(fake, ask):
    short = fake.reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + PICTURE[:5000])
    fake.replies(short, short, fake.reply(200, PICTURE))
    assert ask(download(fake.url)).content == PICTURE


@pytest.mark.parametrize(
    "fault",
    [
        {"raw": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"},
        {"raw": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"},
        {"drop": True},
        {"status": 503, "body": b""},
        {"status": 429, "body": b""},
    ],
    ids=["short body", "cut chunks", "dropped", "503", "429"],
)
def test_a_file_that_never_comes_whole_is_an_error(fake, ask, fault):
    fake.replies(fake.reply(**fault))
    with pytest.raises(fal.NoAnswer):
        ask(download(fake.url))
    assert len(fake.seen) >= 6  # aiohttp itself asks once more where the connection is dropped


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204, 304])
def test_a_file_that_is_not_there_is_not_asked_for_again(fake, ask, status):
    fake.replies(fake.reply(raw=f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()))
    with pytest.raises(fal.MediaUnavailable) as caught:
        ask(download(fake.url))
    assert caught.value.status == status
    assert len(fake.seen) == 1


@pytest.mark.parametrize("chunked", [False, True])
def test_a_file_larger_than_the_limit_is_left(fake, ask, chunked):
    framed = b"186a0\r\n" + PICTURE + b"\r\n0\r\n\r\n" if chunked else PICTURE
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 100000"
    fake.replies(fake.reply(raw=b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n" + framed))
    with pytest.raises(fal.MediaUnavailable, match="larger than 99999 bytes"):
        ask(download(fake.url, 99_999))
    assert ask(download(fake.url, 100_000)).content == PICTURE


def redirect(fake, location):
    return fake.reply(302, b"", {"Location": location})


@pytest.mark.parametrize("location", ["/there", "there", "{url}/there"])
def test_redirects_are_followed(fake, ask, location):
    fake.script = lambda seen: (
        fake.reply(200, PICTURE) if seen.path == "/there" else redirect(fake, location.format(url=fake.url))
    )
    assert ask(download(f"{fake.url}/here")).content == PICTURE
    assert not any("authorization" in seen.headers for seen in fake.seen)


def test_a_redirect_into_a_private_network_is_refused(fake, other, ask):
    for location in (
        other.url,
        "https://10.0.0.1/x",
        "https://localhost/x",
        "http://example.com/x",
        "file:///etc/passwd",
        "https://x:port/",
    ):
        fake.replies(redirect(fake, location))
        with pytest.raises(fal.UnsafeUrl):
            ask(download(fake.url))
    assert other.seen == []


def test_redirects_have_an_end(fake, ask):
    fake.replies(redirect(fake, "/again"))
    with pytest.raises(fal.UnsafeUrl):
        ask(download(fake.url))
    assert len(fake.seen) == 6


def test_a_name_that_resolves_to_a_private_address_is_refused_without_a_connection(other, ask):
    with pytest.raises(fal.UnsafeUrl):
        ask(download(f"https://localhost:{other.port}/x"))
    assert other.seen == []


@pytest.mark.parametrize("host", ["a" * 300, "a..b"])
def test_a_host_that_no_name_server_can_be_asked_for_is_a_failed_connection(ask, host):
    with pytest.raises(fal.ConnectionFailed):
        ask(download(f"https://{host}/x"))


def test_a_configured_media_host_is_fetched_from_and_gets_no_key(fake, other, connect):
    other.replies(other.reply(200, PICTURE))
    hosts = fal.FalHosts(
        queue=fake.url, rest=fake.url, api=fake.url, media=(f"http://localhost:{other.port}",)
    )
    assert connect(hosts)(download(f"http://localhost:{other.port}/x")).content == PICTURE
    assert "authorization" not in other.seen[0].headers


def test_a_data_uri_is_read_in_place(fake, ask):
    uri = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    assert ask(download(uri)) == fal.Downloaded(PICTURE, "image/png")
    with pytest.raises(fal.MediaUnavailable):
        ask(download(uri, 10))
    assert fake.seen == []


@given(st.binary(max_size=200))
def test_data_uris_give_back_what_was_put_in(content):
    encoded = base64.b64encode(content).decode()
    assert decode_data_uri(f"data:;base64,{encoded}") == fal.Downloaded(content, None)
    quoted = "".join(f"%{byte:02x}" for byte in content)
    assert decode_data_uri(f"data:Text/Plain;charset=utf-8,{quoted}") == fal.Downloaded(content, "text/plain")


@pytest.mark.parametrize("uri", ["data:", "data:image/png;base64", "data:image/png;base64,%%%", "https://x"])
def test_a_malformed_data_uri_is_refused(uri):
    with pytest.raises(fal.InvalidCall):
        decode_data_uri(uri)


def test_many_downloads_share_a_small_pool(fake, ask):
    fake.replies(fake.reply(200, PICTURE))

    async def call(client):
        return await asyncio.gather(
            *(client.download(f"{fake.url}/{n}", max_bytes=2**20) for n in range(120))
        )

    assert all(one.content == PICTURE for one in ask(call))

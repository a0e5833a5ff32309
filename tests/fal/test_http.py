"""The way of a request: proxies, cookies, deadlines."""

import pytest

from ideogram_pipeline import fal

STATUS = {"status": "COMPLETED"}


def status(client):
    return client.status(client.attach("fal-ai/ideogram/v3", "r1"))


def test_a_proxy_of_the_environment_is_used_for_calls_and_for_files(fake, connect, monkeypatch):
    monkeypatch.setenv("http_proxy", fake.url)
    call = connect(fal.FalHosts.at("http://fal.invalid"))
    fake.replies(fake.reply(200, STATUS))
    assert call(status) == fal.Completed()
    assert (
        call(lambda client: client.download("http://fal.invalid/x", max_bytes=99)).content
        == b'{"status": "COMPLETED"}'
    )
    assert [seen.target for seen in fake.seen] == [
        "http://fal.invalid/fal-ai/ideogram/requests/r1/status",
        "http://fal.invalid/x",
    ]


def test_a_submit_through_a_dead_proxy_was_not_sent(connect, dead_url, monkeypatch):
    monkeypatch.setenv("http_proxy", dead_url)
    with pytest.raises(fal.ConnectionFailed):
        connect(fal.FalHosts.at("http://fal.invalid"))(lambda client: client.submit("a/b", {}))


def test_a_name_that_does_not_resolve_was_not_asked(connect):
    with pytest.raises(fal.ConnectionFailed):
        connect(fal.FalHosts.at("http://fal.invalid"))(lambda client: client.submit("a/b", {}))


def test_cookies_are_not_kept(fake, ask):
    fake.replies(fake.reply(200, STATUS, {"Set-Cookie": "a=b; Path=/"}))

    async def twice(client):
        await status(client)
        await status(client)

    ask(twice)
    assert not any("cookie" in seen.headers for seen in fake.seen)


def test_an_answer_too_large_for_memory_is_left(fake, ask, monkeypatch):
    monkeypatch.setattr("ideogram_pipeline.fal.http.MAX_ANSWER_BYTES", 10)
    fake.replies(fake.reply(200, STATUS))
    with pytest.raises(fal.NoAnswer, match="larger than 10 bytes"):
        ask(status)
    assert len(fake.seen) == 1

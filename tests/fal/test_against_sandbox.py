"""The client and the project's own stand-in for fal, together."""

from datetime import UTC, datetime, timedelta

import pytest

from ideogram_pipeline import fal
from ideogram_pipeline.fal import files
from ideogram_pipeline.sandbox.server import running_sandbox

ENDPOINT = "fal-ai/ideogram/v3"


@pytest.fixture(scope="module")
def sandbox():
    with running_sandbox() as running:
        yield running


@pytest.fixture
def ask(sandbox, connect):
    return connect(fal.FalHosts.at(sandbox.url))


def test_a_picture_is_made_and_fetched(ask):
    updates = []

    async def call(client):
        arguments = {"prompt": "a lighthouse", "seed": 7}
        result = await client.subscribe(ENDPOINT, arguments, on_update=updates.append, logs=True)
        return await client.download(result.payload["images"][0]["url"], max_bytes=2**24)

    picture = ask(call)
    assert picture.content_type == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    assert isinstance(updates[-1], fal.Completed)


def test_the_stream_reaches_completion(ask):
    async def call(client):
        request = await client.submit(ENDPOINT, {"prompt": "a lighthouse"})
        return [status async for status in client.stream(request)]

    assert isinstance(ask(call)[-1], fal.Completed)


def test_a_refused_input_shows_with_the_result(ask):
    with pytest.raises(fal.ModelRefused) as caught:
        ask(lambda client: client.subscribe(ENDPOINT, {"prompt": 7}))
    assert caught.value.details[0].location == ("body", "prompt")


@pytest.mark.parametrize("via", ["presigned", "cdn"])
@pytest.mark.parametrize("size", [1000, 40_000])
def test_what_is_uploaded_comes_back(ask, monkeypatch, via, size):
    monkeypatch.setattr(files, "PART_BYTES", 10_000)
    monkeypatch.setattr(files, "MULTIPART_ABOVE_BYTES", 20_000)
    content = bytes(range(250)) * (size // 250)

    async def call(client):
        uploaded = await client.upload(content, content_type="image/png", via=via)
        return await client.download(uploaded.url, max_bytes=size)

    assert ask(call) == fal.Downloaded(content, "image/png")


def test_a_lost_submit_is_found_again_by_its_input(ask):
    arguments = {"prompt": "found again", "seed": 99}
    now = datetime.now(UTC)

    async def call(client):
        await client.subscribe(ENDPOINT, arguments)
        return await client.requests_by_endpoint(
            ENDPOINT, start=now - timedelta(minutes=2), end=now + timedelta(minutes=2), with_payloads=True
        )

    assert [one.json_input for one in ask(call).items].count(arguments) == 1


def test_unknown_requests_and_finished_ones_can_not_be_cancelled(ask):
    async def call(client):
        unknown = client.attach(ENDPOINT, "00000000-0000-4000-8000-000000000000")
        finished = await client.submit(ENDPOINT, {"prompt": "x"})
        async for _ in client.stream(finished):
            pass
        return await client.cancel(unknown), await client.cancel(finished)

    assert ask(call) == (fal.CancelAnswer.NOT_FOUND, fal.CancelAnswer.ALREADY_COMPLETED)


def test_prices_are_told(ask):
    assert ask(lambda client: client.pricing([ENDPOINT]))[0].endpoint_id == ENDPOINT

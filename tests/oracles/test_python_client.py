"""fal's own client for Python (``fal-client`` from PyPI) cannot tell the sandbox from fal."""

import asyncio
import io
import json
from pathlib import Path

import fal_client
import fal_client.client
import httpx2
import pytest
from PIL import Image

from ideogram_pipeline.ideogram import ENDPOINTS_BY_ID

V3 = "fal-ai/ideogram/v3"
CHARACTER = "fal-ai/ideogram/character"
INPUTS = json.loads(Path(__file__).with_name("inputs.json").read_text())

each_endpoint = pytest.mark.parametrize("endpoint", ENDPOINTS_BY_ID)


@pytest.fixture(autouse=True)
def _elsewhere(shared, monkeypatch):
    """Where the client believes fal to be: its hosts can be set from outside, its https:// cannot."""
    monkeypatch.setattr(fal_client.client, "QUEUE_URL_FORMAT", f"{shared.url}/")
    monkeypatch.setattr(fal_client.client, "REST_URL", shared.url)
    monkeypatch.setattr(fal_client.client, "CDN_URL", shared.url)


@pytest.fixture
def client():
    """The client as a user makes it, with the key in the environment."""
    return fal_client.SyncClient()


@pytest.fixture
def minimal_input(client, pictures):
    """Gives an endpoint's smallest input, its pictures uploaded by the client."""

    def filled(value):
        if isinstance(value, list):
            return [filled(one) for one in value]
        return client.upload_file(pictures / value) if value.endswith(".png") else value

    return lambda endpoint: {name: filled(value) for name, value in INPUTS[endpoint].items()}


def fetch(url):
    return httpx2.get(url, verify=False).raise_for_status().content


@each_endpoint
def test_subscribe_with_logs_ends_with_pictures(sandbox, client, minimal_input, endpoint):
    running, told, ids = sandbox(), [], []
    result = client.subscribe(
        endpoint,
        {**minimal_input(endpoint), "seed": 9},
        with_logs=True,
        on_enqueue=ids.append,
        on_queue_update=told.append,
    )
    assert result["seed"] == 9
    with Image.open(io.BytesIO(fetch(result["images"][0]["url"]))) as picture:
        assert picture.format == "PNG"
    assert isinstance(told[-1], fal_client.Completed)
    assert [line["message"] for line in told[-1].logs] == ["Rendering at BALANCED", "Done"]
    assert ids == [one.request_id for one in running.requests()]
    stats = running.stats()
    assert (stats.accepted, stats.duplicates, stats.surplus_fields) == (1, 0, {})


@each_endpoint
def test_a_request_can_be_followed_by_its_id_alone(sandbox, client, minimal_input, endpoint):
    sandbox()
    request_id = client.submit(endpoint, minimal_input(endpoint)).request_id
    assert isinstance(client.status(endpoint, request_id), fal_client.Completed)
    assert len(client.result(endpoint, request_id)["images"]) == 1


@each_endpoint
def test_what_runs_and_what_waits_can_be_cancelled(sandbox, client, minimal_input, endpoint):
    running, arguments = sandbox(concurrency=1, faults="stuck"), minimal_input(endpoint)
    runs, waits = (client.submit(endpoint, {**arguments, "seed": seed}).request_id for seed in (1, 2))
    assert isinstance(client.status(endpoint, runs), fal_client.InProgress)
    assert client.status(endpoint, waits) == fal_client.Queued(position=0)
    for request_id in (waits, runs):
        client.cancel(endpoint, request_id)
        with pytest.raises(fal_client.FalClientHTTPError) as caught:
            client.result(endpoint, request_id)
        assert (caught.value.status_code, caught.value.error_type) == (499, "client_cancelled")
    stats = running.stats()
    assert (stats.accepted, stats.duplicates, stats.failed, stats.cancels) == (2, 0, 2, 2)


def test_an_asynchronous_client_is_served_as_well(sandbox, pictures):
    running, told = sandbox(), []

    async def generate():
        client = fal_client.AsyncClient()
        url = await client.upload_file(pictures / "person.png")
        arguments = {"prompt": "x", "reference_image_urls": [url]}
        handle = await client.submit(CHARACTER, arguments)
        result = await client.subscribe(
            CHARACTER, {**arguments, "seed": 2}, with_logs=True, on_queue_update=told.append
        )
        return [await handle.get(), result]

    assert [len(result["images"]) for result in asyncio.run(generate())] == [1, 1]
    assert isinstance(told[-1], fal_client.Completed)
    assert running.stats().accepted == 2


@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_uploads_go_both_ways_of_the_client(sandbox, client, pictures, repository):
    running, file = sandbox(), pictures / "person.png"
    named = client.upload_file(file, repository=repository)
    unnamed = client.upload(file.read_bytes(), "image/png", repository=repository)
    assert named.endswith("person.png")
    assert [fetch(url) for url in (named, unnamed)] == [file.read_bytes()] * 2
    assert running.stats().uploads == 2


def test_an_upload_in_parts_arrives_whole(sandbox, client, tmp_path, monkeypatch):
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", 1000)
    monkeypatch.setattr(fal_client.client, "MULTIPART_CHUNK_SIZE", 700)
    sandbox()
    file = tmp_path / "face.bin"
    file.write_bytes(bytes(range(256)) * 20)
    assert fetch(client.upload_file(file)) == file.read_bytes()


def test_an_invalid_input_raises_what_fal_would_raise(sandbox, client):
    sandbox()
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.subscribe(CHARACTER, {"prompt": "x"})
    assert caught.value.status_code == 422


def test_another_key_is_refused(sandbox):
    running = sandbox()
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        fal_client.SyncClient(key="another:key").submit(V3, {"prompt": "x"})
    assert (caught.value.status_code, running.stats().accepted) == (401, 0)


def test_a_webhook_is_told_what_the_result_says(sandbox, client, receiver):
    sandbox()
    handle = client.submit(V3, {"prompt": "x"}, webhook_url=receiver.url)
    letter = receiver.next()
    assert (letter["request_id"], letter["status"]) == (handle.request_id, "OK")
    assert letter["payload"] == handle.get()


def test_the_client_s_own_retries_are_counted_as_duplicates(sandbox, client):
    running = sandbox(faults="drop_after_accept")
    client.submit(V3, {"prompt": "x"})
    assert (running.stats().accepted, running.stats().duplicates) == (2, 1)

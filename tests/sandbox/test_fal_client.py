"""fal's own client cannot tell the sandbox from fal."""

import asyncio
import io

import fal_client
import fal_client.client
import pytest
from PIL import Image

V3 = "fal-ai/ideogram/v3"
CHARACTER = "fal-ai/ideogram/character"


@pytest.fixture
def sandbox(call, monkeypatch):
    """A sandbox where fal's client believes fal to be: its hosts can be set, its https:// cannot."""

    def start(**settings):
        caller = call(**settings)
        monkeypatch.setattr(fal_client.client, "QUEUE_URL_FORMAT", f"{caller.sandbox.url}/")
        monkeypatch.setattr(fal_client.client, "REST_URL", caller.sandbox.url)
        monkeypatch.setattr(fal_client.client, "CDN_URL", caller.sandbox.url)
        return caller

    return start


def client():
    return fal_client.SyncClient(key="an-id:a-secret")


def test_subscribe_with_logs_ends_with_pictures(sandbox):
    caller, told, ids = sandbox(latency_scale=0.3), [], []
    result = client().subscribe(
        V3, {"prompt": "x", "seed": 9}, with_logs=True, on_enqueue=ids.append, on_queue_update=told.append
    )
    assert (result["seed"], len(ids)) == (9, 1)
    assert isinstance(told[-1], fal_client.Completed)
    assert [line["message"] for line in told[-1].logs] == ["Rendering at BALANCED", "Done"]
    assert Image.open(io.BytesIO(caller.fetch(result["images"][0]["url"]))).size == (1024, 1024)


def test_a_request_can_be_followed_by_its_id_alone(sandbox):
    sandbox(concurrency=1, faults="stuck")
    running, waiting = (client().submit(V3, {"prompt": prompt}) for prompt in ("runs", "waits"))
    assert isinstance(client().status(V3, running.request_id), fal_client.InProgress)
    assert client().status(V3, waiting.request_id) == fal_client.Queued(position=0)
    client().cancel(V3, waiting.request_id)
    client().cancel(V3, running.request_id)
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client().result(V3, running.request_id)
    assert (caught.value.status_code, caught.value.error_type) == (499, "client_cancelled")


def test_an_asynchronous_client_is_served_as_well(sandbox):
    sandbox()

    async def generate():
        return await fal_client.AsyncClient(key="an-id:a-secret").subscribe(V3, {"prompt": "x"})

    assert len(asyncio.run(generate())["images"]) == 1


@pytest.mark.parametrize("repository", ["fal_v3", "fal"])
def test_uploads_go_both_ways_of_the_client(sandbox, portrait, repository):
    caller = sandbox()
    url = client().upload(portrait, "image/png", "face.png", repository=repository)
    assert caller.fetch(url) == portrait
    result = client().subscribe(CHARACTER, {"prompt": "x", "reference_image_urls": [url]})
    assert len(result["images"]) == 1


def test_an_upload_in_parts_arrives_whole(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr(fal_client.client, "MULTIPART_THRESHOLD", 1000)
    monkeypatch.setattr(fal_client.client, "MULTIPART_CHUNK_SIZE", 700)
    caller, file = sandbox(), tmp_path / "face.bin"
    file.write_bytes(bytes(range(256)) * 20)
    assert caller.fetch(client().upload_file(file)) == file.read_bytes()


def test_an_invalid_input_raises_what_fal_would_raise(sandbox):
    sandbox()
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client().subscribe(CHARACTER, {"prompt": "x"})
    assert caught.value.status_code == 422


def test_the_client_s_own_retries_are_counted_as_duplicates(sandbox):
    caller = sandbox(faults="drop_after_accept")
    client().submit(V3, {"prompt": "x"})
    assert (caller.sandbox.stats().accepted, caller.sandbox.stats().duplicates) == (2, 1)

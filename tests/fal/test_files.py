"""Uploads by both routes, in one piece and in parts."""

import hashlib
import io
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from ideogram_pipeline import fal
from ideogram_pipeline.fal import files

BIG = os.urandom(95_000)


TOKEN = {
    "token": "T",
    "token_type": "Bearer",
    "base_url": "https://v3.fal.media",
    "expires_at": "2026-11-22T12:00:00",
}


class Storage:
    """fal's storage: presigned and CDN uploads, whole and in parts; a part may be told to fail a few times."""

    def __init__(self, fake, failing=(), token_lifetime=timedelta(hours=1)):
        self.token_lifetime = token_lifetime
        self.fake, self.failing = fake, list(failing)
        self.parts: dict[int, bytes] = {}
        self.whole: bytes | None = None
        self.completed = None
        self.tokens = 0
        fake.script = self

    def __call__(self, seen):
        reply, url = self.fake.reply, self.fake.url
        parts = seen.path.split("/")
        if seen.path == "/storage/auth/token":
            self.tokens += 1
            soon = (datetime.now(UTC) + self.token_lifetime).isoformat()
            return reply(200, {"token": "T", "token_type": "Bearer", "base_url": url, "expires_at": soon})
        if seen.path.startswith("/storage/upload/initiate"):
            return reply(
                200, {"upload_url": f"{url}/put/x?sig=1", "file_url": "https://v3.fal.media/files/x"}
            )
        if seen.path == "/files/upload/multipart":
            return reply(200, {"access_url": f"{url}/files/x", "uploadId": "u1"})
        if parts[-1] == "complete":
            self.completed = seen.json()
            return reply(200, {})
        if seen.method == "PUT" and parts[-1].isdecimal():
            part = int(parts[-1])
            if part in self.failing:
                self.failing.remove(part)
                return reply(drop=True) if part % 2 else reply(500, b"oops")
            self.parts[part] = seen.body
            etag = hashlib.md5(seen.body).hexdigest()
            in_body = seen.path.startswith("/put")
            return (
                reply(200, {"partNumber": part, "etag": etag}) if in_body else reply(200, b"", {"ETag": etag})
            )
        self.whole = seen.body
        return reply(200, {"access_url": f"{url}/files/x"})

    def joined(self):
        numbers = [part["partNumber"] for part in self.completed["parts"]]
        assert numbers == sorted(self.parts)
        assert all(
            hashlib.md5(self.parts[p["partNumber"]]).hexdigest() == p["etag"] for p in self.completed["parts"]
        )
        return b"".join(self.parts[number] for number in numbers)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(files, "PART_BYTES", 10_000)
    monkeypatch.setattr(files, "MULTIPART_ABOVE_BYTES", 90_000)


def test_a_presigned_upload_sends_the_bytes_without_the_key(fake, ask):
    storage = Storage(fake)
    uploaded = ask(lambda client: client.upload(b"bytes", content_type="image/png", file_name="a.png"))
    assert uploaded == fal.Uploaded("https://v3.fal.media/files/x", None)
    initiate, put = fake.seen
    assert initiate.target == "/storage/upload/initiate?storage_type=fal-cdn-v3"
    assert initiate.json() == {"content_type": "image/png", "file_name": "a.png"}
    assert initiate.headers["authorization"] == f"Key {fake.key}"
    assert (put.target, put.headers["content-type"]) == ("/put/x?sig=1", "image/png")
    assert "authorization" not in put.headers
    assert storage.whole == b"bytes"


def test_a_cdn_upload_sends_the_token_and_not_the_key_and_reuses_it(fake, ask):
    storage = Storage(fake)

    async def twice(client):
        await client.upload(b"one", via="cdn")
        return await client.upload(b"two", via="cdn", file_name="two.bin")

    assert ask(twice).url == f"{fake.url}/files/x"
    assert storage.tokens == 1
    assert storage.whole == b"two"
    assert fake.seen[-1].headers["authorization"] == "Bearer T"
    assert fake.seen[-1].headers["x-fal-file-name"] == "two.bin"


def test_a_token_about_to_expire_is_not_used_again(fake, ask):
    storage = Storage(fake, token_lifetime=timedelta(seconds=50))

    async def twice(client):
        await client.upload(b"one", via="cdn")
        await client.upload(b"two", via="cdn")

    ask(twice)
    assert storage.tokens == 2


def test_a_file_that_vanishes_before_it_is_read_is_our_error(fake, ask, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"jpeg")
    storage = Storage(fake)

    def vanishing(seen):
        path.unlink(missing_ok=True)
        return storage(seen)

    fake.script = vanishing
    with pytest.raises(fal.InvalidCall, match=r"photo\.jpg"):
        ask(lambda client: client.upload(path))


@pytest.mark.parametrize("via", ["presigned", "cdn"])
@pytest.mark.parametrize("as_file", [False, True], ids=["bytes", "file"])
def test_a_large_file_goes_up_in_parts_and_each_failing_part_alone_again(
    fake, ask, tmp_path, small_parts, via, as_file
):
    storage = Storage(fake, failing=[2, 3, 3, 10])
    path = tmp_path / "big.bin"
    path.write_bytes(BIG)
    ask(lambda client: client.upload(path if as_file else BIG, via=via))
    assert storage.joined() == BIG
    assert len(storage.parts) == 10
    assert fake.count("PUT") == 14
    carrying = {seen.headers.get("authorization") for seen in fake.seen if seen.method == "PUT"}
    assert carrying == ({None} if via == "presigned" else {"Bearer T"})


def test_a_part_that_never_arrives_fails_the_upload_with_our_error(fake, ask, small_parts):
    storage = Storage(fake, failing=[4] * 99)
    with pytest.raises(fal.FalError):
        ask(lambda client: client.upload(BIG))
    assert storage.completed is None


@pytest.mark.parametrize("via", ["presigned", "cdn"])
def test_a_lifetime_is_asked_for_and_told(fake, ask, via):
    Storage(fake)
    before = datetime.now(UTC)
    uploaded = ask(lambda client: client.upload(b"x", lifetime_s=3600, via=via))
    assert before <= uploaded.expires_at - timedelta(hours=1) <= datetime.now(UTC)
    asked = [seen for seen in fake.seen if "x-fal-object-lifecycle" in seen.headers]
    assert [json.loads(seen.headers["x-fal-object-lifecycle"]) for seen in asked] == [
        {"expiration_duration_seconds": 3600}
    ]


def test_files_data_uris_and_pictures_are_taken(fake, ask, tmp_path):
    storage = Storage(fake)
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"jpeg")
    ask(lambda client: client.upload(path))
    assert storage.whole == b"jpeg"
    assert fake.seen[0].json() == {"content_type": "image/jpeg", "file_name": "photo.jpg"}
    ask(lambda client: client.upload("data:image/webp;base64,AAAA"))
    assert storage.whole == b"\0\0\0"
    assert fake.seen[2].json()["content_type"] == "image/webp"
    ask(lambda client: client.upload(Image.new("RGB", (3, 2), "red")))
    assert Image.open(io.BytesIO(storage.whole)).size == (3, 2)
    assert fake.seen[4].json() == {"content_type": "image/png", "file_name": "upload.png"}


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.upload("https://example.com/x.png"),
        lambda client: client.upload(b"", lifetime_s=0),
        lambda client: client.upload(b"", file_name="a\r\nb"),
    ],
)
def test_what_can_not_be_uploaded_is_refused_at_once(fake, ask, call):
    with pytest.raises(fal.InvalidCall):
        ask(call)
    assert fake.seen == []


def test_a_missing_file_is_refused(ask, tmp_path):
    with pytest.raises(fal.InvalidCall, match=r"nothing\.png"):
        ask(lambda client: client.upload(tmp_path / "nothing.png"))


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_upload_url_that_has_expired_says_nothing_about_the_key(fake, ask, status):
    Storage(fake)
    storage = fake.script
    fake.script = lambda seen: fake.reply(status, b"<Error/>") if seen.method == "PUT" else storage(seen)
    with pytest.raises(fal.MediaUnavailable) as caught:
        ask(lambda client: client.upload(b"x"))
    assert caught.value.status == status
    assert fake.count("PUT") == 1


def test_an_upload_url_in_a_private_network_gets_nothing(fake, other, ask):
    fake.replies(fake.reply(200, {"upload_url": f"{other.url}/put", "file_url": "https://v3.fal.media/x"}))
    with pytest.raises(fal.UnsafeUrl):
        ask(lambda client: client.upload(b"x"))
    assert other.seen == []


@pytest.mark.parametrize("via", ["presigned", "cdn"])
@pytest.mark.parametrize(
    "body", [{}, [], TOKEN | {"token": "a\nb"}, TOKEN | {"token": 7}, TOKEN | {"expires_at": "never"}]
)
def test_an_answer_that_lacks_something_is_our_error(fake, ask, via, body):
    fake.replies(fake.reply(200, body))
    with pytest.raises(fal.UnexpectedAnswer):
        ask(lambda client: client.upload(b"x", via=via))


def test_a_locked_account_can_not_upload(fake, ask):
    fake.replies(fake.reply(403, {"detail": "User is locked. Reason: Exhausted balance."}))
    with pytest.raises(fal.AccountLocked):
        ask(lambda client: client.upload(b"x"))

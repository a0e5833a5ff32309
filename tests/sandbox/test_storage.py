"""Uploads in the forms of fal's clients, and downloads."""

import io

import pytest
from PIL import Image

PARTS = [b"a" * 1000, b"b" * 1000, b"c" * 10]


def announced(caller, kind="initiate"):
    answer = caller.http.post(
        f"/storage/upload/{kind}?storage_type=fal-cdn-v3",
        json={"content_type": "image/webp", "file_name": "my face.webp"},
    )
    return answer.raise_for_status().json()


def cdn(caller):
    token = caller.http.post("/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()
    assert token["base_url"] == caller.sandbox.url
    return {"Authorization": f"{token['token_type']} {token['token']}"}


def test_a_presigned_upload_can_be_fetched_as_it_was_sent(call):
    caller = call()
    urls = announced(caller)
    assert caller.without_key.get(urls["file_url"]).status_code == 404
    assert caller.without_key.put(urls["upload_url"], content=b"bytes").status_code == 200
    answer = caller.without_key.get(urls["file_url"])
    assert (answer.content, answer.headers["content-type"]) == (b"bytes", "image/webp")
    assert urls["file_url"].endswith("/my_face.webp")


@pytest.mark.parametrize("file_name", ["../../etc/passwd", "", "ü", "a/b?c#d", "." * 300, "x" * 300])
def test_any_file_name_becomes_part_of_an_address(call, file_name):
    caller = call()
    assert caller.fetch(caller.upload(b"bytes", file_name)) == b"bytes"


def test_a_presigned_upload_in_parts_is_put_together_in_their_order(call):
    caller = call()
    urls = announced(caller, "initiate-multipart")
    path, _, query = urls["upload_url"].partition("?")
    told = [
        caller.without_key.put(f"{path}/{number}?{query}", content=PARTS[number - 1]).json()
        for number in (3, 1, 2)
    ]
    answer = caller.without_key.post(f"{path}/complete?{query}", json={"parts": told})
    assert answer.status_code == 200
    assert caller.fetch(urls["file_url"]) == b"".join(PARTS)


def test_a_part_sent_again_replaces_the_first(call):
    caller = call()
    urls = announced(caller, "initiate-multipart")
    path = urls["upload_url"].partition("?")[0]
    caller.without_key.put(f"{path}/1", content=b"broken")
    told = [caller.without_key.put(f"{path}/1", content=b"whole").json()]
    assert caller.without_key.post(f"{path}/complete", json={"parts": told}).status_code == 200
    assert caller.fetch(urls["file_url"]) == b"whole"


@pytest.mark.parametrize("told", [[], [1], [1, 2, 3], [2], [1, 1]])
def test_parts_other_than_those_received_are_refused(call, told):
    caller = call()
    path = announced(caller, "initiate-multipart")["upload_url"].partition("?")[0]
    etags = [caller.without_key.put(f"{path}/{number}", content=b"part").json()["etag"] for number in (1, 2)]
    parts = [{"partNumber": number, "etag": etags[0]} for number in told]
    assert caller.without_key.post(f"{path}/complete", json={"parts": parts}).status_code == 400


def test_a_part_that_arrived_otherwise_is_refused(call):
    caller = call()
    path = announced(caller, "initiate-multipart")["upload_url"].partition("?")[0]
    caller.without_key.put(f"{path}/1", content=b"part")
    parts = [{"partNumber": 1, "etag": "another"}]
    assert caller.without_key.post(f"{path}/complete", json={"parts": parts}).status_code == 400


def test_the_cdn_takes_a_file_with_its_token(call):
    caller = call()
    headers = {**cdn(caller), "Content-Type": "image/png", "X-Fal-File-Name": "face.png"}
    answer = caller.without_key.post("/files/upload", content=b"bytes", headers=headers)
    assert caller.fetch(answer.json()["access_url"]) == b"bytes"


def test_the_cdn_takes_a_file_in_parts(call):
    caller = call()
    headers = {**cdn(caller), "Content-Type": "image/png", "X-Fal-File-Name": "face.png"}
    begun = caller.without_key.post("/files/upload/multipart", headers=headers).json()
    path = f"{begun['access_url']}/multipart/{begun['uploadId']}"
    parts = [
        {
            "partNumber": number,
            "etag": caller.without_key.put(f"{path}/{number}", content=part, headers=headers).headers["etag"],
        }
        for number, part in enumerate(PARTS, start=1)
    ]
    assert (
        caller.without_key.post(f"{path}/complete", json={"parts": parts}, headers=headers).status_code == 200
    )
    assert caller.fetch(begun["access_url"]) == b"".join(PARTS)


def test_uploads_need_a_key_or_a_token(call):
    caller = call()
    http, file = caller.without_key, f"/files/b/{'0' * 32}/x.png/multipart/y"
    for path in ("/storage/upload/initiate", "/storage/upload/initiate-multipart", "/storage/auth/token"):
        answer = http.post(path, json={})
        assert (answer.status_code, answer.json()["detail"]) == (401, "Authorization header is required")
    for path in ("/files/upload", "/files/upload/multipart", f"{file}/complete"):
        assert http.post(path, headers={"Authorization": "Bearer guess"}).status_code == 401
    assert http.put(f"{file}/1", headers={"Authorization": "Bearer guess"}).status_code == 401


def test_what_was_not_announced_cannot_be_uploaded(call):
    http = call().without_key
    assert http.put("/storage/uploads/guess", content=b"x").status_code == 404
    assert http.put("/storage/uploads/guess/1", content=b"x").status_code == 404
    assert http.post("/storage/uploads/guess/complete", json={"parts": []}).status_code == 404


@pytest.mark.parametrize("body", [b"", b"[]", b'{"file_name": 1}'])
def test_an_announcement_that_says_nothing_is_refused(call, body):
    assert call().http.post("/storage/upload/initiate", content=body).status_code == 422


def test_a_generated_picture_is_the_same_each_time_it_is_fetched(call):
    caller = call()
    url = caller.result(seed=5).json()["images"][0]["url"]
    assert caller.fetch(url) == caller.fetch(url)
    assert caller.without_key.head(url).headers["content-length"] == str(len(caller.fetch(url)))


def test_the_same_input_gives_the_same_pictures_whatever_its_uploads_are_called(call, portrait):
    caller, other = call(), call(seed=1)
    first, second = (
        each.pictures("character", reference_image_urls=[each.upload(portrait, name)], num_images=2)
        for each, name in ((caller, "one.png"), (other, "two.png"))
    )
    assert first == second
    assert first[0] != first[1]


def test_only_pictures_that_there_are_can_be_fetched(call):
    caller = call(faults="stuck")
    running = caller.submit()["request_id"]
    caller.http.post("/sandbox/settings", json={"faults": "policy_refusal"})
    refused = caller.submit(prompt="refused")["request_id"]
    caller.http.post("/sandbox/settings", json={"faults": []})
    done = caller.submit(prompt="done")["request_id"]
    codes = {
        path: caller.without_key.get(f"/files/g/{path}.png").status_code
        for path in (f"{running}/0", f"{refused}/0", "nobody/0", f"{done}/1", f"{done}/0")
    }
    assert list(codes.values()) == [404, 404, 404, 404, 200]


def test_a_picture_comes_without_a_key_and_a_key_sent_all_the_same_is_noted(call):
    caller = call()
    urls = announced(caller)
    image = caller.result().json()["images"][0]["url"]
    caller.without_key.put(urls["upload_url"], content=b"x")
    caller.fetch(image)
    assert caller.sandbox.stats().misplaced_keys == 0
    caller.http.put(urls["upload_url"], content=b"x")
    caller.http.get(image)
    caller.http.get(urls["file_url"])
    assert caller.sandbox.stats().misplaced_keys == 3


def test_pictures_are_png(call):
    (content,) = call().pictures()
    assert Image.open(io.BytesIO(content)).format == "PNG"

"""Pictures an input refers to."""

import io

import pytest
from PIL import Image

from ideogram_pipeline.sandbox.pictures import PictureProblem, decode


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_kinds_that_ideogram_takes_are_decoded(kind):
    picture = decode(encoded(Image.new("RGB", (40, 30)), kind))
    assert (picture.size, picture.image.size, picture.image.mode) == ((40, 30), (40, 30), "RGB")


@pytest.mark.parametrize("content", [b"", b"text", encoded(Image.new("RGB", (4, 4)), "GIF")])
def test_other_files_are_a_problem(content):
    with pytest.raises(PictureProblem) as caught:
        decode(content)
    assert caught.value.error_type == "image_load_error"


def test_half_a_picture_is_a_problem():
    content = encoded(Image.effect_noise((200, 200), 50), "PNG")
    with pytest.raises(PictureProblem):
        decode(content[: len(content) // 2])


def test_a_picture_taken_sideways_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decode(encoded(Image.new("RGB", (40, 30)), "JPEG", exif=exif))
    assert (picture.size, picture.image.size) == ((30, 40), (30, 40))


def test_a_large_picture_is_kept_small_and_its_size_remembered():
    picture = decode(encoded(Image.new("RGB", (4000, 2000)), "JPEG"))
    assert (picture.size, picture.image.size) == ((4000, 2000), (1536, 768))


def test_a_picture_of_too_many_pixels_is_not_decoded():
    with pytest.raises(PictureProblem) as caught:
        decode(encoded(Image.new("1", (9_000, 8_000)), "PNG"))
    assert caught.value.error_type == "image_too_large"


def test_what_is_transparent_is_white():
    picture = decode(encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG"))
    assert picture.image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("address", "error_type"),
    [
        ("data:image/png;base64,%%%", "image_load_error"),
        ("data:image/png;base64,AAAA", "image_load_error"),
        ("data:,plain", "image_load_error"),
        ("file:///etc/hostname", "file_download_error"),
        ("portrait.png", "file_download_error"),
        ("http://[", "file_download_error"),
        ("http://127.0.0.1:9/x.png", "file_download_error"),
        ("", "file_download_error"),
    ],
)
def test_a_reference_that_cannot_be_used_is_refused_by_the_field_s_name(call, address, error_type):
    answer = call().result("character", reference_image_urls=[address])
    assert answer.status_code == 422
    (problem,) = answer.json()["detail"]
    assert (problem["loc"], problem["type"]) == (["body", "reference_image_urls"], error_type)


def test_a_reference_can_be_an_upload_a_data_uri_or_any_url(call, portrait, as_data_uri):
    elsewhere, caller = call(state=":memory:", seed=1), call()
    urls = [caller.upload(portrait), as_data_uri(portrait), elsewhere.upload(portrait)]
    assert [caller.result("character", reference_image_urls=[url]).status_code for url in urls] == [200] * 3


def test_a_file_that_its_host_does_not_have_is_refused(call):
    elsewhere, caller = call(seed=1), call()
    url = f"{elsewhere.sandbox.url}/files/b/none/x.png"
    (problem,) = caller.result("character", reference_image_urls=[url]).json()["detail"]
    assert (problem["type"], "404" in problem["msg"]) == ("file_download_error", True)


def test_the_source_and_its_mask_must_have_the_same_size(call, as_data_uri, scenery, portrait):
    (problem,) = (
        call()
        .result("v3/edit", image_url=as_data_uri(scenery), mask_url=as_data_uri(portrait))
        .json()["detail"]
    )
    assert problem["loc"] == ["body", "mask_url"]


def test_an_empty_list_of_references_is_refused(call):
    (problem,) = call().result("character", reference_image_urls=[]).json()["detail"]
    assert problem["loc"] == ["body", "reference_image_urls"]

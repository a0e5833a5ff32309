"""Likeness: the same picture in another dress is near, another picture is far, and the nearest one is found."""

import io
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from ideogram_pipeline.likeness import NEAR_DUPLICATE, distance, nearest, perceptual_hash
from ideogram_pipeline.pictures import inspect

PHOTOS = sorted(
    path for path in (Path(__file__).parents[1] / "data").rglob("*.png") if "mask" not in path.name
)


def as_jpeg(image, quality):
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(sink)


DRESSES = {
    "half as wide and high": lambda image: image.resize((image.width // 2, image.height // 2)),
    "jpeg of quality 30": lambda image: as_jpeg(image, 30),
    "a fifth more light": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "a fifth less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
}


def photos():
    return {path.name: Image.open(path).convert("RGB") for path in PHOTOS}


@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES)
def test_the_same_picture_in_another_dress_is_a_near_duplicate(dress):
    for name, photo in photos().items():
        differing = distance(perceptual_hash(photo), perceptual_hash(dress(photo)))
        assert differing <= NEAR_DUPLICATE, name


def test_different_pictures_are_far_apart():
    hashes = [perceptual_hash(photo) for photo in photos().values()]
    assert len(hashes) >= 2
    assert all(distance(one, other) > 4 * NEAR_DUPLICATE for one, other in combinations(hashes, 2))


def test_a_hash_is_one_bit_for_each_step_from_dark_to_light():
    rising = Image.linear_gradient("L").rotate(90)
    hashes = {perceptual_hash(rising), perceptual_hash(rising.rotate(180))}
    assert hashes == {"0" * 16, "f" * 16}
    assert perceptual_hash(Image.new("L", (40, 40), 9)) == "0" * 16


def test_a_photo_has_the_likeness_of_its_pixels():
    for path in PHOTOS:
        found = inspect(path.read_bytes()).perceptual_hash
        assert distance(found, perceptual_hash(Image.open(path))) <= 1


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 7), min_size=2, max_size=150))
def test_the_nearest_is_the_one_that_differs_in_the_fewest_bits(numbers):
    hashes = [f"{number:016x}" for number in numbers]
    found = list(nearest(hashes))
    assert len(found) == len(hashes)
    for index, other in enumerate(found):
        others = [distance(hashes[index], one) for at, one in enumerate(hashes) if at != index]
        assert other.at != index
        assert other.distance == min(others) == distance(hashes[index], hashes[other.at])


@pytest.mark.parametrize("hashes", [[], ["00000000000000ff"]])
def test_without_two_pictures_none_is_nearest(hashes):
    assert list(nearest(hashes)) == []

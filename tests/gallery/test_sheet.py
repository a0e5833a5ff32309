"""Contact sheets: every picture is on them, and they stay small enough to travel in metadata."""

import io
import random

import pytest
from PIL import Image

from ideogram_pipeline.gallery.sheet import MAX_BYTES, contact_sheet


def noise(seed: int) -> bytes:
    """The picture that compresses worst."""
    sink = io.BytesIO()
    Image.frombytes("RGB", (160, 160), random.Random(seed).randbytes(160 * 160 * 3)).save(sink, "PNG")
    return sink.getvalue()


@pytest.mark.parametrize("count", [1, 12, 40])
def test_a_sheet_of_noise_is_as_small_as_promised(count):
    sheet = contact_sheet([noise(seed) for seed in range(count)])
    assert len(sheet) <= MAX_BYTES
    assert Image.open(io.BytesIO(sheet)).format == "WEBP"


def test_pictures_stand_in_rows_of_six(picture):
    colors = ["red", "lime", "blue", "yellow", "cyan", "magenta", "black"]
    sheet = Image.open(io.BytesIO(contact_sheet([picture(color, (320, 320)) for color in colors]))).convert(
        "RGB"
    )
    assert sheet.size == (6 * 166 + 6, 2 * 166 + 6)
    centers = [(86 + 166 * (place % 6), 86 + 166 * (place // 6)) for place in range(7)]
    found = [tuple(round(channel / 255) for channel in sheet.getpixel(center)) for center in centers]
    assert found == [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (0, 0, 0)]


@pytest.mark.parametrize("size", [(320, 1), (1, 320)])
def test_a_picture_as_thin_as_a_line_has_its_place(picture, size):
    sheet = Image.open(io.BytesIO(contact_sheet([picture(size=size)])))
    assert sheet.size == (172, 172)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA"])
def test_a_picture_of_any_mode_has_its_place(picture, mode):
    assert Image.open(io.BytesIO(contact_sheet([picture(mode=mode)]))).size == (172, 172)


def test_a_sheet_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([])

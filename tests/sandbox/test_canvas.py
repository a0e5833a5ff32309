"""Shapes, text and PNG."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ideogram_pipeline.sandbox import canvas


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_png_is_read_back_pixel_by_pixel(width, height, chance):
    image = Image.frombytes("RGB", (width, height), chance.randbytes(3 * width * height))
    read = Image.open(io.BytesIO(canvas.png(image, {})))
    assert (read.mode, read.size, read.tobytes()) == ("RGB", image.size, image.tobytes())


@given(st.text())
def test_notes_are_read_back_in_any_script(text):
    content = canvas.png(Image.new("RGB", (1, 1)), {"Description": text})
    wanted = text.replace("\0", "")
    read = Image.open(io.BytesIO(content))
    read.load()
    assert read.text["Description"] == wanted


@settings(deadline=None)
@given(st.text(max_size=300), st.integers(10, 40), st.integers(60, 900), st.integers(1, 4))
def test_wrapped_text_stays_within_its_width_and_lines(text, size, width, most):
    lines = canvas.wrapped(text, size, width, most)
    assert 1 <= len(lines) <= most
    assert all(canvas.font(size).getlength(line) <= width for line in lines)


def test_text_that_fits_is_not_shortened():
    text = "a short prompt"
    assert canvas.wrapped(text, 20, 900, 1) == (text,)
    assert canvas.wrapped("one two", 20, 60, 2) == ("one", "two")


def test_text_that_does_not_fit_ends_in_an_ellipsis():
    (line,) = canvas.wrapped("word " * 100, 20, 300, 1)
    assert line.startswith("word word")
    assert line.endswith("\u2026")


@given(st.integers(8, 200), st.integers(8, 200), st.integers(0, 300))
def test_a_round_box_is_full_in_the_middle_and_as_large_as_asked(width, height, radius):
    image = Image.new("RGB", (200, 200))
    canvas.fill_box(image, (0, 0, width, height), radius, (9, 8, 7))
    assert image.getpixel((width // 2, height // 2)) == (9, 8, 7)
    assert image.getbbox() == (0, 0, width, height)


@given(st.integers(-300, 500), st.integers(-300, 500), st.integers(1, 400))
def test_shapes_may_reach_over_the_edges(x, y, diameter):
    image = Image.new("RGB", (200, 200))
    canvas.fill_disc(image, (x, y), diameter, (1, 2, 3))
    canvas.cast_shadow(image, (x, y, x + diameter, y + diameter), 4, 8, 90)
    assert image.size == (200, 200)

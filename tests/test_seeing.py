"""Pictures as they are to be seen: upright, whole in their greys, and on white where they are transparent."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from ideogram_pipeline.likeness import distance
from ideogram_pipeline.pictures import examine, inspect, thumbnail, verify
from ideogram_pipeline.sandbox.pictures import decode

DATA = Path(__file__).parents[1] / "data"
UPRIGHT = Image.open(DATA / "astronaut.png").convert("RGB").crop((60, 0, 360, 400)).resize((96, 128))
STORED = {
    1: lambda image: image,
    2: ImageOps.mirror,
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}
"""How a camera stores a picture of each orientation: what makes it upright again is Pillow's own business."""


def encoded(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "Camera"
    return tags


def stored(orientation, kind="PNG", image=UPRIGHT, **options):
    return encoded(STORED[orientation](image), kind, exif=exif(orientation), **options)


def pixels(content):
    return Image.open(io.BytesIO(content))


def unlikeness(one, other):
    """The mean difference of two pictures' bytes, from 0 to 255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int)).mean())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_read_upright(orientation, kind):
    content = stored(orientation, kind, quality=95)
    assert unlikeness(ImageOps.exif_transpose(pixels(content)), UPRIGHT) < 4  # the sample is what it claims
    found = inspect(content)
    assert (found.width, found.height) == (96, 128)
    assert distance(found.perceptual_hash, inspect(encoded(UPRIGHT)).perceptual_hash) <= 1
    facts, small = verify(content, thumbnail_side=64)
    assert (facts.width, facts.height) == (96, 128)
    assert unlikeness(pixels(small), pixels(thumbnail(encoded(UPRIGHT), 64))) < 6
    assert verify(content, thumbnail_side=None)[0].width == 96
    assert decode(content).size == (96, 128)
    assert unlikeness(decode(content).image, UPRIGHT) < 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "MPO"])
@pytest.mark.parametrize("orientation", STORED)
def test_what_exif_turns_is_sent_as_an_upright_copy(orientation, kind):
    content = stored(orientation, kind, quality=90)
    found = examine(content)
    if orientation == 1:
        assert found.upright is None
        return
    copy = pixels(found.upright)
    assert copy.format == {"MPO": "JPEG"}.get(kind, kind)
    assert not copy.getexif()
    assert unlikeness(copy, UPRIGHT) < 4
    again = examine(found.upright)
    assert again.upright is None  # nobody turns it once more
    assert (again.picture.kind, again.picture.width, again.picture.height) == (found.picture.kind, 96, 128)
    assert examine(content).upright == found.upright  # its digest is recorded, and must not change


@pytest.mark.parametrize(
    ("kind", "image", "options"),
    [
        ("PNG", UPRIGHT, {}),
        ("PNG", UPRIGHT.convert("RGBA"), {}),
        ("PNG", UPRIGHT.convert("LA"), {}),
        ("PNG", UPRIGHT.convert("1"), {}),
        ("PNG", UPRIGHT.quantize(16), {"transparency": 3}),
        ("PNG", Image.fromarray(np.asarray(UPRIGHT.convert("L")).astype(np.uint16) * 257), {}),
        ("WEBP", UPRIGHT.convert("RGBA"), {"lossless": True}),
    ],
    ids=["RGB", "RGBA", "LA", "1", "palette with transparency", "16 bits", "lossless WebP"],
)
def test_a_copy_of_what_was_stored_without_loss_has_every_pixel(kind, image, options):
    copy = pixels(examine(stored(6, kind, image, **options)).upright)
    first = pixels(encoded(image, kind, **options))
    assert copy.mode == first.mode
    assert np.array_equal(np.asarray(copy.convert("RGBA")), np.asarray(first.convert("RGBA")))
    assert np.array_equal(np.asarray(copy), np.asarray(first))


def test_a_copy_of_a_photo_is_no_larger_and_loses_next_to_nothing():
    photo = Image.open(DATA / "astronaut.png").convert("RGB")
    content = stored(6, "JPEG", photo, quality=85, subsampling="4:2:0")
    copy = examine(content).upright
    assert len(copy) < 1.05 * len(content)
    assert unlikeness(pixels(copy), ImageOps.exif_transpose(pixels(content))) < 1
    assert pixels(copy).quantization == pixels(content).quantization


def test_a_copy_keeps_the_colour_profile_and_says_no_place():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = exif(6)
    tags.get_ifd(0x8825)[1] = "N"
    for kind in ("PNG", "JPEG", "WEBP"):
        content = encoded(
            STORED[6](UPRIGHT), kind, exif=tags, icc_profile=profile, xmp=b"<x:xmpmeta>Lat 52</x:xmpmeta>"
        )
        copy = pixels(examine(content).upright)
        assert copy.info["icc_profile"] == profile
        assert {"exif", "xmp"}.isdisjoint(copy.info)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_where_exif_is_silent_the_orientation_in_xmp_counts(kind):
    said = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    xmp = PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", said.decode())
    options = {"pnginfo": xmp} if kind == "PNG" else {"xmp": said}
    content = encoded(STORED[6](UPRIGHT), kind, **options)
    assert ImageOps.exif_transpose(pixels(content)).size == (96, 128)  # as fal's SDK turns it
    found = examine(content)
    assert (found.picture.width, found.picture.height) == (96, 128)
    assert ImageOps.exif_transpose(pixels(found.upright)).size == (96, 128)
    assert decode(content).size == (96, 128)


def test_of_an_animation_the_first_frame_counts_and_is_sent_upright():
    frames = [STORED[8](UPRIGHT), STORED[8](ImageOps.invert(UPRIGHT))]
    for kind in ("WEBP", "PNG"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], exif=exif(8))
        found = examine(content)
        assert getattr(pixels(found.upright), "n_frames", 1) == 1
        assert unlikeness(pixels(found.upright), UPRIGHT) < 6


def test_cmyk_keeps_its_colours():
    ink = UPRIGHT.convert("CMYK")
    found = examine(stored(6, "JPEG", ink, quality=95))
    assert pixels(found.upright).mode == "CMYK"
    assert unlikeness(pixels(found.upright), ink.convert("RGB")) < 5
    assert distance(found.picture.perceptual_hash, inspect(encoded(UPRIGHT)).perceptual_hash) <= 1


@given(orientation=st.sampled_from([0, 9, 255, 65_535]), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
@settings(max_examples=12)
def test_what_is_no_orientation_turns_nothing(orientation, kind):
    content = encoded(UPRIGHT, kind, exif=exif(orientation))
    assert (inspect(content).width, examine(content).upright) == (96, None)


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
@settings(max_examples=60, deadline=None)
def test_broken_exif_costs_no_picture(seed, kind):
    """EXIF with some bytes changed turns the picture or doesn't: the copy, the plan and the sandbox agree."""
    chance = random.Random(seed)
    tags = bytearray(exif(6).tobytes())
    for _ in range(chance.randint(1, 8)):
        tags[chance.randrange(len(tags))] = chance.randrange(256)
    content = encoded(STORED[6](UPRIGHT), kind, exif=bytes(tags[: chance.randint(6, len(tags))]))
    found = examine(content)
    assert (found.picture.width, found.picture.height) == ((96, 128) if found.upright else (128, 96))
    assert decode(found.upright or content).size == (found.picture.width, found.picture.height)


def test_grey_of_16_bits_looks_as_it_does_in_8():
    grey = UPRIGHT.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert inspect(encoded(deep)).perceptual_hash == inspect(encoded(grey)).perceptual_hash
    assert unlikeness(pixels(thumbnail(encoded(deep), 96)), pixels(thumbnail(encoded(grey), 96))) < 1
    assert unlikeness(decode(encoded(deep)).image, grey) < 1


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [("PNG", "RGBA", {}), ("PNG", "LA", {}), ("WEBP", "RGBA", {"lossless": True, "exact": True})],
)
def test_a_cut_out_stands_on_white_whatever_hides_under_its_transparency(kind, mode, options):
    shape = Image.new("L", UPRIGHT.size)
    ImageDraw.Draw(shape).ellipse((20, 20, 76, 108), fill=255)
    on_white = Image.composite(UPRIGHT, Image.new("RGB", UPRIGHT.size, "white"), shape)
    hidden = UPRIGHT.copy()
    hidden.putalpha(shape)
    content = encoded(hidden.convert(mode), kind, **options)
    seen = encoded(on_white.convert("L") if mode == "LA" else on_white)
    assert inspect(content).perceptual_hash == inspect(seen).perceptual_hash
    assert unlikeness(pixels(thumbnail(content, 96)), pixels(thumbnail(seen, 96))) < 1


def test_a_palette_with_a_transparent_colour_stands_on_white():
    drawn = Image.new("P", (40, 40), 1)
    drawn.putpalette([200, 30, 30, 10, 200, 10])
    drawn.paste(0, (10, 10, 30, 30))
    small = pixels(thumbnail(encoded(drawn, transparency=1), 40)).convert("RGB")
    assert min(small.getpixel((2, 2))) > 250
    assert small.getpixel((20, 20))[0] > 180 > small.getpixel((20, 20))[1]


def mask(background, region=None, size=(200, 150), mode="L"):
    drawn = Image.new(mode, size, background)
    if region is not None:
        ImageDraw.Draw(drawn).rectangle((40, 30, 120, 100), fill=region)
    return drawn


@pytest.mark.parametrize(
    ("image", "kind", "look"),
    [
        (mask(255, 0), "PNG", "black and white"),
        (mask(0, 255), "JPEG", "black and white"),
        (mask(255), "PNG", "white"),
        (mask(255), "JPEG", "white"),
        (mask(0), "WEBP", "black"),
        (mask(200, 130), "PNG", "white"),
        (mask((0, 0, 0, 255), (0, 0, 0, 0), mode="RGBA"), "PNG", "transparent"),
        (mask((255, 255, 255, 255), (255, 255, 255, 0), mode="RGBA"), "PNG", "white"),
        (mask((0, 0, 0, 0), (255, 255, 255, 255), mode="RGBA"), "WEBP", "transparent"),
        (mask((0, 0, 0, 0), mode="RGBA"), "PNG", "transparent"),
        (mask((255, 255, 255, 0), (0, 0, 0, 255), mode="RGBA"), "PNG", "black and white"),
        (mask((255, 255, 255, 255), (0, 0, 0, 255), mode="RGBA"), "PNG", "black and white"),
        (mask((0, 255), (0, 0), mode="LA"), "PNG", "transparent"),
        (mask(1, mode="1"), "PNG", "white"),
        (mask(65_535, 0, mode="I;16"), "PNG", "black and white"),
        (mask(65_535, mode="I;16"), "PNG", "white"),
    ],
)
def test_a_mask_is_known_by_its_colours(image, kind, look):
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert examine(encoded(image, kind, **options)).as_mask == look


def test_one_pixel_of_another_colour_is_a_region():
    drawn = mask(255, size=(4000, 3000))
    drawn.putpixel((1234, 567), 0)
    assert examine(encoded(drawn)).as_mask == "black and white"

"""Pictures: what is accepted is whole, and what is refused says why."""

import hashlib
import io
import random
import struct
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ideogram_pipeline.pictures import MAX_PIXELS, BadPicture, inspect, thumbnail, verify


def encode(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    """A picture of noise, so that every byte counts."""
    channels = [
        Image.frombytes("L", size, random.Random(seed).randbytes(size[0] * size[1]))
        for seed in range(len(mode))
    ]
    sink = io.BytesIO()
    Image.merge(mode, channels).save(sink, kind)
    return sink.getvalue()


WHOLE = {kind: encode(kind) for kind in ("JPEG", "PNG", "WEBP")}


def pixels(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).tobytes()


@pytest.mark.parametrize("kind", WHOLE)
def test_a_picture_is_measured_and_hashed(kind):
    found = inspect(WHOLE[kind])
    assert (found.kind, found.width, found.height) == (kind.lower(), 40, 30)
    assert found.bytes == len(WHOLE[kind])
    assert found.sha256 == hashlib.sha256(WHOLE[kind]).hexdigest()


@given(kind=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 1, exclude_max=True))
def test_a_picture_cut_short_is_refused_unless_no_pixel_is_missing(kind, share):
    """A PNG's last bytes hold a checksum and an end mark: without them every pixel is still there."""
    cut = WHOLE[kind][: int(len(WHOLE[kind]) * share)]
    try:
        inspect(cut)
    except BadPicture:
        return
    assert pixels(cut) == pixels(WHOLE[kind])


@pytest.mark.parametrize("kind", WHOLE)
def test_half_a_picture_is_refused(kind):
    with pytest.raises(BadPicture, match=r"can't be decoded to the end|not a picture"):
        inspect(WHOLE[kind][: len(WHOLE[kind]) // 2])


@given(
    kind=st.sampled_from(sorted(WHOLE)), place=st.integers(0, 1000), noise=st.binary(min_size=1, max_size=20)
)
def test_a_damaged_picture_is_refused_or_decodes(kind, place, noise):
    damaged = WHOLE[kind][:place] + noise + WHOLE[kind][place + len(noise) :]
    try:
        found = inspect(damaged)
    except BadPicture:
        return
    assert Image.open(io.BytesIO(damaged)).size == (found.width, found.height)


@given(content=st.binary(max_size=100))
def test_bytes_that_are_no_picture_are_refused(content):
    with pytest.raises(BadPicture):
        inspect(content)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO"])
def test_other_kinds_are_refused_by_name(kind, picture):
    with pytest.raises(BadPicture, match=f"it is {kind}, not JPEG, PNG or WebP"):
        inspect(picture(kind=kind))


@pytest.mark.parametrize("size", [(8_001, 8_000), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(BadPicture, match=f"it claims .*{MAX_PIXELS:,}"):
        inspect(bomb)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "L"), ("PNG", "LA"), ("PNG", "RGBA"), ("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGBA")],
)
def test_a_picture_of_any_mode_has_a_thumbnail(kind, mode):
    small = inspect(thumbnail(encode(kind, mode), 16))
    assert (small.kind, small.width, small.height) == ("webp", 16, 12)


def test_a_picture_of_16_bits_a_pixel_has_a_thumbnail():
    sink = io.BytesIO()
    Image.new("I;16", (40, 30), 40_000).save(sink, "PNG")
    assert inspect(thumbnail(sink.getvalue(), 16)).width == 16


@given(width=st.integers(1, 400), height=st.integers(1, 400), side=st.integers(1, 320))
def test_a_thumbnail_fits_its_square_and_is_never_enlarged(width, height, side):
    sink = io.BytesIO()
    Image.new("RGB", (width, height)).save(sink, "PNG")
    small = inspect(thumbnail(sink.getvalue(), side))
    assert max(small.width, small.height) == min(side, max(width, height))


@given(share=st.floats(0, 1, exclude_max=True))
def test_the_checksums_of_a_png_show_every_cut(share):
    with pytest.raises(BadPicture):
        verify(WHOLE["PNG"][: int(len(WHOLE["PNG"]) * share)], thumbnail_side=None)


@given(position=st.integers(0, len(WHOLE["PNG"]) - 1), flip=st.integers(1, 255))
def test_the_checksums_of_a_png_show_every_changed_byte(position, flip):
    changed = bytearray(WHOLE["PNG"])
    changed[position] ^= flip
    with pytest.raises(BadPicture):
        verify(bytes(changed), thumbnail_side=None)


def test_a_png_that_claims_too_many_pixels_is_refused_without_decoding():
    bomb = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(bomb, "PNG")
    with pytest.raises(BadPicture, match="10000x10000"):
        verify(bomb.getvalue(), thumbnail_side=None)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_picture_without_checksums_is_decoded(kind):
    assert verify(WHOLE[kind], thumbnail_side=None) == (inspect(WHOLE[kind]), None)
    with pytest.raises(BadPicture):
        verify(WHOLE[kind][: len(WHOLE[kind]) // 2], thumbnail_side=None)


def test_one_decoding_gives_facts_and_thumbnail():
    facts, small = verify(WHOLE["PNG"], thumbnail_side=16)
    assert replace(facts, perceptual_hash=None) == replace(inspect(WHOLE["PNG"]), perceptual_hash=None)
    assert small == thumbnail(WHOLE["PNG"], 16)
    assert verify(WHOLE["PNG"], thumbnail_side=None) == (replace(facts, perceptual_hash=None), None)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_thumbnail_and_the_reference_tell_the_same_likeness(kind):
    facts, _ = verify(WHOLE[kind], thumbnail_side=320)
    assert facts.perceptual_hash == inspect(WHOLE[kind]).perceptual_hash


def chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def told(kind: str, part: bytes) -> bytes:
    """A picture with one more part, in front of its pixels."""
    content = WHOLE[kind]
    if kind == "PNG":
        at = content.index(b"IDAT") - 4
        return content[:at] + part + content[at:]
    if kind == "JPEG":
        return content[:2] + b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part + content[2:]
    head = b"VP8X\x0a\0\0\0\x2c\0\0\0" + bytes([39, 0, 0, 29, 0, 0])
    body = head + content[12:] + part + b"\0" * (len(part) % 2)
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body


LONG = zlib.compress(b" " * (2 << 20))
ODD = {
    "PNG, packed text that is far larger": ("PNG", chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG)),
    "PNG, packed words that are far larger": ("PNG", chunk(b"zTXt", b"Raw profile type xmp\0\0" + LONG)),
    "PNG, packed text that is broken": ("PNG", chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0nonsense")),
    "PNG, profile that is far larger": ("PNG", chunk(b"iCCP", b"profile\0\0" + LONG)),
    "PNG, EXIF": ("PNG", chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
    "JPEG, EXIF": ("JPEG", b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "JPEG, XMP as long as can be": ("JPEG", b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 65_000),
    "WebP, EXIF": ("WEBP", b"EXIF\x0c\0\0\0MM\0*\xff\xff\xff\xff\0\0\0\0"),
    "WebP, flags without parts": ("WEBP", b""),
}


@pytest.mark.parametrize("side", [None, 64])
@pytest.mark.parametrize("name", ODD)
def test_odd_metadata_never_makes_a_bad_picture(name, side):
    kind, part = ODD[name]
    content = told(kind, part)
    found, _ = verify(content, thumbnail_side=side)
    assert (found.kind, found.width, found.height) == (kind.lower(), 40, 30)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert inspect(content).perceptual_hash == inspect(WHOLE[kind]).perceptual_hash

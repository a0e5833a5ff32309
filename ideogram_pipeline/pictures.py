"""Reading pictures: what kind, how large, whether whole. Refuses decompression bombs."""

from __future__ import annotations

import hashlib
import io
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ideogram_pipeline.containers import UnknownContainer, without_metadata
from ideogram_pipeline.likeness import perceptual_hash

if TYPE_CHECKING:
    from PIL import Image

PictureKind = Literal["jpeg", "png", "webp"]

EXTENSIONS: dict[PictureKind, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}

MAX_PIXELS = 64_000_000
"""A picture that claims more pixels than this is refused before it is decoded."""

_LOOK_SIDE = 320
"""Pixels of the longer side of the small picture by which two are compared."""

_PNG = b"\x89PNG\r\n\x1a\n"


class BadPicture(Exception):
    """The bytes aren't a whole JPEG, PNG or WebP picture. The message says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture's bytes say about themselves."""

    kind: PictureKind
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    bytes: int
    """Length of the file."""
    sha256: str
    """Hex digest of the file."""
    perceptual_hash: str | None = None
    """What it looks like, as `likeness` has it; None where no pixel was decoded."""


def inspect(content: bytes) -> Picture:
    """Decode a picture to its last pixel and return its facts.

    Raises:
        BadPicture: the bytes are cut short, no picture, not JPEG, PNG or WebP, or claim too many pixels.
    """
    with _decoded(content) as image:
        looks = perceptual_hash(_shrunk(image, _LOOK_SIDE))
        return _facts(_kind(image), image.width, image.height, content, looks)


def verify(content: bytes, *, thumbnail_side: int | None) -> tuple[Picture, bytes | None]:
    """Prove that a picture is whole; return its facts and, where a side is given, a WebP at most that wide and high.

    A PNG of which no thumbnail is wanted is proven by the checksums of its chunks, which costs a fiftieth of decoding
    it; JPEG and WebP carry none.

    Raises:
        BadPicture: as for `inspect`.
    """
    if thumbnail_side is None and content.startswith(_PNG):
        return _facts("png", *_checked_png(content), content), None
    with _decoded(content) as image:
        small = _shrunk(image, thumbnail_side or _LOOK_SIDE)
        facts = _facts(_kind(image), image.width, image.height, content, perceptual_hash(small))
        return facts, _webp(small) if thumbnail_side else None


def thumbnail(content: bytes, side: int) -> bytes:
    """Return a WebP of the picture, at most `side` pixels wide and high."""
    with _decoded(content) as image:
        return _webp(_shrunk(image, side))


def _facts(
    kind: PictureKind, width: int, height: int, content: bytes, perceptual_hash: str | None = None
) -> Picture:
    return Picture(kind, width, height, len(content), hashlib.sha256(content).hexdigest(), perceptual_hash)


def _checked_png(content: bytes) -> tuple[int, int]:
    """Return a PNG's width and height, with every chunk up to its end proven by its checksum (PNG, section 5.3)."""
    chunks: list[bytes] = []
    start = len(_PNG)
    while start + 12 <= len(content) and (not chunks or chunks[-1] != b"IEND"):
        length = int.from_bytes(content[start : start + 4], "big")
        body = memoryview(content)[start + 4 : start + 8 + length]
        if zlib.crc32(body).to_bytes(4, "big") != content[start + 8 + length : start + 12 + length]:
            raise BadPicture(f"its part {bytes(body[:4])!r} is cut short or not what its checksum says")
        chunks.append(bytes(body[:4]))
        start += 12 + length
    if not chunks or chunks[0] != b"IHDR" or chunks[-1] != b"IEND" or b"IDAT" not in chunks:
        raise BadPicture("it is cut short")
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    _check_pixels(width, height)
    return width, height


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadPicture(f"it claims {width}x{height} pixels, more than {MAX_PIXELS:,} in all")


def _decoded(content: bytes) -> Image.Image:
    """Decode a picture; one whose metadata can't be read is no worse a picture."""
    try:
        return _decoded_whole(content)
    except BadPicture:
        with suppress(BadPicture, UnknownContainer):
            return _decoded_whole(without_metadata(content))
        raise


def _decoded_whole(content: bytes) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
        _check_pixels(image.width, image.height)
        _kind(image)
        image.load()
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        raise BadPicture(f"it claims more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadPicture("it is not a picture that can be decoded") from None
    except (
        Exception
    ) as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise BadPicture(f"it can't be decoded to the end ({error})") from None
    return image


def _kind(image: Image.Image) -> PictureKind:
    kind = {"MPO": "jpeg"}.get(image.format or "", (image.format or "").lower())
    for known in get_args(PictureKind):
        if kind == known:
            return known  # type: ignore[no-any-return]  # get_args has no types
    raise BadPicture(f"it is {image.format or 'of unknown kind'}, not JPEG, PNG or WebP")


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    shrunk = image.convert("RGB")
    shrunk.thumbnail((side, side), reducing_gap=1.0)
    return shrunk


def _webp(image: Image.Image) -> bytes:
    # Known to Pillow from here on, which else loads all of its seventy formats to find it.
    from PIL import WebPImagePlugin  # noqa: F401

    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=72, method=1)
    return sink.getvalue()

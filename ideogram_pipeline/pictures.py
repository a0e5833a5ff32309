"""Reading pictures: what kind, how large, whether whole. Decodes with Pillow and refuses decompression bombs."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from PIL import Image

PictureKind = Literal["jpeg", "png", "webp"]

EXTENSIONS: dict[PictureKind, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}

MAX_PIXELS = 64_000_000
"""A picture that claims more pixels than this is refused before it is decoded."""


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


def inspect(content: bytes) -> Picture:
    """Decode a picture to its last pixel and return its facts.

    Raises:
        BadPicture: the bytes are cut short, no picture, not JPEG, PNG or WebP, or claim too many pixels.
    """
    picture, _ = inspect_and_shrink(content, side=None)
    return picture


def inspect_and_shrink(content: bytes, *, side: int | None) -> tuple[Picture, bytes | None]:
    """Decode a picture once; return its facts and, where `side` is given, a WebP at most that wide and high."""
    with _decoded(content) as image:
        facts = Picture(
            kind=_kind(image),
            width=image.width,
            height=image.height,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        return facts, _shrink(image, side) if side else None


def thumbnail(content: bytes, side: int) -> bytes:
    """Return a WebP of the picture, at most `side` pixels wide and high."""
    with _decoded(content) as image:
        return _shrink(image, side)


def _decoded(content: bytes) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise BadPicture(
                f"it claims {image.width}x{image.height} pixels, more than {MAX_PIXELS:,} in all"
            )
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


def _shrink(image: Image.Image, side: int) -> bytes:
    shrunk = image.convert("RGB")
    shrunk.thumbnail((side, side), reducing_gap=2.0)
    sink = io.BytesIO()
    shrunk.save(sink, "WEBP", quality=72, method=2)
    return sink.getvalue()

"""Reading pictures: what kind, how large, whether whole, as they are seen. Refuses decompression bombs.

Width, height, thumbnail and hash are those of the picture as `seeing` has it: upright, and on white.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ideogram_pipeline.containers import UnknownContainer, has_part, without_metadata
from ideogram_pipeline.likeness import perceptual_hash
from ideogram_pipeline.not_pictures import described
from ideogram_pipeline.seeing import flat, orientation, upright, upright_size

if TYPE_CHECKING:
    from PIL import Image

PictureKind = Literal["jpeg", "png", "webp"]

_FORMATS = ("JPEG", "PNG", "WEBP")
"""The only decoders that bytes of others are given to."""

EXTENSIONS: dict[PictureKind, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}

MAX_PIXELS = 64_000_000
"""A picture that claims more pixels than this is refused before it is decoded."""

MaskLook = Literal["black and white", "white", "black", "transparent"]
"""How a picture would read as a mask: in both, in one of them, or by what is transparent in it."""

_LOOK_SIDE = 320
"""Pixels of the longer side of the small picture by which two are compared."""

_UNLIKE_WITHOUT_ALPHA = 0.005
"""A mask reads by its transparency if more than this share of it changes between black and white without."""

_PNG = b"\x89PNG\r\n\x1a\n"


class BadPicture(Exception):
    """The bytes aren't a whole JPEG, PNG or WebP picture. The message says what is wrong with them."""

    def __init__(self, what: str, mend: str = "") -> None:
        super().__init__(what)
        self.mend = mend
        """What whoever gave the picture does about it; empty where nobody knows."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a picture's bytes say about themselves."""

    kind: PictureKind
    width: int
    """Pixels across, upright."""
    height: int
    """Pixels down, upright."""
    bytes: int
    """Length of the file."""
    sha256: str
    """Hex digest of the file."""
    perceptual_hash: str | None = None
    """What it looks like, as `likeness` has it; None where no pixel was decoded."""


@dataclass(frozen=True, slots=True)
class Examined:
    """A picture that somebody gives, and what is to be known of it before it is sent."""

    picture: Picture
    """Its facts."""
    as_mask: MaskLook
    """How it would read as a mask."""
    upright: bytes | None
    """A copy that is stored as it is seen, of the same kind; None for one that is stored so itself."""


def inspect(content: bytes) -> Picture:
    """Decode a picture to its last pixel and return its facts.

    Raises:
        BadPicture: the bytes are cut short, no picture, not JPEG, PNG or WebP, or claim too many pixels.
    """
    with _decoded(content) as image:
        return _inspected(image, content)


def examine(content: bytes) -> Examined:
    """Decode a picture to its last pixel and return all there is to know of it before it is sent.

    Raises:
        BadPicture: as for `inspect`.
    """
    with _decoded(content) as image:
        stored = orientation(image)
        copy = _upright_copy(image, stored, content) if stored != 1 else None
        return Examined(_inspected(image, content), _mask_look(image), copy)


def verify(content: bytes, *, thumbnail_side: int | None) -> tuple[Picture, bytes | None]:
    """Prove that a picture is whole; return its facts and, where a side is given, a WebP at most that wide and high.

    A PNG of which no thumbnail is wanted is proven by the checksums of its chunks, which costs a fiftieth of decoding
    it; JPEG and WebP carry none.

    Raises:
        BadPicture: as for `inspect`.
    """
    if thumbnail_side is None and content.startswith(_PNG) and (size := _checked_png(content)):
        return _facts("png", size, content), None
    with _decoded(content) as image:
        small = _small(image, thumbnail_side or _LOOK_SIDE)
        facts = _facts(_kind(image), upright_size(image, orientation(image)), content, perceptual_hash(small))
        return facts, _webp(small) if thumbnail_side else None


def thumbnail(content: bytes, side: int) -> bytes:
    """Return a WebP of the picture, at most `side` pixels wide and high."""
    with _decoded(content) as image:
        return _webp(_small(image, side))


def _inspected(image: Image.Image, content: bytes) -> Picture:
    looks = perceptual_hash(_small(image, _LOOK_SIDE))
    return _facts(_kind(image), upright_size(image, orientation(image)), content, looks)


def _facts(
    kind: PictureKind, size: tuple[int, int], content: bytes, perceptual_hash: str | None = None
) -> Picture:
    return Picture(kind, *size, len(content), hashlib.sha256(content).hexdigest(), perceptual_hash)


def _checked_png(content: bytes) -> tuple[int, int] | None:
    """Return a PNG's width and height, with every chunk up to its end proven by its checksum (PNG, section 5.3).

    None for one with EXIF, which may turn it.
    """
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
    return None if b"eXIf" in chunks else (width, height)


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
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        _check_pixels(image.width, image.height)
        _kind(image)
        image.load()
    except BadPicture:
        raise
    except Image.DecompressionBombError:
        raise BadPicture(f"it claims more than {MAX_PIXELS:,} pixels") from None
    except UnidentifiedImageError:
        raise BadPicture(*described(content)) from None
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


def _small(image: Image.Image, side: int) -> Image.Image:
    """Return a picture as it is seen, at most so many pixels wide and high."""
    small = flat(image)
    small.thumbnail((side, side), reducing_gap=1.0)
    return upright(small, orientation(image))


def _mask_look(image: Image.Image) -> MaskLook:
    from PIL import ImageChops

    seen = _black_and_white(flat(image))
    if image.has_transparency_data and image.mode != "I;16":
        unlike = ImageChops.difference(seen, _black_and_white(image.convert("RGB"))).histogram()[255]
        if unlike > _UNLIKE_WITHOUT_ALPHA * image.width * image.height:
            return "transparent"
    black, *_, white = seen.histogram()
    return "white" if not black else "black" if not white else "black and white"


def _black_and_white(image: Image.Image) -> Image.Image:
    return image.convert("L").point([0] * 128 + [255] * 128)


def _upright_copy(image: Image.Image, stored: int, content: bytes) -> bytes:
    """Return a picture as a file that needs no turning, as near to the first as its kind allows.

    Of what it says of itself only the colour profile stays: EXIF and XMP would turn it again, or tell where it was
    taken.

    Raises:
        BadPicture: it can't be written.
    """
    from PIL import JpegImagePlugin

    turned, kind = upright(image, stored), _kind(image)
    kept = ("icc_profile", "transparency", "gamma")
    turned.info = {name: image.info[name] for name in kept if name in image.info}
    how: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        # Compressed with its own tables, it loses next to nothing and keeps its size.
        sampling = JpegImagePlugin.get_sampling(image)
        how |= {"qtables": image.quantization, "subsampling": sampling, "optimize": True}
    elif kind == "webp":
        how |= {"lossless": has_part(content, b"VP8L"), "quality": 90, "exact": True, "method": 2}
    else:
        how["compress_level"] = 3  # a third of the time of more, for a tenth of the bytes
    sink = io.BytesIO()
    try:
        turned.save(sink, kind.upper(), **how)
    except (OSError, ValueError, SyntaxError) as error:  # as Pillow's encoders raise
        raise BadPicture(f"its EXIF turns it, and it can't be turned ({error})", "save it upright") from None
    return sink.getvalue()


def _webp(image: Image.Image) -> bytes:
    # Known to Pillow from here on, which else loads all of its seventy formats to find it.
    from PIL import WebPImagePlugin  # noqa: F401

    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=72, method=1)
    return sink.getvalue()

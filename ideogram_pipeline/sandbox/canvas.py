"""What pictures are made of: soft-edged shapes, lines of text, and the PNG they end in.

What belongs here: drawing that knows nothing of requests. Shapes are kept, because the same few sizes come again and
again and drawing them costs more than using them.
"""

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255 each."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""

_OVERSAMPLED = 3
_HEAD = 8 + 4 + 4 + 13 + 4  # bytes of a PNG's signature and first chunk, which notes may follow
_LINE = 1.28  # distance of two lines of text, in font sizes


@lru_cache(maxsize=48)
def rounded(width: int, height: int, radius: int, opacity: int = 255) -> Image.Image:
    """Mask of a box with round corners; a disc when the radius is half of both sides."""
    mask = Image.new("L", (width, height), opacity)
    if radius == 0:
        return mask
    large = radius * _OVERSAMPLED
    corner = Image.new("L", (large, large))
    ImageDraw.Draw(corner).ellipse((0, 0, 2 * large - 1, 2 * large - 1), fill=opacity)
    left = corner.reduce(_OVERSAMPLED)
    right = left.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for x, top in ((0, left), (width - radius, right)):
        mask.paste(top, (x, 0))
        mask.paste(top.transpose(Image.Transpose.FLIP_TOP_BOTTOM), (x, height - radius))
    return mask


@lru_cache(maxsize=16)
def arch(width: int, height: int) -> Image.Image:
    """Mask of a box with a round top and slightly round feet."""
    mask = rounded(width, height, width // 8).copy()
    mask.paste(rounded(width, 2 * width, width // 2).crop((0, 0, width, width)), (0, 0))
    return mask


@lru_cache(maxsize=16)
def _shadow(width: int, height: int, radius: int, blur: int, opacity: int) -> Image.Image:
    shrunk = 4  # nobody sees the difference once it is blurred
    small = Image.new("L", ((width + 4 * blur) // shrunk, (height + 4 * blur) // shrunk))
    inner = rounded(width // shrunk, height // shrunk, radius // shrunk, opacity)
    small.paste(inner, (2 * blur // shrunk, 2 * blur // shrunk))
    small = small.filter(ImageFilter.GaussianBlur(blur / shrunk))
    return small.resize((width + 4 * blur, height + 4 * blur), Image.Resampling.BILINEAR)


def fill_box(image: Image.Image, box: Box, radius: int, color: Color, opacity: int = 255) -> None:
    """Fill a box with round corners; it may reach over the edges."""
    width, height = box[2] - box[0], box[3] - box[1]
    radius = min(radius, width // 2, height // 2)
    _paste(image, box[:2], color, rounded(width, height, radius, opacity))


def fill_disc(
    image: Image.Image, center: tuple[int, int], diameter: int, color: Color, opacity: int = 255
) -> None:
    """Fill a disc; it may reach over the edges."""
    radius = max(diameter // 2, 1)
    x, y = center
    fill_box(image, (x - radius, y - radius, x + radius, y + radius), radius, color, opacity)


def cast_shadow(image: Image.Image, box: Box, radius: int, blur: int, opacity: int) -> None:
    """Darken the surroundings of a box."""
    width, height = box[2] - box[0], box[3] - box[1]
    mask = _shadow(width, height, radius, blur, opacity)
    _paste(image, (box[0] - 2 * blur, box[1] - 2 * blur + blur // 2), (0, 0, 0), mask)


def _paste(image: Image.Image, at: tuple[int, int], color: Color, mask: Image.Image) -> None:
    """Paste a colour; Pillow itself takes no mask that reaches over the edges."""
    x, y = at
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + mask.width, image.width), min(y + mask.height, image.height)
    if left < right and top < bottom:
        image.paste(color, (left, top), mask.crop((left - x, top - y, right - x, bottom - y)))


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font. Raises RuntimeError when Pillow was built without FreeType."""
    loaded = ImageFont.load_default(size)
    if not isinstance(loaded, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow has no FreeType support; install one of its published wheels.")
    return loaded


@lru_cache(maxsize=8)
def wrapped(text: str, size: int, width: int, most: int) -> tuple[str, ...]:
    """The text in at most so many lines, no line wider than ``width``; what does not fit ends in an ellipsis."""
    measure = font(size).getlength
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if measure(longer) <= width:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] = shortened(f"{longer}\u2026", size, width)
            break
        else:
            lines = [*filter(None, lines), shortened(word, size, width)]
    return tuple(lines)


def shortened(text: str, size: int, width: int) -> str:
    """The text, cut so that it is no wider than ``width``, with an ellipsis where it was cut."""
    measure = font(size).getlength
    if measure(text) <= width:
        return text
    text = text.removesuffix("\u2026")
    fitting = bisect_left(
        range(len(text)), True, key=lambda length: measure(f"{text[:length]}\u2026") > width
    )
    return f"{text[: max(fitting - 1, 0)].rstrip()}\u2026"


def write(image: Image.Image, at: tuple[int, int], lines: Iterable[str], size: int, color: Color) -> int:
    """Write the lines below each other and answer where the next one would start."""
    pen = ImageDraw.Draw(image)
    x, y = at
    for line in lines:
        pen.text((x, y), line, font=font(size), fill=color)
        y += line_height(size)
    return y


def line_height(size: int) -> int:
    """Pixels from one line of text to the next."""
    return round(size * _LINE)


def png(image: Image.Image, notes: dict[str, str]) -> bytes:
    """The picture as a PNG with these text notes.

    Pillow tries all filters on each row. One filter and fast compression give about the same size for pictures of flat
    colours in a third of the time, and time is what a batch of them costs.
    """
    width, height = image.size
    flat = Image.frombytes("L", (3 * width, height), image.tobytes())
    above = Image.new("L", flat.size)
    above.paste(flat, (0, 1))
    rows = Image.new(
        "L", (3 * width + 1, height), 2
    )  # each row starts with its filter: 2, difference to above
    rows.paste(ImageChops.subtract_modulo(flat, above), (1, 0))
    whole = b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)),
            _chunk(b"IEND", b""),
        )
    )
    return annotated(whole, notes)


def annotated(png: bytes, notes: dict[str, str]) -> bytes:
    """The PNG with these text notes as well."""
    text = b"".join(
        # keyword, not compressed, no language, no translated keyword, UTF-8; a zero byte would end the text
        _chunk(b"iTXt", name.encode() + bytes(5) + value.replace("\0", "").encode("utf-8", "replace"))
        for name, value in notes.items()
    )
    return png[:_HEAD] + text + png[_HEAD:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

"""Contact sheets: several small pictures in one. One kind travels inside Dagster's metadata, one is printed."""

from __future__ import annotations

import io
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 47_900
"""As a data URI, a third longer for its base64, this stays below 64 kB."""
_CELL = 160
_GAP = 6
_COLUMNS = 6

_KINDS = ("WEBP", "PNG", "JPEG")
"""In the order in which they are tried: thumbnails first."""

A4 = (1240, 1754)
"""Pixels at 150 dpi."""
A_PAGE = 30
"""So many pictures stand on a printed page: six rows of five."""
_PAGE_COLUMNS = 5
_MARGIN, _HEADER, _BETWEEN, _CAPTION = 60, 60, 14, 58
_WIDTH = (A4[0] - 2 * _MARGIN - (_PAGE_COLUMNS - 1) * _BETWEEN) // _PAGE_COLUMNS
_ROW = (A4[1] - 2 * _MARGIN - _HEADER) * _PAGE_COLUMNS // A_PAGE


def contact_sheet(pictures: Sequence[bytes]) -> bytes:
    """Return a WebP with the pictures in rows of six, at most `MAX_BYTES` long.

    Raises:
        ValueError: there are no pictures.
    """
    from PIL import Image

    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, rows * (_CELL + _GAP) + _GAP), "white")
    for position, content in enumerate(pictures):
        row, column = divmod(position, columns)
        place = (_GAP + column * (_CELL + _GAP), _GAP + row * (_CELL + _GAP))
        sheet.paste(_tile(content, (_CELL, _CELL)), place)
    while True:
        for quality in (70, 50, 30, 10):
            sink = io.BytesIO()
            sheet.save(sink, "WEBP", quality=quality, method=4)
            if sink.tell() <= MAX_BYTES:
                return sink.getvalue()
        sheet = sheet.reduce(2)


def printed_tile(thumbnail: bytes) -> Image.Image:
    """Return a small picture as it stands on a printed page."""
    return _tile(thumbnail, (_WIDTH, _ROW - _CAPTION - _BETWEEN))


def printed_sheets(title: str, tiles: Iterable[tuple[Image.Image, str]], *, count: int) -> Iterator[bytes]:
    """Yield JPEG pages of A4 at 150 dpi with the first `count` pictures and their captions, one page in memory.

    A caption's first line is the picture's name; the rest is cut to the two lines that there is room for.
    """
    from PIL import Image

    pages = math.ceil(count / A_PAGE)
    page = Image.new("RGB", A4)  # one for all: a new one each time leaves holes in memory
    fonts = [_Lettering(size) for size in (26, 15, 14)]
    for number, group in enumerate(_groups(islice(tiles, count)), 1):
        yield _printed(page, fonts, title, f"{number} of {pages}", group)


def _printed(
    page: Image.Image,
    fonts: Sequence[_Lettering],
    title: str,
    number: str,
    tiles: Iterable[tuple[Image.Image, str]],
) -> bytes:
    from PIL import ImageDraw

    page.paste("white", (0, 0, *A4))
    draw = ImageDraw.Draw(page)
    headline, names, small = fonts
    draw.text((_MARGIN, _MARGIN - 10), _fitting(title, headline, 900), "#1c1d20", headline.font)
    draw.text((A4[0] - _MARGIN, _MARGIN - 2), number, "#63666d", names.font, anchor="ra")
    for position, (tile, caption) in enumerate(tiles):
        row, column = divmod(position, _PAGE_COLUMNS)
        left, top = _MARGIN + column * (_WIDTH + _BETWEEN), _MARGIN + _HEADER + row * _ROW
        page.paste(tile, (left, top))
        name, _, text = caption.partition("\n")
        below = top + tile.height + 4
        draw.text((left, below), _fitting(name, names, _WIDTH), "#1c1d20", names.font)
        for line, words in enumerate(_lines(text, small, _WIDTH)):
            draw.text((left, below + 19 + 17 * line), words, "#63666d", small.font)
    sink = io.BytesIO()
    page.save(sink, "JPEG", quality=80, dpi=(150, 150))
    return sink.getvalue()


def _groups(tiles: Iterable[tuple[Image.Image, str]]) -> Iterator[list[tuple[Image.Image, str]]]:
    waiting = iter(tiles)
    while group := list(islice(waiting, A_PAGE)):
        yield group


def _tile(content: bytes, size: tuple[int, int]) -> Image.Image:
    """Return a small picture padded to a size; nothing but padding where it can't be opened."""
    # Known to Pillow from here on, which else loads all of its seventy formats to find it.
    from PIL import Image, ImageOps, WebPImagePlugin  # noqa: F401

    try:
        small = Image.open(io.BytesIO(content), formats=_KINDS).convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return Image.new("RGB", size, "#eeeeee")
    return ImageOps.pad(small, size, method=Image.Resampling.BILINEAR, color="#eeeeee")


def _lines(text: str, font: _Lettering, width: int) -> list[str]:
    """Return at most two lines."""
    words = text[:200].split()
    fits = _longest(len(words), lambda count: font.width(" ".join(words[:count])) <= width)
    rest = _fitting(" ".join(words[fits:]), font, width)
    return [line for line in (" ".join(words[:fits]), rest) if line]


def _fitting(text: str, font: _Lettering, width: int) -> str:
    text = " ".join(text[:200].split())
    if font.width(text) <= width:
        return text
    fits = _longest(len(text), lambda count: font.width(f"{text[:count]}…") <= width)
    return f"{text[:fits]}…"


def _longest(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `count` that fits, where none fits beyond one that doesn't."""
    return bisect_left(range(1, count + 1), True, key=lambda number: not fits(number))


class _Lettering:
    """A font, and how wide its letters are, kerning aside; each is measured once."""

    def __init__(self, size: int) -> None:
        from PIL import ImageFont

        self.font = ImageFont.load_default(size)
        self._widths: dict[str, float] = {}

    def width(self, text: str) -> float:
        """Return the pixels that a text takes."""
        for letter in set(text) - self._widths.keys():
            self._widths[letter] = self.font.getlength(letter)
        return sum(self._widths[letter] for letter in text)

"""Contact sheets: several small pictures in one. One kind travels inside Dagster's metadata, one is printed."""

from __future__ import annotations

import io
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

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


def printed_sheets(title: str, pictures: Iterable[tuple[bytes, str]], *, count: int) -> Iterator[bytes]:
    """Yield JPEG pages of A4 at 150 dpi with the first `count` pictures and their captions, one page in memory.

    A caption's first line is the picture's name; the rest is cut to the two lines that there is room for.
    """
    from PIL import Image

    pages = math.ceil(count / A_PAGE)
    page = Image.new("RGB", A4)  # one for all: a new one each time leaves holes in memory
    for number, group in enumerate(_groups(islice(pictures, count)), 1):
        yield _printed(page, title, f"{number} of {pages}", group)


def _printed(page: Image.Image, title: str, number: str, pictures: Iterable[tuple[bytes, str]]) -> bytes:
    from PIL import ImageDraw, ImageFont

    fonts = [ImageFont.load_default(size) for size in (26, 15, 14)]
    page.paste("white", (0, 0, *A4))
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN - 10), _fitting(draw, title, fonts[0], 900), "#1c1d20", fonts[0])
    draw.text((A4[0] - _MARGIN, _MARGIN - 2), number, "#63666d", fonts[1], anchor="ra")
    for position, (content, caption) in enumerate(pictures):
        row, column = divmod(position, _PAGE_COLUMNS)
        left, top = _MARGIN + column * (_WIDTH + _BETWEEN), _MARGIN + _HEADER + row * _ROW
        height = _ROW - _CAPTION - _BETWEEN
        page.paste(_tile(content, (_WIDTH, height)), (left, top))
        name, _, text = caption.partition("\n")
        below = top + height + 4
        draw.text((left, below), _fitting(draw, name, fonts[1], _WIDTH), "#1c1d20", fonts[1])
        for line, words in enumerate(_lines(draw, text, fonts[2], _WIDTH)):
            draw.text((left, below + 19 + 17 * line), words, "#63666d", fonts[2])
    sink = io.BytesIO()
    page.save(sink, "JPEG", quality=80, dpi=(150, 150))
    return sink.getvalue()


def _groups(pictures: Iterable[tuple[bytes, str]]) -> Iterator[list[tuple[bytes, str]]]:
    waiting = iter(pictures)
    while group := list(islice(waiting, A_PAGE)):
        yield group


def _tile(content: bytes, size: tuple[int, int]) -> Image.Image:
    from PIL import Image, ImageOps

    small = Image.open(io.BytesIO(content), formats=_KINDS).convert("RGB")
    return ImageOps.pad(small, size, method=Image.Resampling.BILINEAR, color="#eeeeee")


def _lines(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> list[str]:
    """Return at most two lines."""
    words = text[:200].split()
    fits = _longest(len(words), lambda count: draw.textlength(" ".join(words[:count]), font) <= width)
    rest = _fitting(draw, " ".join(words[fits:]), font, width)
    return [line for line in (" ".join(words[:fits]), rest) if line]


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    text = " ".join(text[:200].split())
    if draw.textlength(text, font) <= width:
        return text
    fits = _longest(len(text), lambda count: draw.textlength(f"{text[:count]}…", font) <= width)
    return f"{text[:fits]}…"


def _longest(count: int, fits: Callable[[int], bool]) -> int:
    """Return the largest number up to `count` that fits, where none fits beyond one that doesn't."""
    return bisect_left(range(1, count + 1), True, key=lambda number: not fits(number))

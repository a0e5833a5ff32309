"""Contact sheets: several small pictures in one, small enough to travel inside Dagster's metadata."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

MAX_BYTES = 47_900
"""As a data URI, a third longer for its base64, this stays below 64 kB."""
_CELL = 160
_GAP = 6
_COLUMNS = 6


def contact_sheet(pictures: Sequence[bytes]) -> bytes:
    """Return a WebP with the pictures in rows of six, at most `MAX_BYTES` long.

    Raises:
        ValueError: there are no pictures.
    """
    from PIL import Image, ImageOps

    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * (_CELL + _GAP) + _GAP, rows * (_CELL + _GAP) + _GAP), "white")
    for position, content in enumerate(pictures):
        row, column = divmod(position, columns)
        tile = ImageOps.pad(Image.open(io.BytesIO(content)).convert("RGB"), (_CELL, _CELL), color="#eeeeee")
        sheet.paste(tile, (_GAP + column * (_CELL + _GAP), _GAP + row * (_CELL + _GAP)))
    while True:
        for quality in (70, 50, 30, 10):
            sink = io.BytesIO()
            sheet.save(sink, "WEBP", quality=quality, method=4)
            if sink.tell() <= MAX_BYTES:
                return sink.getvalue()
        sheet = sheet.reduce(2)

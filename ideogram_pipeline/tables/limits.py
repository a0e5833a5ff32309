"""How large a table may be. It is held in memory as a whole, and a small file can unpack to a large table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ideogram_pipeline.errors import TableError

MAX_TABLE_BYTES = 1024 * 1024 * 1024
"""Of the file, and of all text in it once it is unpacked."""
MAX_ROWS = 2_000_000
MAX_COLUMNS = 16_384
"""As many as Excel has."""
MAX_CELLS = 50_000_000
"""In Parquet empty ones count too."""

_SPLIT = "Split the table, and give each part a pipeline and store of its own."


class Size:
    """How much of a table has been read."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._rows = self._cells = self._text = 0

    def count(self, cells: Mapping[str, Any]) -> None:
        """Count a row.

        Raises:
            TableError: the table is too large by now.
        """
        self._text += sum(len(cell) for cell in cells.values() if isinstance(cell, str))
        if self._text > MAX_TABLE_BYTES:
            raise TableError(
                f"{self._url}: its text takes more than {MAX_TABLE_BYTES // 1024**2} MiB. {_SPLIT}"
            )
        self._rows += 1
        self._cells += len(cells)
        check_size(self._url, rows=self._rows, cells=self._cells)


def check_size(url: str, *, rows: int = 0, columns: int = 0, cells: int = 0) -> None:
    """Check how many rows, columns and cells a table has.

    Raises:
        TableError: it has too many.
    """
    for found, most, what in (
        (columns, MAX_COLUMNS, "columns"),
        (rows, MAX_ROWS, "rows"),
        (cells, MAX_CELLS, "cells"),
    ):
        if found > most:
            hint = "Leave out what pictures don't need." if what == "columns" else _SPLIT
            raise TableError(f"{url}: it has more than {most:,} {what}, more than a table may have. {hint}")

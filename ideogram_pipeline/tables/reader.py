"""Raw rows out of CSV, JSONL, Parquet and Excel files, without judging their content.

CSV and JSONL are read record by record with the standard library, so that one malformed record is one rejected row and
no cell changes its type on the way; Parquet and Excel go through pandas.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ideogram_pipeline.errors import StoreError, TableError
from ideogram_pipeline.tables.sources import Sources

FIRST_RECORD_OF_A_SHEET = 2
"""In CSV and Excel the header is row 1, as a spreadsheet shows it. JSONL and Parquet records count from 1."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record as it was written."""

    number: int
    """Row number as a spreadsheet or editor shows it."""
    cells: dict[str, Any] = field(default_factory=dict)
    """Column name to value; empty cells are left out."""
    malformed: str | None = None
    """Why the record could not be taken apart, or None."""


def read_rows(url: str, *, required: tuple[str, ...]) -> list[RawRow]:
    """Return every record of a table, in order; wholly empty records are skipped.

    Raises:
        TableError: the file is missing, unreadable, of an unknown kind, or lacks a required column.
    """
    ending = PurePosixPath(url).suffix.lower()
    readers = {
        ".csv": _csv,
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".parquet": _parquet,
        ".xlsx": _excel,
    }
    if ending not in readers:
        raise TableError(
            f"{url}: tables end in .csv, .jsonl, .parquet or .xlsx; this one ends in {ending or 'nothing'!r}."
        )
    columns, rows = readers[ending](url, read_table(url))
    _check_columns(url, columns, required)
    return [row for row in rows if row.cells or row.malformed]


def read_table(url: str) -> bytes:
    """Return the bytes of a table.

    Raises:
        TableError: the file is missing or unreadable.
    """
    try:
        return Sources(url).table()
    except FileNotFoundError:
        raise TableError(
            f"{url}: there is no such file. Check the path, or set IDEOGRAM_PROMPTS / IDEOGRAM_REFERENCES."
        ) from None
    except OSError as error:
        raise TableError(f"{url}: the file can't be read ({error.strerror or error}).") from None
    except StoreError as error:
        raise TableError(f"{url}: the file can't be read. {error}") from None


def _check_columns(url: str, columns: list[str], required: tuple[str, ...]) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise TableError(f"{url}: the column {repeated[0]!r} stands in the header more than once.")
    missing = [column for column in required if column not in columns]
    if missing:
        separator = next((mark for mark in (";", "\t") if len(columns) == 1 and mark in columns[0]), None)
        hint = f" The file seems to be separated by {separator!r}; save it with commas." if separator else ""
        raise TableError(
            f"{url}: the column {missing[0]!r} is missing; found {', '.join(columns) or 'none'}.{hint}"
        )


def _text(url: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"{url}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x}). Save the file as UTF-8."
        ) from None


def _csv(url: str, content: bytes) -> tuple[list[str], Iterator[RawRow]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_text(url, content), newline=""), strict=True)
    try:
        records = list(reader)
    except csv.Error as error:
        raise TableError(f"{url}: line {reader.line_num} is not valid CSV ({error}).") from None
    return _sheet(records)


def _sheet(records: Sequence[Sequence[Any]]) -> tuple[list[str], Iterator[RawRow]]:
    header = [str(name).strip() for name in records[0]] if records else []
    return [name for name in header if name], _sheet_rows(header, records[1:])


def _sheet_rows(header: list[str], records: Sequence[Sequence[Any]]) -> Iterator[RawRow]:
    for number, record in enumerate(records, FIRST_RECORD_OF_A_SHEET):
        named = zip(header, record, strict=False)
        cells = {name: cell for name, cell in named if name and not _is_empty(cell)}
        surplus = any(not _is_empty(cell) for cell in record[len(header) :])
        problem = (
            f"it has {len(record)} cells where the header has {len(header)}; quote cells that hold commas"
        )
        yield RawRow(number, cells, problem if surplus else None)


def _jsonl(url: str, content: bytes) -> tuple[list[str], Iterator[RawRow]]:
    rows = [
        _json_row(number, line)
        for number, line in enumerate(_text(url, content).split("\n"), 1)
        if line.strip()
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    return columns, iter(rows)


def _json_row(number: int, line: str) -> RawRow:
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        return RawRow(number, malformed=f"it is not valid JSON ({error})")
    if not isinstance(record, dict):
        return RawRow(number, malformed="it is not a JSON object")
    return RawRow(number, {str(name).strip(): cell for name, cell in record.items() if not _is_empty(cell)})


def _parquet(url: str, content: bytes) -> tuple[list[str], Iterator[RawRow]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
        records = table.to_pylist()
    except Exception as error:  # Arrow raises its own, OSError, UnicodeDecodeError and others, by the damage
        raise TableError(f"{url}: the file is not readable Parquet ({error}).") from None
    return [name.strip() for name in table.column_names], _parquet_rows(records)


def _parquet_rows(records: list[dict[str, Any]]) -> Iterator[RawRow]:
    for number, record in enumerate(records, 1):
        yield RawRow(
            number, {str(name).strip(): cell for name, cell in record.items() if not _is_empty(cell)}
        )


def _excel(url: str, content: bytes) -> tuple[list[str], Iterator[RawRow]]:
    import pandas as pd

    try:
        # Without its own header and missing values pandas renames no column and takes no "NA" for an empty cell.
        frame = pd.read_excel(
            io.BytesIO(content), header=None, keep_default_na=False, dtype=object, engine="openpyxl"
        )
    except Exception as error:  # openpyxl raises zipfile, KeyError, ValueError and its own, by the damage
        raise TableError(f"{url}: the file is not a readable Excel workbook ({error}).") from None
    return _sheet(list(frame.itertuples(index=False, name=None)))


def _is_empty(cell: object) -> bool:
    return (
        cell is None
        or (isinstance(cell, str) and not cell.strip())
        or (isinstance(cell, float) and math.isnan(cell))
    )

"""Raw rows out of CSV, TSV, JSONL, Parquet and Excel files, without judging their content.

Every format is read record by record, so that one malformed record is one rejected row, no cell changes its type on the
way, and a table that is too large ends in one error before it fills the memory.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from ideogram_pipeline.errors import StoreError, TableError
from ideogram_pipeline.tables.cells import cell_of
from ideogram_pipeline.tables.limits import Size, check_size
from ideogram_pipeline.tables.sources import Sources

if TYPE_CHECKING:
    from _csv import Reader

    from pyarrow import Array
    from pyarrow.parquet import ParquetFile

_log = logging.getLogger(__name__)

FIRST_RECORD_OF_A_SHEET = 2
"""In CSV, TSV and Excel the header is row 1, as a spreadsheet shows it. JSONL and Parquet records count from 1."""

_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz")
_OTHER_SHEETS = (".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""What pandas calls the numbers of rows that a filtered frame has kept. They are no column of the table."""


PARQUET_ROWS = 256
"""So many rows of Parquet are unpacked at once: one text can stand in all of them, and takes next to nothing packed."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record as it was written."""

    number: int
    """Row number as a spreadsheet or editor shows it."""
    cells: dict[str, Any] = field(default_factory=dict)
    """Column name to value, as JSON has it, or a `BadCell`; empty cells are left out."""
    malformed: str | None = None
    """Why the record could not be taken apart, or None."""


class Read(NamedTuple):
    """What a file holds."""

    columns: list[str]
    """The columns that have a name, in order."""
    rows: Iterator[RawRow]
    """The records, empty ones too."""
    unread: str = ""
    """What else there is that isn't read, as a sentence; or empty."""


def read_rows(url: str, *, required: tuple[str, ...]) -> list[RawRow]:
    """Return every record of a table, in order; wholly empty records are skipped.

    Raises:
        TableError: the file is missing, unreadable, too large (`limits`), of an unknown kind, or lacks a required
            column.
    """
    read = _reader_of(url)
    found = read(url, read_table(url))
    _check_columns(url, found, required)
    if found.unread:
        _mention(url, found.unread)
    size = Size(url)
    rows = []
    for row in found.rows:
        if row.cells or row.malformed:
            size.count(row.cells)
            rows.append(row)
    return rows


def _reader_of(url: str) -> Callable[[str, bytes], Read]:
    name = PurePosixPath(url.rstrip("/"))
    ending = name.suffix.lower()
    readers: Mapping[str, Callable[[str, bytes], Read]] = {
        ".csv": partial(_csv, separator=","),
        ".tsv": partial(_csv, separator="\t"),
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".parquet": _parquet,
        ".xlsx": _excel,
    }
    if ending == ".gsheet" or "docs.google.com/" in url:
        hint = (
            "a Google Sheet can't be read from where it is; download it (File, Download) as .csv or .xlsx, and name "
            "that file"
        )
    elif url.lower().startswith(("http://", "https://")):
        hint = "a table isn't fetched from the web; download it and name the file, or put it into a bucket (s3://...)"
    elif url.endswith("/") or ("://" not in url and Path(url).is_dir()):
        hint = (
            "it is a folder, and a table is one file; put parts together first, such as with "
            "`pandas.read_parquet(folder).to_parquet('prompts.parquet')`"
        )
    elif ending in _PACKED:
        inside = f", {name.stem}" if "." in name.stem else ""
        hint = f"it is packed; unpack it, and name the table that is in it{inside}"
    elif ending in _OTHER_SHEETS:
        hint = "open it in a spreadsheet program and save it as .xlsx or .csv"
    elif ending == ".json":
        hint = "save it with one object a line, as .jsonl"
    elif ending in readers:
        return readers[ending]
    else:
        hint = f"tables end in {', '.join(readers)}; this one ends in {ending or 'nothing'!r}"
    raise TableError(f"{url}: {hint}.")


def read_table(url: str) -> bytes:
    """Return the bytes of a table.

    Raises:
        TableError: the file is missing, unreadable or of an unknown kind.
    """
    _reader_of(url)
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


def _check_columns(url: str, read: Read, required: tuple[str, ...]) -> None:
    columns = read.columns
    check_size(url, columns=len(columns))
    if repeated := [column for column, times in Counter(columns).items() if times > 1]:
        raise TableError(f"{url}: the column {min(repeated)!r} stands in the header more than once.")
    missing = [column for column in required if column not in columns]
    if missing:
        separator = next(
            (mark for mark in (";", "\t", ",") if len(columns) == 1 and mark in columns[0]), None
        )
        wanted = "tabs" if url.lower().endswith(".tsv") else "commas"
        hint = (
            f" The file seems to be separated by {separator!r}; save it with {wanted}." if separator else ""
        )
        found = ", ".join(columns[:40]) + (", …" if len(columns) > 40 else "")
        unread = f" {read.unread}" if read.unread else ""
        raise TableError(
            f"{url}: the column {missing[0]!r} is missing; found {found or 'none'}.{hint}{unread}"
        )


def _text(url: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TableError(
            f"{url}: line {line} is not UTF-8 (byte 0x{content[error.start]:02x}). Save the file as UTF-8."
        ) from None


def _csv(url: str, content: bytes, separator: str) -> Read:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_text(url, content), newline=""), strict=True, delimiter=separator)
    records = _csv_records(url, reader)
    header = [name.strip() for name in next(records, ())]

    def rows() -> Iterator[RawRow]:
        for number, record in enumerate(records, FIRST_RECORD_OF_A_SHEET):
            beyond = (
                f"it has {len(record)} cells where the header has {len(header)}; quote cells that hold "
                f"{'tabs' if separator != ',' else 'commas'}"
            )
            yield _row(number, header, enumerate(record), beyond)

    return Read(_named(header), rows())


def _csv_records(url: str, reader: Reader) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise TableError(f"{url}: line {reader.line_num} is not valid CSV ({error}).") from None


def _named(header: Iterable[str]) -> list[str]:
    return [name for name in header if name]


def _row(number: int, header: Sequence[str], cells: Iterable[tuple[int, Any]], beyond: str) -> RawRow:
    """Name the cells of a record, given by their place, and say what is wrong where one lies `beyond` the header."""
    named: dict[str, Any] = {}
    malformed = None
    for place, written in cells:
        cell = cell_of(written)
        if cell is None:
            continue
        if place >= len(header):
            malformed = beyond
        elif header[place]:
            named[header[place]] = cell
    return RawRow(number, named, malformed)


def _jsonl(url: str, content: bytes) -> Read:
    columns: dict[str, None] = {}
    rows = []
    size = Size(url)
    for number, line in enumerate(_text(url, content).split("\n"), 1):
        if line.strip():
            names, row = _json_row(number, line)
            rows.append(row)
            size.count(row.cells)
            columns.update(dict.fromkeys(names))
            check_size(url, columns=len(columns))
    return Read(list(columns), iter(rows))


def _json_row(number: int, line: str) -> tuple[list[str], RawRow]:
    """Return the names in a record, also of what is empty, and the record."""
    try:
        record = json.loads(line)
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except (ValueError, RecursionError) as error:
        return [], RawRow(number, malformed=f"it is not valid JSON ({error})")
    if not isinstance(record, dict):
        return [], RawRow(number, malformed="it is not a JSON object")
    names = [str(name).strip() for name in record]
    return _named(names), _row(number, names, enumerate(record.values()), "")


def _parquet(url: str, content: bytes) -> Read:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        names = [name.strip() for name in file.schema_arrow.names]
        count = file.metadata.num_rows
    except Exception as error:  # Arrow raises its own, OSError, UnicodeDecodeError and others, by the damage
        raise _no_parquet(url, error) from None
    check_size(url, rows=count, columns=len(names))
    check_size(url, cells=count * len(names))
    header = ["" if _PANDAS_INDEX.fullmatch(name) else name for name in names]
    return Read(_named(header), _parquet_rows(url, header, file))


def _parquet_rows(url: str, header: list[str], file: ParquetFile) -> Iterator[RawRow]:
    number = 0
    try:
        for part in file.iter_batches(batch_size=PARQUET_ROWS, use_threads=False):
            columns = [_values(column) for column in part.columns]
            for record in zip(*columns, strict=True):
                number += 1
                yield _row(number, header, enumerate(record), "")
    except Exception as error:
        raise _no_parquet(url, error) from None


def _values(column: Array[Any]) -> list[Any]:
    import pyarrow as pa

    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # a date beyond Python's calendar, which would cost the other rows
        return column.cast(pa.string()).to_pylist()


def _no_parquet(url: str, error: Exception) -> TableError:
    return TableError(f"{url}: the file is not readable Parquet ({error}).")


def _excel(url: str, content: bytes) -> Read:
    from openpyxl.utils import get_column_letter

    from ideogram_pipeline.tables.excel import first_sheet

    sheet = first_sheet(url, content)
    others = ", ".join(map(repr, sheet.others))
    unread = f"Only the first sheet is read, {sheet.name!r}, not {others}." if others else ""
    first = sheet.rows.pop(1, {})
    header = [str(first.get(column, "")).strip() for column in range(1, max(first, default=0) + 1)]

    def rows() -> Iterator[RawRow]:
        for number, record in sorted(sheet.rows.items()):
            last = f"{get_column_letter(max(record))}{number}"
            beyond = (
                f"the cell {last} is filled, and its column has no name in the header; clear it or name it"
            )
            yield _row(number, header, ((column - 1, cell) for column, cell in record.items()), beyond)

    return Read(_named(header), rows(), unread)


@cache
def _mention(url: str, unread: str) -> None:
    """Say once what is not read."""
    _log.warning("%s: %s", url, unread)

"""Tables as files, in each of the formats people write."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from openpyxl import Workbook

Record = Mapping[str, str]

_NO_XML = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
"""What Excel writes as `_x000D_`: what XML can't hold, and the start of a text that looks like that."""


def _csv(records: Sequence[Record], columns: Sequence[str], separator: str = ",") -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, columns, restval="", delimiter=separator)
    writer.writeheader()
    writer.writerows(records)
    return sink.getvalue().encode()


def _jsonl(records: Sequence[Record], columns: Sequence[str]) -> bytes:
    return "\n".join(json.dumps(dict.fromkeys(columns) | dict(row)) for row in records).encode()


def _parquet(records: Sequence[Record], columns: Sequence[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    schema = pa.schema([(column, pa.string()) for column in columns])
    pq.write_table(pa.Table.from_pylist(list(records), schema=schema), sink)
    return sink.getvalue().to_pybytes()


def _excel(records: Sequence[Record], columns: Sequence[str]) -> bytes:
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.worksheets[0]
    for row, record in enumerate([dict(zip(columns, columns, strict=True)), *records], 1):
        for column, name in enumerate(columns, 1):
            cell = sheet.cell(row, column)
            cell._value = _NO_XML.sub(lambda found: f"_x{ord(found[0]):04X}_", record.get(name) or "") or None
            if cell.value is not None:
                cell.data_type = "s"  # text, even where it looks like a formula or an error
    return as_workbook(book)


def as_workbook(book: Workbook) -> bytes:
    """Return the bytes of an Excel workbook."""
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


FORMATS: Mapping[str, Callable[[Sequence[Record], Sequence[str]], bytes]] = {
    "csv": _csv,
    "tsv": partial(_csv, separator="\t"),
    "jsonl": _jsonl,
    "parquet": _parquet,
    "xlsx": _excel,
}


@pytest.fixture(scope="session", params=FORMATS)
def as_table(request: pytest.FixtureRequest) -> Callable[..., tuple[str, bytes]]:
    """Encode records of texts in one format; return the format's ending and the bytes."""

    def encode(records: Sequence[Record], columns: Sequence[str]) -> tuple[str, bytes]:
        return request.param, FORMATS[request.param](records, columns)

    return encode


@pytest.fixture(scope="session")
def formats() -> Mapping[str, Callable[[Sequence[Record], Sequence[str]], bytes]]:
    """Every format, by its ending, as a function that encodes records of texts with these columns."""
    return FORMATS


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Write a file and return its path."""

    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file

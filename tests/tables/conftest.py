"""Tables as files, in each of the formats people write."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

Record = Mapping[str, str]


def _csv(records: Sequence[Record], columns: Sequence[str]) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, columns, restval="")
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
            cell = sheet.cell(row, column, record.get(name) or None)
            if cell.value is not None:
                cell.data_type = "s"  # text, even where it looks like a formula or an error
    sink = io.BytesIO()
    book.save(sink)
    return sink.getvalue()


FORMATS: Mapping[str, Callable[[Sequence[Record], Sequence[str]], bytes]] = {
    "csv": _csv,
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


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Write a file and return its path."""

    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file

"""Parquet in and out of the store, with schemas declared once: as pydantic models.

A model's fields give the columns: names, types, nullability and, as column metadata, their descriptions.

Nothing here makes Arrow values of Python objects, one by one or by Arrow's expressions: that loads pandas, which takes
30 MB and a tenth of a small run.
"""

from __future__ import annotations

import io
import os
import types
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, groupby, islice
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel

from ideogram_pipeline.errors import DamagedFile
from ideogram_pipeline.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# What a large batch's tables took, the system gets back; Arrow's own pools keep it. Read when pyarrow is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
# pyarrow loads NumPy, whose algebra would keep a thread per core waiting for work that never comes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

Row = TypeVar("Row", bound=BaseModel)


View = TypeVar("View", bound=NamedTuple)

_ROW_GROUP = 500
"""Rows of a row group."""
_AT_ONCE = 100
"""Rows that are Python objects at a time."""
_FEW = 8
"""Rows that take about as much memory as objects as their file would."""


class Column(NamedTuple):
    """A column as a model declares it."""

    name: str
    """The field's name."""
    type: str
    """The type of its values, as Arrow calls it: `string`, `int64`, `double`, `bool`, `timestamp[us, tz=UTC]`."""
    is_list: bool
    """Whether a cell holds several of them."""
    nullable: bool
    """Whether a cell may be empty."""
    description: str
    """The field's description."""


def columns(model: type[BaseModel]) -> list[Column]:
    """Return the columns of a model: `str`, `int`, `float`, `bool`, `datetime` (UTC, µs), tuples of these, None.

    Raises:
        TypeError: a field has a type for which no column type is declared.
    """
    return [
        Column(name, *_column(field.annotation), field.description or "")
        for name, field in model.model_fields.items()
    ]


def arrow_schema(model: type[BaseModel]) -> pa.Schema:
    """Return the Arrow schema of a model's columns.

    Raises:
        TypeError: a field has a type for which no column type is declared.
    """
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {
        "string": pa.string(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "timestamp[us, tz=UTC]": pa.timestamp("us", tz="UTC"),
    }
    fields = []
    for column in columns(model):
        kind = kinds[column.type]
        metadata = {"description": column.description} if column.description else None
        cell = pa.list_(kind) if column.is_list else kind
        fields.append(pa.field(column.name, cell, nullable=column.nullable, metadata=metadata))
    return pa.schema(fields)


def encode(model: type[Row], rows: Iterable[Row], *, row_group_size: int = _ROW_GROUP) -> bytes:
    """Return the rows as one Parquet file. Numbers have to be finite: others leave a cell empty."""

    schema = arrow_schema(model)
    waiting = iter(rows)

    def groups() -> Iterator[pa.Table]:
        while group := [row.model_dump_json() for row in islice(waiting, row_group_size)]:
            yield table_of(schema, group)

    return encode_tables(schema, groups())


def encode_tables(schema: pa.Schema, tables: Iterable[pa.Table]) -> bytes:
    """Return tables of one schema as one Parquet file, a row group each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table_of(schema: pa.Schema, objects: Iterable[str]) -> pa.Table:
    """Return JSON objects as a table: a fifth of the time that Python objects take."""
    import pyarrow as pa
    from pyarrow import json

    lines = "\n".join(objects).encode()
    table = json.read_json(
        io.BytesIO(lines),
        read_options=json.ReadOptions(use_threads=False, block_size=len(lines) + 1),
        parse_options=json.ParseOptions(explicit_schema=schema),
    )
    # which columns may be empty is lost on the way
    return pa.Table.from_arrays(table.columns, schema=schema)


def write(store: Store, path: str, model: type[Row], rows: Iterable[Row]) -> bytes:
    """Write the rows as one Parquet file, whole or not at all, and return the bytes written."""
    content = encode(model, rows)
    store.put(path, content)
    return content


class Rows(Collection[Row]):
    """The rows of one Parquet file that was written from a model, decoded anew each time they are gone through.

    A row as an object takes ten times the memory it takes here; but a file of a few rows takes more than they do, and
    the time of a hundred. So a few are kept as they are, until somebody asks for their file.
    """

    def __init__(self, content: bytes, model: type[Row], where: str = "") -> None:
        """Take a file's bytes for rows; `where` it lies is empty for one that was not read."""
        self._content: bytes | None = content
        self._few: tuple[Row, ...] | None = None
        self.model = model
        """What each row is."""
        self.where = where
        """Where the file lies; empty for one that was not read."""

    @classmethod
    def of(cls, model: type[Row], rows: Iterable[Row]) -> Rows[Row]:
        """Return rows as their file would hold them."""
        waiting = iter(rows)
        first = tuple(islice(waiting, _FEW + 1))
        if len(first) > _FEW:
            return cls(encode(model, chain(first, waiting)), model)
        found = cls(b"", model)
        found._content, found._few = None, first
        return found

    @property
    def content(self) -> bytes:
        """The file."""
        if self._content is None:
            self._content = encode(self.model, self._few or ())
        return self._content

    def __eq__(self, other: object) -> bool:
        """Say whether others are the same rows."""
        return isinstance(other, Rows) and (self.model, self.content) == (other.model, other.content)

    def __hash__(self) -> int:
        """Hash the file."""
        return hash(self.content)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in the file's order."""
        if self._few is not None:
            yield from self._few
            return
        with _readable(self.where):
            yield from _decoded(self.model, self.file().iter_batches(batch_size=_AT_ONCE, use_threads=False))

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._few) if self._few is not None else int(self.file().metadata.num_rows)

    def __contains__(self, row: object) -> bool:
        """Say whether a row is among them; goes through all."""
        return any(row == one for one in self)

    def file(self) -> pq.ParquetFile:
        """Return the file, opened.

        Raises:
            DamagedFile: it is none.
        """
        return _opened(self.content, self.where)


def _opened(content: bytes, where: str) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _readable(where):
        # Without threads: one that still runs when the process ends aborts it.
        return pq.ParquetFile(pa.BufferReader(content), pre_buffer=False)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    """Say of a file that can't be read which it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # Arrow's errors are of both
        line = str(error).strip().split("\n", 1)[0]
        raise DamagedFile(
            f"The file {where!r} is damaged: {line}. `ideogram-pipeline rebuild` makes what is derived anew, and a run "
            "what it reads of the tables."
        ) from None


def rows(
    store: Store, path: str, model: type[Row], *, where: tuple[str, Collection[str]] | None = None
) -> Rows[Row]:
    """Return the rows of a Parquet file that was written from `model`, or its like of an earlier version.

    `where` is as in `read`.

    Raises:
        DamagedFile: it is none.
    """
    if where is None:
        found_rows = Rows(store.get(path), model, store.where(path))
        found_rows.file()
        return found_rows
    import pyarrow as pa

    schema = arrow_schema(model)
    found = (pa.Table.from_batches([batch]) for batch in _batches(store, path, where, _ROW_GROUP))
    with _readable(store.where(path)):
        return Rows(encode_tables(schema, (_fitted(table, model, schema) for table in found)), model)


def _fitted(table: pa.Table, model: type[BaseModel], schema: pa.Schema) -> pa.Table:
    """Return a table with a model's columns; those that an earlier version didn't write hold their defaults."""
    import pyarrow as pa

    def column(field: pa.Field[Any]) -> Any:
        said = model.model_fields[field.name]
        if field.name in table.column_names:
            return table[field.name]
        if said.is_required():
            raise ValueError(f"it has no column {field.name!r}")
        return pa.array([said.get_default(call_default_factory=True)] * table.num_rows, field.type)

    return pa.Table.from_arrays([column(field) for field in schema], schema=schema)


def view(store: Store, path: str, kind: type[View]) -> list[View]:
    """Return the columns that are a named tuple's fields, a tuple a row: cheap where few of many are looked at.

    A column that a file of an earlier version doesn't have is None in every row.
    """
    names = list(kind._fields)
    file = _opened(store.get(path), store.where(path))
    with _readable(store.where(path)):
        found = file.read(columns=names, use_threads=False)
    absent = [None] * found.num_rows
    cells = zip(
        *(found[name].to_pylist() if name in found.column_names else absent for name in names), strict=True
    )
    return [kind._make(row) for row in cells]


def read(
    store: Store, path: str, model: type[Row], *, where: tuple[str, Collection[str]] | None = None
) -> Iterator[Row]:
    """Yield the rows of a Parquet file that was written from `model`.

    `where` keeps the rows whose column has one of some values; row groups that can't hold any are skipped. Few rows are
    in memory at a time.
    """
    with _readable(store.where(path)):
        yield from _decoded(model, _batches(store, path, where, _AT_ONCE))


def tables(store: Store, path: str) -> Iterator[pa.Table]:
    """Yield a Parquet file as Arrow tables of some rows each."""
    import pyarrow as pa

    file = _opened(store.get(path), store.where(path))
    with _readable(store.where(path)):
        for part in file.iter_batches(batch_size=2_000, use_threads=False):
            yield pa.Table.from_batches([part])


def _decoded(model: type[Row], batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    import pyarrow as pa

    for batch in batches:
        times_as_text = [
            field.with_type(pa.string()) if pa.types.is_timestamp(field.type) else field
            for field in batch.schema
        ]
        for row in batch.cast(pa.schema(times_as_text)).to_pylist():
            yield model.model_validate(row)


def _batches(
    store: Store, path: str, where: tuple[str, Collection[str]] | None, batch_size: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows, at most `batch_size` at a time."""
    import pyarrow as pa

    file = _opened(store.get(path), store.where(path))
    if where is None:
        yield from file.iter_batches(batch_size=batch_size, use_threads=False)
        return
    name, values = where[0], frozenset(where[1])
    for batch in file.iter_batches(
        batch_size=batch_size, row_groups=list(_may_hold(file, name, values)), use_threads=False
    ):
        start, found = 0, []
        for kept, run in groupby(batch[name].to_pylist(), key=values.__contains__):
            length = len(list(run))
            if kept:
                found.append(batch.slice(start, length))
            start += length
        yield from pa.Table.from_batches(found, batch.schema).combine_chunks().to_batches()


def _may_hold(file: pq.ParquetFile, name: str, values: Collection[str]) -> Iterator[int]:
    """Yield the row groups that may hold one of the values in a column, by the least and the largest they have."""
    column, ascending = file.schema.names.index(name), sorted(values)
    for group in range(file.num_row_groups):
        known = file.metadata.row_group(group).column(column).statistics
        least, largest = (known.min, known.max) if known else (None, None)
        if isinstance(least, str) and isinstance(largest, str):
            first = bisect_left(ascending, least)
            if first == len(ascending) or ascending[first] > largest:
                continue
        yield group


_TYPES: dict[Any, str] = {
    str: "string",
    int: "int64",
    float: "double",
    bool: "bool",
    datetime: "timestamp[us, tz=UTC]",
}


def _column(annotation: Any) -> tuple[str, bool, bool]:
    """Return a column's type, whether it is a list, and whether it may be empty."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _column(arguments[0])
    if origin is Literal:
        return _column(type(arguments[0]))
    if origin in (Union, types.UnionType) and len(arguments) == 2 and arguments[1] is type(None):
        kind, is_list, _ = _column(arguments[0])
        return kind, is_list, True
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _column(arguments[0])[0], True, False
    if annotation not in _TYPES:
        raise TypeError(f"no column type is declared for {annotation!r}")
    return _TYPES[annotation], False, False

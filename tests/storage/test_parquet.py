"""Parquet: a model's fields are a file's columns, and rows come back as they were."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from ideogram_pipeline.errors import DamagedFile
from ideogram_pipeline.generation.rows import CatalogRow, ImageRow, OutcomeRow, PlannedRow
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection


class Sample(BaseModel):
    """One field of every kind that has a column type."""

    name: str = Field(description="What it is called.")
    count: int
    share: float
    here: bool
    state: Literal["open", "closed"]
    seen_at: datetime
    tags: tuple[str, ...]
    note: str | None = None
    limit: Annotated[int, Field(ge=0)] | None = None


SAMPLES = st.builds(
    Sample,
    name=st.text(),
    count=st.integers(-(2**63), 2**63 - 1),
    share=st.floats(allow_nan=False, allow_infinity=False),
    here=st.booleans(),
    state=st.sampled_from(["open", "closed"]),
    seen_at=st.datetimes(timezones=st.just(UTC)),
    tags=st.lists(st.text()).map(tuple),
    note=st.none() | st.text(),
    limit=st.none() | st.integers(0, 2**63 - 1),
)


def test_a_models_fields_are_the_columns():
    schema = parquet.arrow_schema(Sample)
    assert [(field.name, str(field.type), field.nullable) for field in schema] == [
        ("name", "string", False),
        ("count", "int64", False),
        ("share", "double", False),
        ("here", "bool", False),
        ("state", "string", False),
        ("seen_at", "timestamp[us, tz=UTC]", False),
        ("tags", "list<item: string>", False),
        ("note", "string", True),
        ("limit", "int64", True),
    ]


def test_a_field_without_a_column_type_is_an_error():
    class Loose(BaseModel):
        anything: dict[str, Any]

    with pytest.raises(TypeError, match="dict"):
        parquet.arrow_schema(Loose)


@given(rows=st.lists(SAMPLES, max_size=4))
def test_rows_come_back_as_they_were(rows):
    store = Store.open("memory://")
    parquet.write(store, "rows.parquet", Sample, rows)
    assert list(parquet.read(store, "rows.parquet", Sample)) == rows


@given(rows=st.lists(SAMPLES, max_size=3))
def test_the_same_rows_make_the_same_file(rows):
    assert parquet.encode(Sample, rows) == parquet.encode(Sample, rows)


@given(rows=st.lists(SAMPLES, max_size=8), row_group_size=st.integers(1, 4))
def test_where_keeps_the_rows_that_hold_the_value(rows, row_group_size):
    store = Store.open("memory://")
    store.put("rows.parquet", parquet.encode(Sample, rows, row_group_size=row_group_size))
    for column, values in (("state", ["open"]), ("name", ["", *(row.name for row in rows[::2])])):
        wanted = [row for row in rows if getattr(row, column) in values]
        assert list(parquet.read(store, "rows.parquet", Sample, where=(column, values))) == wanted
        assert list(parquet.rows(store, "rows.parquet", Sample, where=(column, values))) == wanted


def test_rows_that_lie_scattered_lie_together_in_what_is_kept(on_disk):
    rows = [
        Rejection(file="t.csv", row_number=number, row_id="r", batch="ab"[number % 2], column="", reason="no")
        for number in range(100)
    ]
    parquet.write(on_disk, "rows.parquet", Rejection, rows)
    kept = parquet.rows(on_disk, "rows.parquet", Rejection, where=("batch", ["b"]))
    assert list(kept) == rows[1::2]
    assert pq.ParquetFile(pa.BufferReader(kept.content)).num_row_groups == 1


def test_row_groups_that_can_not_hold_the_value_are_not_read(on_disk):
    """Here, because they are damaged."""
    samples = [
        Sample(
            name=name,
            count=1,
            share=0.5,
            here=True,
            state="open",
            seen_at=datetime(2026, 1, 1, tzinfo=UTC),
            tags=(),
        )
        for name in ("anna", "bert", "carl")
    ]
    content = bytearray(parquet.encode(Sample, samples, row_group_size=1))
    for group in (0, 2):
        column = pq.ParquetFile(pa.BufferReader(bytes(content))).metadata.row_group(group).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
        content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    on_disk.put("rows.parquet", bytes(content))
    assert list(parquet.read(on_disk, "rows.parquet", Sample, where=("name", ["bert"]))) == [samples[1]]
    with pytest.raises(DamagedFile, match=r"rows\.parquet"):
        list(parquet.read(on_disk, "rows.parquet", Sample, where=("name", ["anna"])))


def test_an_empty_file_has_its_columns(on_disk):
    parquet.write(on_disk, "rows.parquet", Sample, [])
    assert pq.read_schema(on_disk.where("rows.parquet")).names == list(Sample.model_fields)


@pytest.mark.parametrize(
    "model", [PromptRow, Reference, Rejection, PlannedRow, ImageRow, CatalogRow, OutcomeRow]
)
def test_every_column_of_every_file_says_what_it_means(model, on_disk):
    parquet.write(on_disk, "rows.parquet", model, [])
    schema: pa.Schema = pq.read_schema(on_disk.where("rows.parquet"))
    described = {field.name: (field.metadata or {}).get(b"description", b"").decode() for field in schema}
    assert described == {name: field.description for name, field in model.model_fields.items()}


def test_a_file_of_an_earlier_version_has_what_is_taken_for_empty_in_the_columns_it_lacks(on_disk):
    class Before(BaseModel):
        name: str
        gone: str

    class Now(BaseModel):
        name: str
        note: str | None = None
        tags: tuple[str, ...] = ()
        told: str = "{}"

    parquet.write(on_disk, "old.parquet", Before, [Before(name=name, gone="x") for name in "abc"])
    expected = [Now(name="a"), Now(name="c")]
    assert list(parquet.rows(on_disk, "old.parquet", Now, where=("name", ["a", "c"]))) == expected
    assert list(parquet.read(on_disk, "old.parquet", Now, where=("name", ["a", "c"]))) == expected
    assert len(list(parquet.rows(on_disk, "old.parquet", Now))) == 3

    class Later(BaseModel):
        name: str
        needed: str

    with pytest.raises(DamagedFile, match=r"old\.parquet"):
        list(parquet.rows(on_disk, "old.parquet", Later, where=("name", ["a"])))


@pytest.mark.parametrize("number", [0, 1, 8, 9])
@given(first=SAMPLES)
def test_rows_are_the_same_few_or_many_and_with_their_file(number, first):
    rows = [first.model_copy(update={"count": index}) for index in range(number)]
    held = parquet.Rows.of(Sample, iter(rows))
    read = parquet.Rows(held.content, Sample)
    assert held.content == parquet.encode(Sample, rows)
    assert list(held) == list(held) == list(read) == rows
    assert len(held) == len(read) == number
    assert held == read
    assert hash(held) == hash(read)
    assert held != parquet.Rows.of(Sample, [*rows, first])

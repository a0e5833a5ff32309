"""The columns of a table: those that count, those that are only kept, and those that were probably mistyped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import cache
from types import MappingProxyType

from pydantic import BaseModel

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.spelling import nearest
from ideogram_pipeline.tables.reader import RawRow


def columns_of(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the columns of a table that count, as people write them."""
    return tuple(
        field.alias or name
        for name, field in model.model_fields.items()
        if name not in ("row_number", "extra")
    )


def needed_by(model: type[BaseModel]) -> frozenset[str]:
    """Return the columns that no row of a table can be without."""
    return frozenset(field.alias or name for name, field in model.model_fields.items() if field.is_required())


@cache
def _counting(model: type[BaseModel], extra: frozenset[str]) -> frozenset[str]:
    needed = needed_by(model)
    return frozenset(column for column in columns_of(model) if column in needed or column not in extra)


def counting(model: type[BaseModel], extra: Collection[str]) -> frozenset[str]:
    """Return the columns that count in a table where those named in `extra` don't; what a row needs always does."""
    return _counting(model, frozenset(extra))


def refuse_mistyped(
    url: str,
    records: Iterable[RawRow],
    model: type[BaseModel],
    extra: Collection[str],
    other_names: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse a table with a column whose name is nearly that of one that counts: its cells would be left out silently.

    Columns named in `extra` are people's own. `other_names` are what one that counts is called elsewhere; they are
    refused where the table lacks it.

    Raises:
        TableError: there is one. Names the column that was probably meant, and the first row that has it filled.
    """
    first: dict[str, int] = {}
    for record in records:
        for column in record.cells:
            first.setdefault(column, record.number)
    known = columns_of(model)
    for column in sorted(first.keys() - known - set(extra), key=lambda one: first[one]):
        meant = nearest(column, known)
        if meant is None and other_names:
            other = column if column in other_names else nearest(column, other_names)
            meant = other_names[other] if other and other_names[other] not in first else None
        if meant is not None:
            raise TableError(
                f"{url}: there is no column {column!r} (filled in row {first[column]}); did you mean {meant!r}? "
                "Rename it; or, if it is your own, name it in IDEOGRAM_EXTRA_COLUMNS: it is then only kept with the "
                "metadata."
            )

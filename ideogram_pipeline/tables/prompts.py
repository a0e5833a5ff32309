"""The prompts table: every record becomes a typed row or a rejection."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from ideogram_pipeline.errors import ConfigurationError, TableError
from ideogram_pipeline.tables.cells import BadCell
from ideogram_pipeline.tables.reader import RawRow, read_rows
from ideogram_pipeline.tables.rows import (
    DEFAULT_BATCH,
    REJECTED_BATCH,
    PromptRow,
    Rejection,
    RowProblem,
    as_id,
    as_name,
    is_name,
    parse_row,
)

PROMPT_COLUMNS = tuple(
    field.alias or name
    for name, field in PromptRow.model_fields.items()
    if name not in ("row_number", "extra")
)
"""The columns of a prompts table that count, as people write them."""


@dataclass(frozen=True, slots=True)
class PromptsTable:
    """What a prompts table holds."""

    rows: tuple[PromptRow, ...]
    """The usable rows, in table order."""
    rejections: tuple[Rejection, ...]
    """The others, in table order, each in the batch it is shown in."""
    url: str = ""
    """Where it was read from."""

    @property
    def batches(self) -> list[str]:
        """The batches that hold a row or a rejection, in the order in which they first stand in the table."""
        places = [(row.row_number, row.batch) for row in self.rows]
        places += [(rejection.row_number, rejection.batch) for rejection in self.rejections]
        return list(dict.fromkeys(batch for _, batch in sorted(places)))


def read_prompts(url: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> PromptsTable:
    """Read a prompts table (CSV, TSV, JSONL, Parquet or Excel, by its ending); `defaults` fill cells that are empty.

    Raises:
        ConfigurationError: the defaults can't stand in the table.
        TableError: the file is missing or unreadable, has no `prompt_id` or `prompt` column, or repeats a `prompt_id`.
    """
    check_defaults(defaults)
    required = tuple(column for column in ("prompt_id", "prompt") if column not in defaults)
    records = read_rows(url, required=required)
    refuse_repeated_ids(url, "prompt_id", records)
    rows: list[PromptRow] = []
    rejections: list[Rejection] = []
    for written in records:
        record = replace(written, cells={**defaults, **written.cells})
        try:
            rows.append(parse_row(PromptRow, record))
        except RowProblem as problem:
            rejections.append(_rejection(url, record, problem))
    return PromptsTable(tuple(rows), tuple(rejections), url)


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Check values for empty cells as the cells would be.

    Raises:
        ConfigurationError: there is no such column, rows must not share it, or the value can't stand in it.
    """
    for column in defaults:
        if column not in PROMPT_COLUMNS:
            near = get_close_matches(column, PROMPT_COLUMNS, n=1)
            hint = f"was {near[0]!r} meant?" if near else f"the columns are {', '.join(PROMPT_COLUMNS)}."
            raise ConfigurationError(f"defaults: there is no column {column!r} in a prompts table; {hint}")
    if "prompt_id" in defaults:
        raise ConfigurationError("defaults: every row needs a prompt_id of its own; leave it out.")
    try:
        parse_row(PromptRow, RawRow(0, {**defaults, "prompt_id": "any"}))
    except RowProblem as problem:
        raise ConfigurationError(f"defaults: {problem.column}: {problem.reason}.") from None


def misspelt_columns(table: PromptsTable) -> list[str]:
    """Return a hint for each of the table's own columns whose name is nearly that of one that would count."""
    extra = {column for row in table.rows for column in json.loads(row.extra)}
    near = {
        column: get_close_matches(column.lower(), PROMPT_COLUMNS, n=1, cutoff=0.75)
        for column in sorted(extra)
    }
    return [
        f"the column {column!r} is only kept with the metadata; was {found[0]!r} meant?"
        for column, found in near.items()
        if found
    ]


def refuse_repeated_ids(url: str, column: str, records: list[RawRow]) -> None:
    """Raise a `TableError` that names the rows where an id stands more than once."""
    reading = as_id if column == "prompt_id" else as_name
    places: dict[str, list[str]] = defaultdict(list)
    for record in records:
        cell = record.cells.get(column)
        if cell is not None and not isinstance(cell, BadCell):
            places[str(reading(cell))].append(str(record.number))
    for value, rows in places.items():
        if len(rows) > 1:
            raise TableError(
                f"{url}: {column} {value!r} stands in rows {', '.join(rows[:5])}; ids must be unique."
            )


def _rejection(url: str, record: RawRow, problem: RowProblem) -> Rejection:
    batch = str(as_name(record.cells.get("batch", DEFAULT_BATCH)))
    return Rejection(
        file=url,
        row_number=record.number,
        row_id=str(record.cells.get("prompt_id", "")),
        batch=batch if is_name(batch) else REJECTED_BATCH,
        column=problem.column,
        reason=problem.reason,
    )

"""The prompts table: every record becomes a typed row or a rejection."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any

from ideogram_pipeline.errors import ConfigurationError, TableError
from ideogram_pipeline.spelling import nearest
from ideogram_pipeline.tables.cells import BadCell
from ideogram_pipeline.tables.columns import columns_of, refuse_mistyped
from ideogram_pipeline.tables.inputs import PICTURE_COLUMNS, problems_of_cells
from ideogram_pipeline.tables.reader import RawRow, read_rows
from ideogram_pipeline.tables.rows import (
    DEFAULT_BATCH,
    REJECTED_BATCH,
    Problem,
    PromptRow,
    Rejection,
    RowProblem,
    as_id,
    as_name,
    is_name,
    parse_row,
)

PROMPT_COLUMNS = columns_of(PromptRow)
"""The columns of a prompts table that count, as people write them."""
OTHER_NAMES: Mapping[str, str] = {
    **PICTURE_COLUMNS,
    "reference": "reference_id",
    "character_id": "reference_id",
    "character_reference_id": "reference_id",
    "reference_mask": "reference_mask_id",
    "style_reference": "style_reference_ids",
    "image": "image_id",
    "mask": "mask_id",
    "aspect_ratio": "image_size",
}
"""What people call some of them: as fal or Ideogram does, or without the `id`."""


@dataclass(frozen=True, slots=True)
class PromptsTable:
    """What a prompts table holds."""

    rows: tuple[PromptRow, ...]
    """The usable rows, in table order."""
    rejections: tuple[Rejection, ...]
    """The others, in table order, each in the batch it is shown in."""
    url: str = ""
    """Where it was read from."""
    rest: Mapping[int, PromptRow] = field(default_factory=dict, compare=False)
    """What is left of rejected rows without their bad cells, by row number; of some nothing is."""

    @property
    def batches(self) -> list[str]:
        """The batches that hold a row or a rejection, in the order in which they first stand in the table."""
        places = [(row.row_number, row.batch) for row in self.rows]
        places += [(rejection.row_number, rejection.batch) for rejection in self.rejections]
        return list(dict.fromkeys(batch for _, batch in sorted(places)))


def read_prompts(
    url: str,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    *,
    extra_columns: Collection[str] = (),
    paid_batches: Callable[[], Collection[str]] = tuple,
) -> PromptsTable:
    """Read a prompts table (CSV, TSV, JSONL, Parquet or Excel, by its ending); `defaults` fill cells that are empty.

    `extra_columns` are people's own, whatever they are called. `paid_batches` finds those that a store has rows of: one
    that an earlier version has called `2.0` stays that, because its rows are paid for there.

    Raises:
        ConfigurationError: the defaults can't stand in the table.
        TableError: the file is missing or unreadable, has no `prompt_id` or `prompt` column or one that is nearly
            called as one that counts, or repeats a `prompt_id`.
    """
    check_defaults(defaults, extra_columns)
    required = tuple(column for column in ("prompt_id", "prompt") if column not in defaults)
    records = read_rows(url, required=required)
    refuse_mistyped(url, records, PromptRow, extra_columns, OTHER_NAMES)
    refuse_repeated_ids(url, "prompt_id", records)
    paid_batches = cache(paid_batches)
    rows: list[PromptRow] = []
    rejections: list[Rejection] = []
    rest: dict[int, PromptRow] = {}

    def also_wrong(row: PromptRow) -> list[Problem]:
        rest[row.row_number] = row
        return problems_of_cells(row)

    for written in records:
        record = _in_its_batch({**defaults, **written.cells}, written, paid_batches)
        try:
            rows.append(parse_row(PromptRow, record, extra_columns, also_wrong))
        except RowProblem as problem:
            rejections.append(_rejection(url, record, problem))
    return PromptsTable(tuple(rows), tuple(rejections), url, rest)


def check_defaults(defaults: Mapping[str, Any], extra_columns: Collection[str] = ()) -> None:
    """Check values for empty cells as the cells would be.

    Raises:
        ConfigurationError: there is no such column, rows must not share it, or the value can't stand in it.
    """
    for column in defaults:
        if column not in PROMPT_COLUMNS:
            near = nearest(column, PROMPT_COLUMNS)
            hint = f"did you mean {near!r}?" if near else f"the columns are {', '.join(PROMPT_COLUMNS)}."
            raise ConfigurationError(f"defaults: there is no column {column!r} in a prompts table; {hint}")
    if both := sorted(defaults.keys() & set(extra_columns)):
        raise ConfigurationError(
            f"defaults: {both[0]!r} stands in IDEOGRAM_EXTRA_COLUMNS too, and so doesn't count; leave it out of one."
        )
    if "prompt_id" in defaults:
        raise ConfigurationError("defaults: every row needs a prompt_id of its own; leave it out.")
    try:
        parse_row(PromptRow, RawRow(0, {**defaults, "prompt_id": "any"}))
    except RowProblem as problem:
        raise ConfigurationError(f"defaults: {problem.column}: {problem.reason}.") from None


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


def _in_its_batch(
    cells: dict[str, Any], written: RawRow, paid_batches: Callable[[], Collection[str]]
) -> RawRow:
    """Return a record whose batch is called by the one spelling of a whole number, or as it was paid for."""
    as_written, name = as_id(cells.get("batch")), as_name(cells.get("batch"))
    if as_written != name and as_written not in paid_batches():
        cells["batch"] = name
    return replace(written, cells=cells)


def _rejection(url: str, record: RawRow, problem: RowProblem) -> Rejection:
    batch = str(as_id(record.cells.get("batch", DEFAULT_BATCH)))
    return Rejection(
        file=url,
        row_number=record.number,
        row_id=str(record.cells.get("prompt_id", "")),
        batch=batch if is_name(batch) else REJECTED_BATCH,
        column=problem.column,
        reason=problem.reason,
    )

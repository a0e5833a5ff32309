"""Why rows have no picture, told once for all rows of which the same is true."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ideogram_pipeline.generation.rows import LEFT_OUT, OutcomeRow

EXAMPLES = 3
"""So many of the rows that a reason is about are named."""
_MONEY = re.compile(r"\$\d+(?:\.\d+)?")


class Reason(NamedTuple):
    """What is true of one row or of several."""

    state: str
    """How they ended."""
    reason: str
    """Why, and what to do next. Where rows differ only in sums of money, it is the first one's."""
    rows: int
    """How many they are."""
    names: tuple[str, ...]
    """The first of them."""

    def __str__(self) -> str:
        """Return it in a line."""
        others = self.rows - len(self.names)
        names = ", ".join(self.names)
        return f"{names}{f' and {others} more' if others > 0 else ''}: {self.state}: {self.reason}"


def without_pictures(rows: Iterable[OutcomeRow]) -> list[Reason]:
    """Return why rows have no picture that this run was to make, or that another run is making."""
    return grouped(
        Reason(row.state, row.reason, 1, (row.prompt_id or f"row {row.row_number}",))
        for row in rows
        if row.state != "generated" and not is_left_out(row)
    )


def is_left_out(row: OutcomeRow) -> bool:
    """Say whether a person left a row out of the run that has recorded it."""
    return row.state == "not_reached" and row.reason.startswith(LEFT_OUT)


def grouped(found: Iterable[Reason]) -> list[Reason]:
    """Return each reason once, in the order of their first rows."""
    groups: dict[tuple[str, str], Reason] = {}
    for one in found:
        key = (one.state, _MONEY.sub("$", one.reason))
        before = groups.get(key)
        if before is None:
            groups[key] = one
            continue
        names = (*before.names, *one.names)[:EXAMPLES]
        groups[key] = before._replace(rows=before.rows + one.rows, names=names)
    return list(groups.values())

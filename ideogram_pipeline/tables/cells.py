"""What a cell of any format comes down to: text, a number, true or false, or a list or object of those, as in JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

_FAILED = re.compile(
    r"#(N/A|REF!|VALUE!|DIV/0!|NAME\?|NUM!|NULL!|SPILL!|CALC!|FIELD!|BLOCKED!|CONNECT!|GETTING_DATA|ERROR!)|Err:5\d\d"
)
"""What spreadsheets show where a formula failed, and leave in what is saved from them."""


@dataclass(frozen=True, slots=True, repr=False)
class BadCell:
    """A cell that is filled and can't be read. A row that needs it is rejected; elsewhere its text is kept."""

    text: str
    """What stands there."""
    reason: str
    """Why it can't be read, and how to mend it."""

    def __str__(self) -> str:
        """Return what stands there."""
        return self.text

    def __repr__(self) -> str:
        """Return what stands there, as messages quote it."""
        return repr(self.text)


def cell_of(value: Any) -> Any:
    """Return what a record holds as a cell; None where it is empty."""
    if isinstance(value, str):
        if _FAILED.fullmatch(value.strip()):
            return BadCell(
                value, "a formula failed in the spreadsheet; write the value, or leave the cell empty"
            )
        return value if value.strip() else None
    if isinstance(value, bytes):
        try:
            return cell_of(value.decode())
        except UnicodeDecodeError:
            return BadCell(f"{len(value)} bytes", "these bytes are no text in UTF-8; save the column as text")
    return _plain(value)


def _plain(value: Any) -> Any:
    """Take a value for one that JSON has. A whole number is one however its column keeps it."""
    match value:
        case None | bool() | int() | str() | BadCell():
            return value
        case float() | Decimal():
            return _number(value)
        case datetime():
            return str(value).removesuffix(" 00:00:00")  # a date, as a spreadsheet or pandas keeps it
        case Mapping():
            return {str(name): _plain(member) for name, member in value.items()}
        case list() | tuple():
            return [_plain(member) for member in value]
        case _:
            return str(value)


def _number(value: float | Decimal) -> Any:
    if math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else str(value)
    return value

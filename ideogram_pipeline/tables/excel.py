"""The first sheet of an Excel workbook, cell by cell, as Excel shows it.

openpyxl tells an empty cell from a formula that failed, was never calculated or lies under a merge, but its public
readers don't: the streaming one knows no merges and either values or formulas, the other one takes fifty times the
file's size. So its streaming parser is used itself, with both.
"""

from __future__ import annotations

import io
import re
import zipfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from openpyxl import load_workbook
from openpyxl.cell.read_only import ReadOnlyCell
from openpyxl.utils import get_column_letter
from openpyxl.worksheet._reader import FORMULA_TAG, WorkSheetParser

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.tables.cells import BadCell, cell_of
from ideogram_pipeline.tables.limits import MAX_TABLE_BYTES, check_size

if TYPE_CHECKING:
    from openpyxl.worksheet.cell_range import CellRange

_COMPOUND = bytes.fromhex("d0cf11e0a1b11ae1")
_PICTURES = "xl/media/"
_WORKBOOK = "xl/workbook.xml"
_STALE = re.compile(rb"""\bfullCalcOnLoad\s*=\s*["'](1|true)["']""")
"""How a program that calculates nothing asks for it: XlsxWriter then leaves 0 for every formula. Where it is absent
openpyxl takes it for given."""
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")
"""How a workbook writes a character that XML can't hold, or a text that looks like this."""
_FORMAT = re.compile(r'0|"[^"]*"|\\.|_.|[-/ ()]')
"""A part of a number format: a digit, or what stands between digits as it is written; `_x` is a gap as wide as x."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet of a workbook: its filled cells by row and column, both from 1, with merges laid out."""

    name: str
    rows: dict[int, dict[int, Any]]
    others: tuple[str, ...]
    """The names of the workbook's other sheets that are shown and have anything in them."""


def first_sheet(url: str, content: bytes) -> Sheet:
    """Return the first sheet of a workbook.

    Raises:
        TableError: it is no workbook, is too large, or has merged cells or failed formulas in its header.
    """
    if content.startswith(_COMPOUND):
        raise TableError(
            f"{url}: it is an old .xls workbook, or has a password; save it as .xlsx, without a password."
        )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            unpacked = sum(
                part.file_size for part in parts.infolist() if not part.filename.startswith(_PICTURES)
            )
            if unpacked > MAX_TABLE_BYTES:
                raise TableError(
                    f"{url}: the workbook unpacks to more than {MAX_TABLE_BYTES // 1024**2} MiB."
                )
            stale = _WORKBOOK in parts.namelist() and _STALE.search(parts.read(_WORKBOOK)) is not None
        book = load_workbook(io.BytesIO(content), read_only=True, data_only=True, keep_links=False)
        if not book.worksheets:
            raise TableError(
                f"{url}: the workbook has no sheet that can be read; save it as .xlsx once more."
            )
        first, *others = book.worksheets
        sheet = _Sheet(first, stale)
        rows = sheet.read(url)
        filled = tuple(other.title for other in others if _is_seen(other))
    except TableError:
        raise
    except Exception as error:  # openpyxl raises zipfile, KeyError, ValueError and its own, by the damage
        raise TableError(f"{url}: the file is not a readable Excel workbook ({error}).") from None
    _check_names(url, rows)
    _lay_out(url, first.title, sheet.merged, rows)
    return Sheet(first.title, rows, filled)


def _is_seen(sheet: Any) -> bool:
    return sheet.sheet_state == "visible" and any(True for _ in sheet.iter_rows(max_row=1))


class _Sheet(WorkSheetParser):
    """openpyxl's parser, that says of each cell whether a formula stands behind it."""

    def __init__(self, sheet: Any, stale: bool) -> None:
        book = sheet.parent
        super().__init__(
            sheet._get_source(),
            sheet._shared_strings,
            data_only=True,
            epoch=book.epoch,
            date_formats=book._date_formats,
            timedelta_formats=book._timedelta_formats,
        )
        self._sheet = sheet
        self._stale = stale
        self._zeros = cache(self._zeros_of)

    def read(self, url: str) -> dict[int, dict[int, Any]]:
        """Return the filled cells by row and column.

        Raises:
            TableError: there are too many.
        """
        rows: dict[int, dict[int, Any]] = {}
        count = 0
        for number, cells in self.parse():
            filled = {cell["column"]: value for cell in cells if (value := self._value(**cell)) is not None}
            if filled:
                rows[number] = filled
            count += len(filled)
            check_size(url, rows=number, cells=count)
        return rows

    @property
    def merged(self) -> list[CellRange]:
        """The merged ranges, which stand behind the cells."""
        return list(self.merged_cells.mergeCell) if self.merged_cells else []

    def parse_cell(self, element: Any) -> dict[str, Any]:
        cell: dict[str, Any] = super().parse_cell(element)
        formula = element.find(FORMULA_TAG)
        cell["formula"] = None if formula is None else f"={formula.text or '…'}"
        if formula is not None and cell["value"] is None and element.get("t") == "str":
            cell["value"] = ""  # calculated, and the result is a text without letters
        return cell

    def _value(
        self, *, row: int, column: int, value: Any, data_type: str, style_id: int, formula: str | None
    ) -> Any:
        if data_type == "e":
            place = self._place(row, column)
            reason = f"a formula failed in {place}; mend it, write the value, or clear the cell"
            return BadCell(str(value or "an error"), reason)
        if formula is not None and (value is None or (self._stale and data_type == "n" and value == 0)):
            place = self._place(row, column)
            reason = (
                f"the formula in {place} was never calculated; save it in a spreadsheet, or write the value"
            )
            return BadCell(formula, reason)
        if isinstance(value, str):
            return cell_of(_ESCAPED.sub(_character, value) if "_x" in value else value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            parts = self._zeros(style_id)
            return _shown(value, parts) if parts else value
        return cell_of(value)

    def _place(self, row: int, column: int) -> str:
        return f"cell {get_column_letter(column)}{row} of the sheet {self._sheet.title!r}"

    def _zeros_of(self, style_id: int) -> tuple[str, ...]:
        """Return the parts of a number format that shows zeros before a number: 7 as 007, or P-007; else nothing."""
        style = ReadOnlyCell(self._sheet, 1, 1, None, style_id=style_id).number_format
        positive = re.sub(r"^\[\$[^\]]*\]", "", style.split(";")[0])  # without the language
        parts = tuple(_FORMAT.findall(positive))
        return parts if "".join(parts) == positive and parts.count("0") > 1 else ()


def _shown(number: int, parts: tuple[str, ...]) -> str:
    """Return a number as a format shows it: a digit for each 0 from the end, and the rest for the first."""
    left = parts.count("0")
    digits = list(f"{number:0{left}}")
    shown: list[str] = []
    for part in reversed(parts):
        if part == "0":
            left -= 1
            shown.append(digits.pop() if left else "".join(digits))
        elif not part.startswith("_"):
            shown.append(part.strip('"').removeprefix("\\"))
    return "".join(reversed(shown))


def _character(escaped: re.Match[str]) -> str:
    code = int(escaped[1], 16)
    return escaped[0] if 0xD800 <= code < 0xE000 else chr(code)  # half a surrogate pair is no character


def _check_names(url: str, rows: dict[int, dict[int, Any]]) -> None:
    """Refuse a column whose name can't be read, where it is filled: it may be one that counts."""
    unread = {column: name for column, name in rows.get(1, {}).items() if isinstance(name, BadCell)}
    for number, cells in rows.items() if unread else ():
        for column in cells.keys() & unread.keys() if number > 1 else ():
            raise TableError(f"{url}: a column has no name: {unread[column].reason}.")


def _lay_out(url: str, sheet: str, merges: list[CellRange], rows: dict[int, dict[int, Any]]) -> None:
    """Give the value of merged cells to each of their rows; what they cover in other columns can't be read."""
    columns = sorted(rows.get(1, ()))
    count = 0
    for merged in merges:
        value = rows.get(merged.min_row, {}).get(merged.min_col)
        if value is None:
            continue
        if merged.min_row == 1:
            raise TableError(
                f"{url}: the cells {merged.coord} in the header of the sheet {sheet!r} are merged; unmerge them, and "
                "give each column a name."
            )
        covered = BadCell(
            str(value),
            f"the cells {merged.coord} of the sheet {sheet!r} are merged over several columns; unmerge them, and "
            "write each column's value",
        )
        within = columns[bisect_left(columns, merged.min_col) : bisect_right(columns, merged.max_col)]
        for number in _rows_of(merged, rows):
            rows[number].update({column: value if column == merged.min_col else covered for column in within})
            count += len(within) + 1
            check_size(url, cells=count)


def _rows_of(merged: CellRange, rows: dict[int, dict[int, Any]]) -> Iterator[int]:
    return (number for number in range(merged.min_row, merged.max_row + 1) if number in rows)

"""Excel workbooks: what a cell shows is what counts, and what looks filled is never read as empty."""

import io
import json
import re
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from typing import Any

import pytest
from openpyxl import Workbook
from openpyxl.worksheet.worksheet import Worksheet

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.reader import RawRow, read_rows
from ideogram_pipeline.tables.rows import PromptRow, parse_row


@pytest.fixture
def workbook(tmp_path) -> Callable[..., str]:
    """Write a workbook whose first sheet has these rows, changed by a function; return its path."""

    def write(*rows: list[Any], change: Callable[[Worksheet], object] = lambda _: None) -> str:
        book = Workbook()
        sheet = book.worksheets[0]
        sheet.title = "Prompts"
        for row in rows:
            sheet.append(row)
        change(sheet)
        path = tmp_path / "prompts.xlsx"
        book.save(path)
        return str(path)

    return write


def rewrite(path: str, replaced: Mapping[str, str], part: str = "xl/worksheets/sheet1.xml") -> None:
    """Replace texts in one part of a workbook, for what openpyxl itself never writes."""
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    for before, after in replaced.items():
        assert before in parts[part].decode()
        parts[part] = parts[part].decode().replace(before, after).encode()
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as book:
        for name, content in parts.items():
            book.writestr(name, content)
    with open(path, "wb") as file:
        file.write(sink.getvalue())


@pytest.mark.parametrize("column", ["reference_id", "seed", "num_images", "batch", "image_size", "prompt"])
@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("#N/A", "a formula failed in cell C2 of the sheet 'Prompts'"),
        ("=VLOOKUP(A2,X:Y,2)", "the formula in cell C2 of the sheet 'Prompts' was never calculated"),
    ],
)
def test_a_failed_lookup_rejects_its_row_and_names_the_cell(workbook, column, written, reason):
    path = workbook(
        ["prompt_id", "note" if column == "prompt" else "prompt", column],
        ["a", "a portrait", written],
        ["b", "a portrait", None if column != "prompt" else "x"],
    )
    table = read_prompts(path)
    assert [row.prompt_id for row in table.rows] == ["b"]
    [rejection] = table.rejections
    assert (rejection.row_number, rejection.row_id, rejection.column) == (2, "a", column)
    assert reason in rejection.reason
    assert f"(found {written!r})" in rejection.reason


def test_failed_lookups_of_ids_are_each_rejected_and_not_repeated_ids(workbook):
    path = workbook(["prompt_id", "prompt"], ["#N/A", "x"], ["#N/A", "y"], ["c", "z"])
    table = read_prompts(path)
    assert [row.prompt_id for row in table.rows] == ["c"]
    assert [(entry.row_number, entry.column) for entry in table.rejections] == [
        (2, "prompt_id"),
        (3, "prompt_id"),
    ]


def test_a_default_does_not_hide_a_failed_lookup(workbook):
    table = read_prompts(workbook(["prompt_id", "prompt", "seed"], ["a", "x", "#REF!"]), {"seed": 7})
    assert [entry.column for entry in table.rejections] == ["seed"]


def test_a_failed_formula_in_a_column_of_ones_own_costs_no_row(workbook):
    [row] = read_prompts(workbook(["prompt_id", "prompt", "budget"], ["a", "x", "#DIV/0!"])).rows
    assert json.loads(row.extra) == {"budget": "#DIV/0!"}


def test_calculated_formulas_count_and_a_text_without_letters_is_empty(workbook):
    path = workbook(["prompt_id", "prompt", "seed", "batch"], ["a", "x", "=3+4", '=""'])
    rewrite(
        path,
        {
            "<f>3+4</f><v />": "<f>3+4</f><v>7</v>",
            '<c r="D2"><f>""</f><v /></c>': '<c r="D2" t="str"><f>""</f><v></v></c>',
        },
    )
    assert read_rows(path, required=()) == [RawRow(2, {"prompt_id": "a", "prompt": "x", "seed": 7})]


def test_the_zero_of_a_program_that_calculates_nothing_is_no_value(workbook):
    """XlsxWriter stores 0 for every formula, and asks for a calculation when the workbook is opened."""
    path = workbook(["prompt_id", "prompt", "seed"], ["a", "x", "=3+4"])
    rewrite(path, {"<f>3+4</f><v />": "<f>3+4</f><v>0</v>"})
    [rejection] = read_prompts(path).rejections
    assert "was never calculated" in rejection.reason
    rewrite(path, {'fullCalcOnLoad="1"': ""}, "xl/workbook.xml")
    assert [row.seed for row in read_prompts(path).rows] == [0]


def test_a_batch_merged_over_rows_counts_for_each_of_them(workbook):
    path = workbook(
        ["prompt_id", "batch", "prompt"],
        ["a", "autumn", "x"],
        ["b", None, "y"],
        ["c", None, "z"],
        ["d", None, "w"],
        change=lambda sheet: sheet.merge_cells("B2:B4"),
    )
    assert [(row.prompt_id, row.batch) for row in read_prompts(path).rows] == [
        ("a", "autumn"),
        ("b", "autumn"),
        ("c", "autumn"),
        ("d", "default"),
    ]


def test_a_merge_makes_no_rows_of_its_own(workbook):
    path = workbook(
        ["prompt_id", "batch", "prompt"],
        ["a", "autumn", "x"],
        change=lambda sheet: sheet.merge_cells("B2:B3"),
    )
    rewrite(path, {'ref="B2:B3"': 'ref="B2:B1048576"'})
    assert [row.number for row in read_rows(path, required=())] == [2]


def test_cells_merged_over_columns_are_rejected(workbook):
    path = workbook(
        ["prompt_id", "batch", "prompt", "note"],
        ["a", "autumn", None, "kept"],
        ["b", None, None, None],
        change=lambda sheet: sheet.merge_cells("B2:C3"),
    )
    table = read_prompts(path)
    assert table.rows == ()
    assert [(entry.row_number, entry.column, entry.batch) for entry in table.rejections] == [
        (2, "prompt", "autumn"),
        (3, "prompt", "autumn"),
    ]
    assert "the cells B2:C3 of the sheet 'Prompts' are merged over several columns" in str(
        table.rejections[0]
    )


def test_a_merged_header_is_an_error(workbook):
    path = workbook(["prompt_id", "prompt"], ["a", "x"], change=lambda sheet: sheet.merge_cells("A1:B1"))
    with pytest.raises(TableError, match=r"the cells A1:B1 in the header of the sheet 'Prompts' are merged"):
        read_rows(path, required=("prompt_id",))


@pytest.mark.parametrize("name", ["#N/A", '=CONCATENATE("reference","_id")'])
def test_a_header_that_cannot_be_read_is_an_error_where_its_column_is_filled(workbook, name):
    path = workbook(["prompt_id", "prompt", name], ["a", "x", "eileen"])
    with pytest.raises(TableError, match=r"a column has no name: .* cell C1 of the sheet 'Prompts'"):
        read_rows(path, required=("prompt_id",))
    path = workbook(["prompt_id", "prompt", name], ["a", "x"])
    assert [row.cells["prompt_id"] for row in read_rows(path, required=("prompt_id",))] == ["a"]


def test_line_breaks_and_other_escaped_characters_arrive_as_they_were_written(workbook):
    path = workbook(
        ["prompt_id", "prompt", "no_x000D_te"],
        ["a", "a cat_x000D_\non a mat", "_x005F_x000D_"],
        ["b", "_xD83D_", "_x00e9_"],
    )
    first, second = read_rows(path, required=())
    assert first.cells == {"prompt_id": "a", "prompt": "a cat\r\non a mat", "no\rte": "_x000D_"}
    assert second.cells == {"prompt_id": "b", "prompt": "_xD83D_", "no\rte": "é"}


@pytest.mark.parametrize(
    ("number_format", "shown"),
    [
        ("000", "007"),
        ("00000", "00007"),
        ('"P-"000', "P-007"),
        (r"\P000", "P007"),
        ('000"-x"', "007-x"),
        ("[$-409]000", "007"),
        ("000;-000", "007"),
        ("000_)", "007"),
        ("0000-00-00", "0000-00-07"),
        ("0-0", "0-7"),
        ("General", 7),
        ("0", 7),
        ("#,##0", 7),
        ("0.00", 7),
        ('0" pictures"', 7),
    ],
)
def test_a_number_shown_with_zeros_before_it_is_what_is_shown(workbook, number_format, shown):
    path = workbook(
        ["prompt_id"], [7], [7.0], change=lambda sheet: setattr(sheet["A2"], "number_format", number_format)
    )
    formatted, plain = read_rows(path, required=())
    assert (formatted.cells["prompt_id"], plain.cells["prompt_id"]) == (shown, 7)


@pytest.mark.parametrize(
    ("number", "number_format", "shown"),
    [
        (20261130, "0000-00-00", "2026-11-30"),
        (1234, "00", "1234"),
        (12345, '00"-"00', "123-45"),
        (0, "000", "000"),
    ],
)
def test_a_number_with_more_digits_than_zeros_keeps_them_all(workbook, number, number_format, shown):
    path = workbook(
        ["batch"], [number], change=lambda sheet: setattr(sheet["A2"], "number_format", number_format)
    )
    assert [row.cells for row in read_rows(path, required=())] == [{"batch": shown}]


@pytest.mark.parametrize("number_format", ["000", '"P"000'])
def test_zeros_are_shown_before_whole_numbers_only(workbook, number_format):
    cells = [-7, 7.5, True]
    path = workbook(
        ["a", "b", "c"],
        cells,
        change=lambda sheet: [setattr(cell, "number_format", number_format) for cell in sheet[2]],
    )
    assert [list(row.cells.values()) for row in read_rows(path, required=())] == [cells]


def test_zeros_before_a_number_change_no_number(workbook):
    path = workbook(["prompt_id", "seed", "strength"], ["a", 7, 0.5])
    [row] = read_rows(path, required=())
    assert parse_row(PromptRow, row).seed == 7
    path = workbook(
        ["prompt_id", "seed", "strength"],
        ["a", 7, 0.5],
        change=lambda sheet: [setattr(cell, "number_format", "000") for cell in sheet[2]],
    )
    [row] = read_rows(path, required=())
    assert (parse_row(PromptRow, row).seed, parse_row(PromptRow, row).strength) == (7, 0.5)


def test_dates_and_times_are_the_texts_that_they_show(workbook):
    path = workbook(
        ["a", "b", "c", "d"],
        [date(2026, 11, 30), datetime(2026, 11, 30), datetime(2026, 11, 30, 12, 30), time(16, 9)],
    )
    [row] = read_rows(path, required=())
    assert list(row.cells.values()) == ["2026-11-30", "2026-11-30", "2026-11-30 12:30:00", "16:09:00"]


def test_another_sheet_than_the_first_is_mentioned_once(workbook, caplog):
    def more(sheet: Worksheet) -> None:
        book = sheet.parent
        book.create_sheet("Autumn")["B7"] = "x"
        book.create_sheet("Empty")
        hidden = book.create_sheet("Lists")
        hidden["A1"] = "x"
        hidden.sheet_state = "hidden"

    path = workbook(["prompt_id"], ["a"], change=more)
    for _ in range(2):
        assert [row.cells for row in read_rows(path, required=())] == [{"prompt_id": "a"}]
    assert caplog.messages == [f"{path}: Only the first sheet is read, 'Prompts', not 'Autumn'."]


def test_a_table_on_another_sheet_than_the_first_is_an_error_that_says_so(workbook):
    path = workbook(
        ["Read me first"], change=lambda sheet: sheet.parent.create_sheet("Table").append(["prompt_id"])
    )
    with pytest.raises(TableError, match=r"'prompt_id' is missing; found Read me first.*not 'Table'"):
        read_rows(path, required=("prompt_id",))


@pytest.mark.parametrize("stray", ["AZ100000", "A1048576", "XFD2"])
def test_one_stray_cell_far_away_takes_no_memory(workbook, stray):
    read_rows(workbook(["prompt_id"]), required=())  # what is imported counts elsewhere
    path = workbook(
        ["prompt_id", "prompt"], ["a", "x"], change=lambda sheet: setattr(sheet[stray], "value", "stray")
    )
    tracemalloc.start()
    rows = read_rows(path, required=("prompt_id",))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 1024**2
    if not stray.startswith("A1"):
        assert f"the cell {stray} is filled, and its column has no name in the header" in str(
            rows[-1].malformed
        )
    else:
        assert rows[-1] == RawRow(1048576, {"prompt_id": "stray"})


def test_a_workbook_that_unpacks_to_more_than_a_table_may_have_is_one_error(workbook, monkeypatch):
    monkeypatch.setattr("ideogram_pipeline.tables.excel.MAX_TABLE_BYTES", 1024)
    path = workbook(["prompt_id"], ["a"])
    with pytest.raises(TableError, match="the workbook unpacks to more than"):
        read_rows(path, required=())


def test_merges_that_cover_one_another_end_at_the_limit(workbook, monkeypatch):
    monkeypatch.setattr("ideogram_pipeline.tables.limits.MAX_CELLS", 1000)
    rows = [["a", "b"], *(["x", "y"] for _ in range(200))]
    path = workbook(*rows, change=lambda sheet: sheet.merge_cells("A2:A3"))
    rewrite(path, {'<mergeCell ref="A2:A3" />': '<mergeCell ref="A2:B201" />' * 100})
    with pytest.raises(TableError, match=re.escape("it has more than 1,000 cells")):
        read_rows(path, required=())


def test_an_old_or_locked_workbook_says_what_it_is(tmp_path):
    path = tmp_path / "t.xlsx"
    path.write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))
    with pytest.raises(TableError, match=r"an old \.xls workbook, or has a password; save it as \.xlsx"):
        read_rows(str(path), required=())

"""Typed rows: what a record must be to become one, and what names may be."""

import json
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables.reader import RawRow
from ideogram_pipeline.tables.rows import PromptRow, RowProblem, is_name, parse_row

PROMPT_COLUMNS = {field.alias or name for name, field in PromptRow.model_fields.items()} - {
    "row_number",
    "extra",
}

CELLS = (
    st.text(max_size=20)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.lists(st.text(max_size=5), max_size=3)
    | st.sampled_from(["a", "a|b", "2", "true", "1.5", "TURBO"])
)


@given(
    text=st.text(max_size=8) | st.text(r"ab.-_/\: ~*%漢", max_size=8) | st.from_regex(r"\A[\w.-]{1,140}\Z")
)
def test_a_name_stays_in_its_folder_on_every_system(text):
    if is_name(text):
        assert PurePosixPath("folder", text).parent == PurePosixPath("folder")
        assert PureWindowsPath("folder", text).parent == PureWindowsPath("folder")
        assert Path("/folder", text).resolve() == Path("/folder", text)
        assert len(text.encode()) <= 100


@pytest.mark.parametrize("text", ["a", "7", "launch-01_b.v2", "émigré", "漢字"])
def test_letters_digits_and_a_few_marks_are_a_name(text):
    assert is_name(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a/b", "a\\b", "a..b", ".hidden", "_own", "-rf", "a.", "a b", "a\n", "a\0"]
)
def test_what_could_leave_a_folder_or_upset_a_system_is_no_name(text):
    assert not is_name(text)


def test_the_longest_name_still_names_a_picture_file(tmp_path):
    longest = "漢" * 33
    assert is_name(longest)
    assert not is_name("漢" * 34)
    (tmp_path / f"{longest}-0123abcd-7.webp").write_bytes(b"")


@given(
    cells=st.dictionaries(st.sampled_from(sorted(PROMPT_COLUMNS)) | st.text(max_size=5), CELLS, max_size=6)
)
def test_any_record_is_a_row_that_can_be_kept_or_names_the_column_at_fault(cells):
    try:
        row = parse_row(PromptRow, RawRow(2, {"prompt_id": "a", **cells}))
    except RowProblem as caught:
        problem = caught
    else:
        assert_kept(row)
        return
    assert problem.column in PROMPT_COLUMNS
    assert problem.reason


def assert_kept(row: PromptRow) -> None:
    store = Store.open("memory://")
    parquet.write(store, "rows.parquet", PromptRow, [row])
    [kept] = parquet.read(store, "rows.parquet", PromptRow)
    assert kept.model_dump_json() == row.model_dump_json()


def test_columns_nobody_knows_are_kept_as_json():
    row = parse_row(PromptRow, RawRow(2, {"prompt_id": "a", "campaign": "été", "weight": 2, "tags": ["x"]}))
    assert json.loads(row.extra) == {"campaign": "été", "weight": 2, "tags": ["x"]}


def test_a_table_cannot_set_what_the_reader_sets():
    row = parse_row(PromptRow, RawRow(7, {"prompt_id": "a", "row_number": 99, "extra": "mine"}))
    assert row.row_number == 7
    assert json.loads(row.extra) == {"row_number": 99, "extra": "mine"}


def test_lists_are_cells_with_bars_between_or_json_lists():
    bars = parse_row(
        PromptRow, RawRow(2, {"prompt_id": "a", "reference_id": " x | y |", "style_codes": "AAFF5733"})
    )
    lists = parse_row(
        PromptRow, RawRow(2, {"prompt_id": "a", "reference_id": ["x", "y"], "style_codes": ["AAFF5733"]})
    )
    assert bars == lists
    assert bars.reference_ids == ("x", "y")


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("prompt_id", "../../etc/passwd", "names are letters, digits"),
        ("batch", "a/b", "names are letters, digits"),
        ("reference_id", "eileen|../x", "names are letters, digits"),
        ("num_images", "many", "valid integer"),
        ("num_images", 2.5, "valid integer"),
        ("strength", "half", "valid number"),
        ("strength", "inf", "finite number"),
        ("expand_prompt", "perhaps", "valid boolean"),
        ("seed", 2**63, "less than"),
        ("num_images", 2**63, "less than"),
    ],
)
def test_a_cell_that_cannot_be_used_is_named_and_shown(column, cell, reason):
    with pytest.raises(RowProblem) as caught:
        parse_row(PromptRow, RawRow(2, {"prompt_id": "a", column: cell}))
    assert caught.value.column == column
    assert reason in caught.value.reason
    assert f"(found {cell!r}" in caught.value.reason or "reference_id" in column


def test_a_long_cell_is_shortened_in_the_reason():
    with pytest.raises(RowProblem) as caught:
        parse_row(PromptRow, RawRow(2, {"prompt_id": "a", "num_images": "x" * 10_000}))
    assert len(caught.value.reason) < 250


def test_a_record_without_its_id_says_so():
    with pytest.raises(RowProblem, match="it is empty; every row needs one") as caught:
        parse_row(PromptRow, RawRow(2, {"prompt": "a lighthouse"}))
    assert caught.value.column == "prompt_id"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("हिन्दी", "हिन्दी"),
        ("तमिऴ்-01", "तमिऴ்-01"),
        ("e\N{COMBINING DIAERESIS}milie", "ëmilie"),
        ("ëmilie", "ëmilie"),
        ("ภาษาไทย", "ภาษาไทย"),
        ("a\N{COMBINING DIAERESIS}", "ä"),
    ],
)
def test_words_with_combining_marks_are_names_of_one_spelling(written, name):
    cells = {"prompt_id": written, "batch": written, "reference_id": f"{written}|x"}
    row = parse_row(PromptRow, RawRow(2, cells))
    assert (row.prompt_id, row.batch, row.reference_ids) == (name, name, (name, "x"))


@pytest.mark.parametrize(
    "text", ["\N{COMBINING DIAERESIS}a", "\N{COMBINING DIAERESIS}", "a/\u093f", "-\u093f"]
)
def test_a_mark_alone_begins_no_name(text):
    assert not is_name(text)


def test_a_whole_number_with_a_point_names_the_same_reference_and_leaves_prompt_id_and_batch():
    row = parse_row(
        PromptRow,
        RawRow(2, {"prompt_id": "1.0", "batch": "20261.0", "reference_id": "7.0|8", "mask_id": "v1.0"}),
    )
    assert (row.prompt_id, row.batch, row.reference_ids, row.mask_id) == (
        "1.0",
        "20261.0",
        ("7", "8"),
        "v1.0",
    )


@pytest.mark.parametrize(
    ("cell", "flag"), [("0.0", False), ("1.0", True), (0.0, False), (1, True), ("true", True)]
)
def test_a_flag_may_be_a_number_as_pandas_writes_it(cell, flag):
    row = parse_row(PromptRow, RawRow(2, {"prompt_id": "a", "expand_prompt": cell, "sync_mode": cell}))
    assert (row.expand_prompt, row.sync_mode) == (flag, flag)

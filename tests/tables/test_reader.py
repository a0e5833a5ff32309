"""The reader: the same cells out of every format, and one clear error where a file is none."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.tables.reader import RawRow, read_rows

# Excel's XML holds no control characters, and turns a carriage return into a line feed.
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=12) | st.sampled_from(
    [
        "NA",
        "nan",
        "None",
        "null",
        "#N/A",
        "=1+1",
        "007",
        "1e5",
        "TRUE",
        "2026-11-22",
        'a "quoted", text',
        "a\nb",
    ]
)


def read(content: bytes, ending: str) -> list[RawRow]:
    with TemporaryDirectory() as folder:
        path = Path(folder, f"table.{ending}")
        path.write_bytes(content)
        return read_rows(str(path), required=())


def assert_rows_or_table_error(content: bytes, ending: str) -> None:
    try:
        rows = read(content, ending)
    except TableError as error:
        message = str(error)
    else:
        assert all(row.cells or row.malformed for row in rows)
        return
    assert f"table.{ending}: " in message


@settings(max_examples=40)
@given(
    table=st.lists(
        st.fixed_dictionaries({"id": TEXTS, "prompt": TEXTS, "ünknown column": TEXTS}), min_size=1, max_size=4
    )
)
def test_every_format_gives_the_cells_that_were_written(as_table, table):
    ending, content = as_table(table, ["id", "prompt", "ünknown column"])
    written = [{name: cell for name, cell in record.items() if cell.strip()} for record in table]
    assert [row.cells for row in read(content, ending)] == [cells for cells in written if cells]


@pytest.mark.parametrize(("ending", "first"), [("csv", 2), ("xlsx", 2), ("jsonl", 1), ("parquet", 1)])
def test_row_numbers_are_those_an_editor_shows(tmp_path, ending, first):
    path = tmp_path / f"table.{ending}"
    frame = pd.DataFrame({"id": ["a", None, "c"], "n": [1, None, 3]})
    match ending:
        case "csv":
            frame.to_csv(path, index=False)
        case "xlsx":
            frame.to_excel(path, index=False)
        case "jsonl":
            frame.to_json(path, orient="records", lines=True)
        case "parquet":
            frame.to_parquet(path)
    rows = read_rows(str(path), required=("id",))
    assert [(row.number, row.cells["id"]) for row in rows] == [(first, "a"), (first + 2, "c")]


@settings(max_examples=200)
@given(
    content=st.binary(max_size=200) | st.text(max_size=80).map(str.encode),
    ending=st.sampled_from(["csv", "jsonl", "ndjson", "parquet", "xlsx"]),
)
def test_arbitrary_bytes_are_rows_or_a_table_error(content, ending):
    assert_rows_or_table_error(content, ending)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_table_is_rows_or_a_table_error(as_table, data):
    ending, content = as_table([{"id": "a", "prompt": "a lighthouse"}], ["id", "prompt"])
    # A workbook holds the time it was made, so its length changes; what is drawn must not depend on it.
    cut, hole = sorted(data.draw(st.integers(0, 2**20)) % (len(content) + 1) for _ in range(2))[::-1]
    damaged = content[:hole] + data.draw(st.binary(max_size=4)) + content[hole:cut]
    assert_rows_or_table_error(damaged, ending)


def test_a_byte_order_mark_is_no_part_of_the_first_column(write):
    path = write("t.csv", b"\xef\xbb\xbfid,prompt\na,x\n")
    assert read_rows(path, required=("id",)) == [RawRow(2, {"id": "a", "prompt": "x"})]


def test_a_cell_of_many_lines_is_one_cell_of_one_record(write):
    path = write("t.csv", 'id,prompt\na,"one\ntwo, three"\nb,x\n')
    assert [(row.number, row.cells["prompt"]) for row in read_rows(path, required=())] == [
        (2, "one\ntwo, three"),
        (3, "x"),
    ]


def test_surplus_cells_spoil_their_row_only(write):
    good, bad, short = read_rows(write("t.csv", "id,prompt\na,x\nb,x,y\nc\n"), required=())
    assert (good.malformed, short.malformed) == (None, None)
    assert bad.malformed == "it has 3 cells where the header has 2; quote cells that hold commas"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "b"', "not valid JSON"),
        ('["b"]', "not a JSON object"),
        ('{"id": "b", "prompt": ' + "[" * 100_000, "not valid JSON"),
        ('{"id": "b", "prompt": "\\ud800"}', "not valid JSON"),
        ('{"id": "b", "seed": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
    ids=["cut", "list", "deep", "half a surrogate pair", "endless number"],
)
def test_a_line_that_is_no_record_spoils_itself_only(write, line, reason):
    good, bad, other = read_rows(write("t.jsonl", f'{{"id": "a"}}\n{line}\n{{"id": "c"}}'), required=("id",))
    assert [good.cells, other.cells] == [{"id": "a"}, {"id": "c"}]
    assert bad.number == 2
    assert reason in (bad.malformed or "")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", "", "the column 'id' is missing; found none."),
        ("t.csv", "prompt,seed\nx,1\n", "the column 'id' is missing; found prompt, seed."),
        ("t.csv", "id;prompt\na;x\n", "separated by ';'; save it with commas"),
        ("t.csv", "id, id \na,b\n", "the column 'id' stands in the header more than once"),
        ("t.csv", 'id,prompt\na,"x"y\n', "line 2 is not valid CSV"),
        ("t.csv", b"id,prompt\na,x\nb,caf\xe9\n", "line 3 is not UTF-8 (byte 0xe9). Save the file as UTF-8."),
        ("t.jsonl", b'{"id": "caf\xe9"}\n', "line 1 is not UTF-8"),
        ("t.parquet", "id,prompt", "not readable Parquet"),
        ("t.xlsx", "id,prompt", "not a readable Excel workbook"),
        ("t.tsv", "id\tprompt", "tables end in .csv, .jsonl, .parquet or .xlsx; this one ends in '.tsv'"),
    ],
)
def test_a_file_that_is_no_table_says_why(write, name, content, reason):
    path = write(name, content)
    with pytest.raises(TableError, match=re.escape(reason)) as caught:
        read_rows(path, required=("id",))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_repeated_column_of_a_workbook_is_an_error(tmp_path):
    path = str(tmp_path / "t.xlsx")
    pd.DataFrame([["a", "x", "y"]], columns=["id", "prompt", "prompt"]).to_excel(path, index=False)
    with pytest.raises(TableError, match="'prompt' stands in the header more than once"):
        read_rows(path, required=("id",))


def test_a_parquet_file_with_text_that_is_no_utf8_is_an_error(write):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    offsets = pa.py_buffer((0).to_bytes(4, "little") + (4).to_bytes(4, "little"))
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"caf\xe9")])
    pq.write_table(pa.table({"id": text}), sink)
    with pytest.raises(TableError, match="not readable Parquet"):
        read_rows(write("t.parquet", sink.getvalue().to_pybytes()), required=("id",))


def test_a_missing_file_says_which_and_where_to_look(tmp_path):
    with pytest.raises(TableError, match=r"prompts\.csv: there is no such file.*IDEOGRAM_PROMPTS"):
        read_rows(str(tmp_path / "prompts.csv"), required=())


def test_a_folder_is_not_a_table(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(TableError, match="can't be read"):
        read_rows(str(tmp_path / "t.csv"), required=())


def test_a_table_in_no_store_we_know_is_a_table_error():
    with pytest.raises(TableError, match=r"ftp://host/t\.csv: the file can't be read"):
        read_rows("ftp://host/t.csv", required=())

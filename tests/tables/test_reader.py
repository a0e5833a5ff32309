"""The reader: the same cells out of every format, and one clear error where a file is none."""

import json
import re
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.tables import limits
from ideogram_pipeline.tables.cells import BadCell
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.reader import RawRow, read_rows, read_table
from ideogram_pipeline.tables.rows import PromptRow, parse_row

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "NA",
        "nan",
        "None",
        "null",
        "#1",
        "=1+1",
        "007",
        "1e5",
        "TRUE",
        "2026-11-22",
        'a "quoted", text',
        "a\nb",
        "a\r\nb",
        "_x000D_",
        "_x005F_x000D_",
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
    found = [{name: str(cell) for name, cell in row.cells.items()} for row in read(content, ending)]
    assert found == [cells for cells in written if cells]


@pytest.mark.parametrize(
    ("ending", "first"), [("csv", 2), ("tsv", 2), ("xlsx", 2), ("jsonl", 1), ("parquet", 1)]
)
def test_row_numbers_are_those_an_editor_shows(tmp_path, ending, first):
    path = tmp_path / f"table.{ending}"
    frame = pd.DataFrame({"id": ["a", None, "c"], "n": [1, None, 3]})
    match ending:
        case "csv":
            frame.to_csv(path, index=False)
        case "tsv":
            frame.to_csv(path, index=False, sep="\t")
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
    ending=st.sampled_from(["csv", "tsv", "jsonl", "ndjson", "parquet", "xlsx"]),
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
        ("t.tsv", "id,prompt\n", "separated by ','; save it with tabs"),
        (
            "t.txt",
            "id\tprompt",
            "tables end in .csv, .tsv, .jsonl, .ndjson, .parquet, .xlsx; this one ends in '.txt'",
        ),
        ("t", "id,prompt", "this one ends in 'nothing'"),
        ("t.csv.gz", b"\x1f\x8b", "it is packed; unpack it, and name the table that is in it, t.csv."),
        ("t.xls", "", "open it in a spreadsheet program and save it as .xlsx or .csv."),
        ("t.json", "[]", "save it with one object a line, as .jsonl."),
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
    sink = pa.BufferOutputStream()
    offsets = pa.py_buffer((0).to_bytes(4, "little") + (4).to_bytes(4, "little"))
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"caf\xe9")])
    pq.write_table(pa.table({"id": text}), sink)
    with pytest.raises(TableError, match="not readable Parquet"):
        read_rows(write("t.parquet", sink.getvalue().to_pybytes()), required=("id",))


def test_a_missing_file_says_which_and_where_to_look(tmp_path):
    with pytest.raises(TableError, match=r"prompts\.csv: there is no such file.*IDEOGRAM_PROMPTS"):
        read_rows(str(tmp_path / "prompts.csv"), required=())


@pytest.mark.parametrize("read", [lambda url: read_rows(url, required=()), read_table])
@pytest.mark.parametrize(
    ("url", "says"),
    [
        (
            "https://docs.google.com/spreadsheets/d/1x/edit?gid=0#gid=0",
            "download it (File, Download) as .csv or",
        ),
        ("Prompts.gsheet", "a Google Sheet can't be read"),
        ("https://example.com/prompts.csv", "isn't fetched from the web; download it and name the file, or"),
        ("s3://bucket/prompts/", "it is a folder, and a table is one file; put parts together first"),
    ],
)
def test_a_table_that_is_no_file_is_refused_in_one_sentence(read, url, says):
    with pytest.raises(TableError, match=re.escape(says)) as caught:
        read(url)
    assert str(caught.value).startswith(f"{url}: ")


def test_a_folder_of_parquet_parts_is_refused_with_the_way_to_one_file(tmp_path):
    parts = tmp_path / "prompts.parquet"
    parts.mkdir()
    pd.DataFrame({"id": ["a"]}).to_parquet(parts / "part-0.parquet")
    with pytest.raises(TableError, match=r"it is a folder.*to_parquet\('prompts.parquet'\)"):
        read_rows(str(parts), required=())


def test_a_failed_formula_that_was_saved_as_text_is_no_text(as_table):
    ending, content = as_table([{"id": "a", "prompt": "#N/A"}, {"id": "b", "prompt": "#1"}], ["id", "prompt"])
    failed, fine = read(content, ending)
    assert failed.cells == {
        "id": "a",
        "prompt": BadCell(
            "#N/A", "a formula failed in the spreadsheet; write the value, or leave the cell empty"
        ),
    }
    assert fine.cells == {"id": "b", "prompt": "#1"}


def written_by_pandas(frame: pd.DataFrame, folder: Path) -> list[list[RawRow]]:
    """Write a frame in every format as people do, and read each."""
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.tsv", index=False, sep="\t")
    frame.to_parquet(folder / "t.parquet")
    frame.to_excel(folder / "t.xlsx", index=False)
    frame.to_json(folder / "t.jsonl", orient="records", lines=True, date_format="iso")
    return [
        read_rows(str(folder / f"t.{ending}"), required=())
        for ending in ("csv", "tsv", "parquet", "xlsx", "jsonl")
    ]


def test_the_numbers_of_a_filtered_frame_are_no_column(tmp_path):
    frame = pd.DataFrame({"prompt_id": ["a", "b", "c"]}).query("prompt_id != 'b'")
    for rows in written_by_pandas(frame, tmp_path):
        assert [row.cells for row in rows] == [{"prompt_id": "a"}, {"prompt_id": "c"}]


def test_one_frame_is_one_table_in_every_format(tmp_path):
    frame = pd.DataFrame(
        {
            "prompt_id": [1, 2, 3],
            "prompt": ["a lighthouse", "NA", "a\nharbour"],
            "batch": [20261, None, 20262],
            "reference_id": [None, 7, 8],
            "expand_prompt": [0.0, 1.0, None],
            "num_images": [1, None, 3],
            "seed": [7.0, None, 9.0],
            "strength": [0.5, None, 1.0],
            "style": [None, None, None],
        }
    )
    written_by_pandas(frame, tmp_path)
    first, *others = [
        [row.model_copy(update={"row_number": 0}) for row in read_prompts(str(tmp_path / f"t.{ending}")).rows]
        for ending in ("csv", "tsv", "parquet", "xlsx", "jsonl")
    ]
    assert [(row.prompt_id, row.batch, row.reference_ids) for row in first] == [
        ("1", "20261", ()),
        ("2", "default", ("7",)),
        ("3", "20262", ("8",)),
    ]
    assert [(row.expand_prompt, row.num_images, row.seed, row.strength) for row in first] == [
        (False, 1, 7, 0.5),
        (True, None, None, None),
        (None, 3, 9, 1.0),
    ]
    assert all(rows == first for rows in others)


def test_decimals_and_dates_are_ids_as_csv_writes_them(tmp_path):
    frame = pd.DataFrame(
        {
            "prompt_id": [Decimal("7"), Decimal("8.50")],
            "batch": [date(2026, 11, 30), date(2026, 12, 1)],
            "reference_id": [1.5, 2.5],
            "since": pd.to_datetime(["2026-11-30 12:30", "2026-12-01 00:00"]),
        }
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    frame.assign(prompt_id=["7", "8.50"]).to_excel(tmp_path / "t.xlsx", index=False)
    for ending in ("csv", "parquet", "xlsx"):
        rows = [parse_row(PromptRow, row) for row in read_rows(str(tmp_path / f"t.{ending}"), required=())]
        assert [(row.prompt_id, row.batch, row.reference_ids) for row in rows] == [
            ("7", "2026-11-30", ("1.5",)),
            ("8.50", "2026-12-01", ("2.5",)),
        ]
        assert rows[0].extra == '{"since": "2026-11-30 12:30:00"}'


def test_what_is_kept_of_a_table_is_always_json(tmp_path):
    path = tmp_path / "t.parquet"
    pd.DataFrame({"prompt_id": ["a"], "weight": [float("inf")], "parts": [[float("nan"), 1.0]]}).to_parquet(
        path
    )
    jsonl = tmp_path / "t.jsonl"
    jsonl.write_text(
        '{"prompt_id": "a", "weight": Infinity, "parts": [NaN, 1.0], "none": NaN, "far": -1e999}'
    )
    for table, kept in ((path, {}), (jsonl, {"far": "-Infinity"})):
        [row] = read_rows(str(table), required=())
        extra = parse_row(PromptRow, row).extra
        assert json.loads(extra, parse_constant=pytest.fail) == kept | {
            "parts": [None, 1.0],
            "weight": "Infinity",
        }


def test_a_date_beyond_the_calendar_costs_its_own_row_only(tmp_path):
    path = str(tmp_path / "t.parquet")
    beyond = pa.array([2**55, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"id": ["a", "b"], "at": beyond}), path)
    assert [row.cells["id"] for row in read_rows(path, required=())] == ["a", "b"]


def test_text_that_a_program_left_as_bytes_is_text(tmp_path):
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"id": [b"a", b"\xff"]}), path)
    fine, bad = read_rows(path, required=())
    assert fine.cells == {"id": "a"}
    assert "no text in UTF-8" in bad.cells["id"].reason


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_of_200_000_columns_is_one_error(write, ending):
    columns = [f"c{number}" for number in range(200_000 if ending == "csv" else 20_000)]
    path = write(f"t.{ending}", "")
    match ending:
        case "csv" | "tsv":
            write(f"t.{ending}", ("," if ending == "csv" else "\t").join(columns) + "\n")
        case "jsonl":
            write(f"t.{ending}", json.dumps(dict.fromkeys(columns, 1)))
        case "parquet":
            pq.write_table(pa.table({column: [1] for column in columns}), path)
    with pytest.raises(TableError, match=r"it has more than 16,384 columns.*Leave out"):
        read_rows(path, required=("id",))


def test_a_parquet_file_of_20_million_equal_rows_is_one_error(tmp_path):
    path = str(tmp_path / "t.parquet")
    part = pa.table({"id": pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int8()), ["a"])})
    with pq.ParquetWriter(path, part.schema) as writer:
        for _ in range(20):
            writer.write_table(part)
    with pytest.raises(TableError, match=r"it has more than 2,000,000 rows.*Split the table"):
        read_rows(path, required=("id",))


@pytest.mark.parametrize(
    ("limit", "says"),
    [("MAX_ROWS", "2 rows"), ("MAX_CELLS", "2 cells"), ("MAX_TABLE_BYTES", "its text takes")],
)
def test_every_format_stops_at_the_limits(as_table, monkeypatch, limit, says):
    ending, content = as_table([{"id": f"{number}" * 9} for number in range(3)], ["id"])
    monkeypatch.setattr(limits, limit, 2)
    with pytest.raises(TableError, match=says):
        read(content, ending)


def test_one_long_text_in_every_row_ends_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_TABLE_BYTES", 10 * 1024**2)
    path = str(tmp_path / "t.parquet")
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int8()), ["x" * 200_000])
    pq.write_table(pa.table({"id": text}), path)
    assert Path(path).stat().st_size < 300_000
    with pytest.raises(TableError, match="its text takes more than 10 MiB"):
        read_rows(path, required=("id",))


def test_a_folder_is_not_a_table(tmp_path):
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(TableError, match="it is a folder"):
        read_rows(str(tmp_path / "t.csv"), required=())


def test_a_table_in_no_store_we_know_is_a_table_error():
    with pytest.raises(TableError, match=r"ftp://host/t\.csv: the file can't be read"):
        read_rows("ftp://host/t.csv", required=())

"""Columns whose name is nearly that of one that counts: their cells were left out, and a cheaper picture was paid."""

import json

import pytest

from ideogram_pipeline.errors import ConfigurationError, TableError
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.references import read_references
from ideogram_pipeline.tables.reviews import read_reviews

Record = dict[str, str]


def table(write, as_table, *records: Record) -> str:
    columns = list(dict.fromkeys(column for record in records for column in record))
    ending, content = as_table(records, columns)
    return write(f"t.{ending}", content)


def test_a_misspelt_reference_id_does_not_become_a_picture_without_its_character(write, as_table):
    records = ({"prompt_id": "a", "prompt": "x"}, {"prompt_id": "b", "prompt": "x", "refrence_id": "ada"})
    row = as_table([], ["x"])[0] in ("csv", "xlsx")  # where the header is row 1
    with pytest.raises(
        TableError,
        match=rf"no column 'refrence_id' \(filled in row {2 + row}\); did you mean 'reference_id'\?.*EXTRA_COLUMNS",
    ):
        read_prompts(table(write, as_table, *records))


def test_a_misspelt_column_that_is_empty_says_nothing(write, as_table):
    found = read_prompts(table(write, as_table, {"prompt_id": "a", "prompt": "x", "refrence_id": ""}))
    assert [row.reference_ids for row in found.rows] == [()]


def test_one_json_record_with_a_misspelt_key_is_enough(write):
    lines = [json.dumps({"prompt_id": f"p{n}", "prompt": "x", "campaign": n}) for n in range(3)]
    lines.append(json.dumps({"prompt_id": "p3", "prompt": "x", "Seed": 7}))
    with pytest.raises(TableError, match=r"'Seed' \(filled in row 4\); did you mean 'seed'"):
        read_prompts(write("p.jsonl", "\n".join(lines)))


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("reference", "reference_id"),
        ("References", "reference_id"),
        ("image", "image_id"),
        ("image_url", "image_id"),
        ("reference_image_urls", "reference_id"),
        ("style_references", "style_reference_ids"),
        ("mask", "mask_id"),
        ("Aspect ratio", "image_size"),
    ],
)
def test_what_fal_or_ideogram_call_a_column_is_ours_only_where_ours_is_missing(write, column, meant):
    with pytest.raises(TableError, match=f"'{column}'.*did you mean '{meant}'"):
        read_prompts(write("p.csv", f"prompt_id,prompt,{column}\na,x,y\n"))
    [row] = read_prompts(write("q.csv", f"prompt_id,prompt,{column},{meant}\na,x,y,square\n")).rows
    assert json.loads(row.extra) == {column: "y"}


def test_extra_columns_are_kept_whatever_they_resemble(write):
    path = write("p.csv", "prompt_id,prompt,refrence_id,Style,style\na,x,ada,mine,kitsch\n")
    own = ("refrence_id", "Style", "style", "not_there")
    [row] = read_prompts(path, extra_columns=own).rows
    assert (row.reference_ids, row.style) == ((), None)
    assert json.loads(row.extra) == {"refrence_id": "ada", "Style": "mine", "style": "kitsch"}


def test_what_a_row_needs_can_not_be_extra(write):
    own = ("prompt_id", "reference_id", "uri", "image", "role")
    [row] = read_prompts(write("p.csv", "prompt_id,prompt,reference_id\na,x,ada\n"), extra_columns=own).rows
    assert (row.prompt_id, row.reference_ids, json.loads(row.extra)) == ("a", (), {"reference_id": "ada"})
    path = write("r.csv", "reference_id,uri,role\nada,nowhere.png,hero\n")
    [rejection] = read_references(path, None, extra_columns=own).rejections
    assert (rejection.row_id, rejection.column) == ("ada", "uri")


def test_a_default_for_a_column_that_does_not_count_is_refused(write):
    with pytest.raises(ConfigurationError, match="'style' stands in IDEOGRAM_EXTRA_COLUMNS too"):
        read_prompts(write("p.csv", "prompt_id,prompt\na,x\n"), {"style": "AUTO"}, extra_columns=["style"])


def test_misspelt_columns_of_references_and_reviews_are_refused_too(write):
    with pytest.raises(TableError, match=r"'licence'.*did you mean 'license'"):
        read_references(write("r.csv", "reference_id,uri,licence\na,x.png,CC0\n"), None)
    path = write("v.csv", "image,sha256,review,reviewed_at,Note\nx,y,picked,2026-11-30,six fingers\n")
    with pytest.raises(TableError, match=r"'Note'.*did you mean 'note'"):
        read_reviews(path)
    assert len(read_reviews(path, extra_columns=["Note"]).rejections) == 1

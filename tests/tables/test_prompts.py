"""The prompts table: every record is a row or a rejection, and one bad record costs only itself."""

import json

import pytest

from ideogram_pipeline.errors import ConfigurationError, TableError
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.rows import REJECTED_BATCH


def test_a_row_needs_an_id_and_a_prompt_only(write):
    [row] = read_prompts(write("p.csv", "prompt_id,prompt\na, a lighthouse \n")).rows
    assert (row.prompt_id, row.prompt, row.batch, row.row_number) == ("a", "a lighthouse", "default", 2)
    given = row.model_dump(exclude={"prompt_id", "prompt", "batch", "row_number", "extra"})
    assert not any(given.values())


def test_every_column_reaches_its_field(write):
    cells = {
        "prompt_id": "a",
        "batch": "drop",
        "prompt": "a lighthouse",
        "endpoint": "character/remix",
        "reference_id": "eileen",
        "reference_mask_id": "eileen-mask",
        "image_id": "coffee",
        "mask_id": "hole",
        "style_reference_ids": "s1|s2",
        "negative_prompt": "blur",
        "rendering_speed": "TURBO",
        "style": "FICTION",
        "style_preset": "BAUHAUS",
        "style_codes": "AAFF5733|00112233",
        "color_palette": "#FF0000:0.5|#00FF00:0.3",
        "image_size": "1280x720",
        "num_images": 4,
        "strength": 0.5,
        "expand_prompt": True,
        "seed": 42,
    }
    [row] = read_prompts(write("p.jsonl", json.dumps(cells))).rows
    lists = {
        "reference_id": ["eileen"],
        "reference_mask_id": ["eileen-mask"],
        "style_reference_ids": ["s1", "s2"],
        "style_codes": ["AAFF5733", "00112233"],
    }
    dumped = json.loads(row.model_dump_json(by_alias=True))
    assert {name: dumped[name] for name in cells} == cells | lists


def test_a_bad_row_is_rejected_with_its_place_and_the_others_go_on(write):
    path = write("p.csv", "prompt_id,batch,prompt,num_images\na,x,one,1\nb,x,two,many\nc,x,three,\n")
    table = read_prompts(path)
    assert [row.prompt_id for row in table.rows] == ["a", "c"]
    [rejection] = table.rejections
    assert (rejection.file, rejection.row_number, rejection.row_id) == (path, 3, "b")
    assert (rejection.batch, rejection.column) == ("x", "num_images")
    assert str(rejection).startswith(f"{path}, row 3, column num_images: ")
    assert str(rejection).endswith("(found 'many')")


def test_a_row_whose_id_would_leave_its_folder_is_rejected(write):
    table = read_prompts(write("p.csv", "prompt_id,prompt\n../../evil,x\nfine,x\n"))
    assert [row.prompt_id for row in table.rows] == ["fine"]
    assert [(entry.row_id, entry.column) for entry in table.rejections] == [("../../evil", "prompt_id")]


def test_a_row_whose_batch_is_no_name_is_shown_where_no_row_can_be(write):
    table = read_prompts(write("p.csv", f"prompt_id,batch,prompt\na,../x,y\nb,{REJECTED_BATCH},y\n"))
    assert table.rows == ()
    assert [entry.batch for entry in table.rejections] == [REJECTED_BATCH, REJECTED_BATCH]


def test_a_record_that_cannot_be_taken_apart_is_a_rejection_of_the_whole_row(write):
    [rejection] = read_prompts(write("p.csv", "prompt_id,prompt\na,one, two\n")).rejections
    assert (rejection.row_id, rejection.column) == ("a", "")
    assert "quote cells that hold commas" in str(rejection)


def test_batches_come_in_the_order_of_the_table(write):
    table = read_prompts(write("p.csv", "prompt_id,batch,prompt\na,z,x\nb,bad/name,x\nc,m,x\nd,z,x\n"))
    assert table.batches == ["z", REJECTED_BATCH, "m"]


def test_numbers_are_ids_like_any_other(write):
    cells = '{"prompt_id": 1, "batch": 7.0, "prompt": "x"}\n{"prompt_id": 2, "batch": 7.0, "prompt": "x", "seed": "?"}'
    table = read_prompts(write("p.jsonl", cells))
    assert [(row.prompt_id, row.batch) for row in table.rows] == [("1", "7")]
    assert [entry.batch for entry in table.rejections] == ["7"]


@pytest.mark.parametrize("again", ["a", " a "])
def test_a_repeated_id_is_an_error_that_names_both_rows(write, again):
    path = write("p.csv", f"prompt_id,prompt\na,x\nb,x\n{again},y\n")
    with pytest.raises(TableError, match="prompt_id 'a' stands in rows 2, 4; ids must be unique"):
        read_prompts(path)


def test_a_number_and_the_same_number_with_a_point_are_one_id(write):
    lines = '{"prompt_id": 1, "prompt": "x"}\n{"prompt_id": 1.0, "prompt": "y"}'
    with pytest.raises(TableError, match="prompt_id '1' stands in rows 1, 2"):
        read_prompts(write("p.jsonl", lines))


def test_rows_without_an_id_are_rejected_each(write):
    table = read_prompts(write("p.csv", "prompt_id,prompt\n,x\n,y\n"))
    assert [(entry.row_number, entry.column) for entry in table.rejections] == [
        (2, "prompt_id"),
        (3, "prompt_id"),
    ]


@pytest.mark.parametrize(("header", "missing"), [("prompt,seed", "prompt_id"), ("prompt_id,seed", "prompt")])
def test_a_table_without_a_column_it_needs_is_an_error(write, header, missing):
    with pytest.raises(TableError, match=f"the column '{missing}' is missing"):
        read_prompts(write("p.csv", f"{header}\na,1\n"))


def test_defaults_fill_absent_and_blank_cells_and_no_others(write):
    table = write("p.csv", "prompt_id,prompt,style\na,a lighthouse,FICTION\nb,,\n")
    defaults = {"style": "REALISTIC", "num_images": 2, "reference_id": "ada|eve", "prompt": "a harbour"}
    rows = read_prompts(table, defaults).rows
    assert [(row.prompt, row.style) for row in rows] == [
        ("a lighthouse", "FICTION"),
        ("a harbour", "REALISTIC"),
    ]
    assert all((row.num_images, row.reference_ids) == (2, ("ada", "eve")) for row in rows)


def test_a_default_can_stand_for_the_whole_prompt_column(write):
    [row] = read_prompts(write("p.csv", "prompt_id\na\n"), {"prompt": "a harbour"}).rows
    assert row.prompt == "a harbour"


@pytest.mark.parametrize(
    ("defaults", "says"),
    [
        ({"stile": "FICTION"}, "'stile'.*did you mean 'style'"),
        ({"row_number": 3}, "no column 'row_number'"),
        ({"reference_id": "a/b"}, "defaults: reference_id: names are letters"),
        ({"prompt_id": "a"}, "prompt_id of its own"),
    ],
)
def test_defaults_that_no_cell_could_hold_are_refused(write, defaults, says):
    with pytest.raises(ConfigurationError, match=says):
        read_prompts(write("p.csv", "prompt_id,prompt\na,b\n"), defaults)


def test_all_that_is_wrong_with_a_row_is_said_at_once(write):
    cells = {
        "prompt_id": "a",
        "prompt": "x",
        "endpoint": "v3/remix",
        "num_images": "many",
        "strength": 7,
        "rendering_speed": "fast",
        "image_size": "21:9",
        "color_palette": "#red|#blue",
        "style_codes": "AAFF5733|zz",
        "seed": -1,
        "reference_id": "a/b|ada|c/d",
    }
    [rejection] = read_prompts(write("p.jsonl", json.dumps(cells))).rejections
    assert (rejection.row_id, rejection.column) == ("a", "reference_id")
    told = str(rejection)
    for column in (
        "reference_id",
        "num_images",
        "rendering_speed",
        "image_size",
        "color_palette",
        "image_id",
    ):
        assert f"{column}: " in told, column
    assert told.count("reference_id: names are letters") == 2
    assert "strength: input should be less than or equal to 1" in told
    assert "there is no aspect ratio 21:9; write 1:1, 16:9, 9:16, " in told


def test_a_row_that_only_rules_forbid_says_every_rule(write):
    path = write("p.csv", "prompt_id,prompt,style_codes,num_images\nbad id,,AAFF5733|zz,2.5\n")
    [rejection] = read_prompts(path).rejections
    assert [part.partition(":")[0] for part in str(rejection).split(", column ")[1].split("; ")] == [
        "prompt_id",
        "num_images",
        "prompt",
        "style_codes",
    ]


def test_two_spellings_of_one_word_are_one_id(write):
    path = write("p.csv", "prompt_id,prompt\nëmilie,x\ne\N{COMBINING DIAERESIS}milie,y\n")
    with pytest.raises(TableError, match="prompt_id 'ëmilie' stands in rows 2, 3"):
        read_prompts(path)


def test_a_batch_that_is_a_whole_number_has_one_spelling_but_where_another_one_was_paid_for(write):
    path = write("p.csv", "prompt_id,batch,prompt\na,2.0,x\nb,3.0,x\nc,3,x\nd,v4.0,x\n")
    found = [row.batch for row in read_prompts(path).rows]
    assert found == ["2", "3", "3", "v4.0"]
    found = [row.batch for row in read_prompts(path, paid_batches=lambda: {"3.0", "3"}).rows]
    assert found == ["2", "3.0", "3", "v4.0"]

"""What tells that a table or a picture was changed, without opening a picture."""

import os

import pytest

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.tables.sources import Sources
from ideogram_pipeline.tables.versions import prompts_version, references_version


@pytest.fixture
def table(tmp_path):
    (tmp_path / "ada.png").write_bytes(b"no picture, and never opened")
    file = tmp_path / "references.csv"
    file.write_text("reference_id,uri\nada,ada.png\nweb,https://example.com/a.png\ngone,gone.png\n")
    return file


def test_a_prompts_table_changes_with_its_bytes_and_with_the_defaults(tmp_path):
    file = tmp_path / "prompts.csv"
    file.write_text("prompt_id,prompt\na,b\n")
    first = prompts_version(str(file), {})
    assert prompts_version(str(file), {}) == first
    assert prompts_version(str(file), {"num_images": 2}) != first
    file.write_text("prompt_id,prompt\na,c\n")
    assert prompts_version(str(file), {}) != first


def test_a_references_table_changes_with_the_size_or_the_time_of_a_picture(table):
    picture = table.parent / "ada.png"
    versions = [references_version(str(table))]
    picture.write_bytes(b"another")
    versions.append(references_version(str(table)))
    os.utime(picture, ns=(0, 0))
    versions.append(references_version(str(table)))
    (table.parent / "gone.png").write_bytes(b"here it is")
    versions.append(references_version(str(table)))
    table.write_text(table.read_text() + "bob,ada.png\n")
    versions.append(references_version(str(table)))
    assert len(set(versions)) == 5
    assert references_version(str(table)) == versions[-1]


@pytest.mark.parametrize("uri", ["https://example.com/a.png", "data:image/png;base64,AAAA"])
def test_an_address_or_the_bytes_themselves_need_no_stamp(table, uri):
    assert Sources(str(table)).stamp(uri) == ""


@pytest.mark.parametrize("uri", ["nowhere.png", "a\0b.png", "x" * 5000])
def test_what_is_not_there_is_absent(table, uri):
    assert Sources(str(table)).stamp(uri) == "absent"


def test_a_missing_table_is_named(tmp_path):
    for version in (references_version, lambda url: prompts_version(url, {})):
        with pytest.raises(TableError, match=r"none\.csv: there is no such file"):
            version(str(tmp_path / "none.csv"))

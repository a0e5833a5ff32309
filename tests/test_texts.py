"""What others wrote, as people see it."""

import json

import pytest

from ideogram_pipeline.texts import MOST, counted, json_shown, lines_shown, markdown, shown

OBEYED = [
    *map(chr, range(32)),
    *map(chr, range(0x7F, 0xA0)),
    *"\u2028\u2029\u202a\u202e\u2066\u2069\u200b\ufeff\ud800",
]


@pytest.mark.parametrize("character", OBEYED, ids=ascii)
def test_what_a_terminal_or_a_line_obeys_stands_as_its_escape(character):
    line = shown(f"a{character}b")
    assert line == f"a{character.encode('unicode_escape').decode()}b"
    assert line.isprintable()


@pytest.mark.parametrize(
    "text", ["[bold]a[/] \\[ \\", ":cat:", "क्षि", "می‌خواهم", "👩‍👩‍👧 🏴󠁧󠁢󠁥󠁮󠁧󠁿", "שלום\u200f", "  two  spaces"]
)
def test_every_other_text_stands_as_it_was_written(text):
    assert shown(text) == text
    assert json.loads(json_shown(json.dumps(text, ensure_ascii=False))) == text


def test_of_a_long_text_the_beginning_and_the_end_are_shown_and_its_length():
    line = shown(f"beginning {'x' * 10_000} the end")
    assert line.startswith("beginning xxx")
    assert line.endswith("the end")
    assert "(10,018 characters)" in line
    assert len(line) < MOST


@pytest.mark.parametrize("before", range(0, 1100, 7))
def test_a_url_that_is_cut_shows_nothing_that_opens_it(before):
    line = shown(f"{'x' * before} https://me:{'secret' * 9}@host.example/?sig={'feed' * 99} end")
    assert ("secret" in line, "feed" in line) == (False, False)


@pytest.mark.parametrize("character", OBEYED, ids=ascii)
def test_json_has_the_same_characters_as_its_own_escapes(character):
    printed = json_shown(json.dumps({"a": f"x{character}"}, ensure_ascii=False))
    assert printed.isprintable()
    assert json.loads(printed) == {"a": f"x{character}"}


def test_a_table_or_code_keeps_its_lines():
    assert lines_shown("a,b\nx,\x1b[31m") == "a,b\nx,\\x1b[31m"


def test_markdown_makes_nothing_of_it():
    assert markdown("![i](http://e/x.png) <b> `c` *d*") == r"\!\[i\]\(http\://e/x.png\) \<b\> \`c\` \*d\*"
    assert markdown("www.e.example me@e.example") == r"www\.e.example me\@e.example", "nor of addresses"


def test_one_is_not_many():
    assert [counted(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "batch", "batches") == "2 batches"

"""The page on networks: every variable that it doesn't call untried is one that a test sets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "network.md").read_text()
IN_TABLES = re.findall(r"`([A-Z][A-Z_0-9]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)))
TESTS = "".join(
    path.read_text()
    for path in [*Path(__file__).parent.glob("*.py"), ROOT / "tests" / "conftest.py"]
    if path != Path(__file__)
)


@pytest.mark.parametrize("variable", IN_TABLES)
def test_a_variable_of_the_page_is_set_by_a_test(variable):
    assert re.search(rf"\"{variable}\"|\b{variable}=", TESTS) or f'({variable}, "' in TESTS


def test_the_page_names_variables_and_says_what_is_untried():
    assert len(IN_TABLES) > 15
    assert "**This is untried**" in PAGE

"""The README's tables: what they name is there, and what is there is named."""

import csv
import re
from pathlib import Path

import pytest

from ideogram_pipeline.fal import FalClient
from ideogram_pipeline.ideogram import ENDPOINTS
from ideogram_pipeline.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
with (ROOT / "data" / "prompts.csv").open(newline="") as file:
    SAMPLE = {row["prompt_id"]: row for row in csv.DictReader(file)}


def table(first_header):
    """The cells of the table whose first header is this, with the code marks taken off."""
    lines = README[README.index(f"\n| {first_header} |") + 1 :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_every_endpoint_has_a_sample_row_of_its_kind():
    named = {code(endpoint)[0]: code(row)[0] for endpoint, row, _ in table("endpoint")}
    assert set(named) == set(ENDPOINTS)
    for endpoint, row in named.items():
        assert SAMPLE[row]["endpoint"] in (endpoint, ""), row


def test_every_parameter_has_a_sample_row_that_sets_it():
    named = [
        (code(parameter)[0], code(column)[0], code(row)[0])
        for parameter, column, row in table("fal's parameter")
    ]
    assert {parameter for parameter, _, _ in named} == {
        field for endpoint in ENDPOINTS.values() for field in endpoint.input_model.model_fields
    }
    assert [row for _, column, row in named if not SAMPLE[row][column]] == []


def test_every_call_of_the_client_names_a_test_that_exists():
    named = {call: code(shown)[0] for calls, _, shown in table("call") for call in code(calls)}
    calls = {name for name, value in vars(FalClient).items() if callable(value)} | {
        name for base in FalClient.__mro__ for name, value in vars(base).items() if callable(value)
    }
    assert set(named) == {name for name in calls if not name.startswith("_")}
    for shown in named.values():
        path, _, test = shown.partition("::")
        assert f"def {test or 'test_'}" in (ROOT / "tests" / "fal" / path).read_text()


@pytest.mark.parametrize("field", Settings.model_fields)
def test_every_setting_stands_in_the_readme(field):
    name = field.upper() if field.startswith("fal_") else f"IDEOGRAM_{field.upper()}"
    assert f"`{name}`" in README


def test_links_lead_to_files_that_exist():
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []

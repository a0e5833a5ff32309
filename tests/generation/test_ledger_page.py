"""docs/ledger.md draws the states that the code has."""

import re
from pathlib import Path
from typing import get_args

from ideogram_pipeline.generation.ledger import EntryState

PAGE = Path(__file__).parents[2] / "docs" / "ledger.md"


def test_the_state_diagram_has_the_states_of_the_code():
    diagram = PAGE.read_text().split("```mermaid\n")[1].split("```")[0]
    arrows = re.findall(r"^ *(\S+) --> (\S+?)(?::.*)?$", diagram, re.M)
    states = {state for arrow in arrows for state in arrow} - {"[*]"}
    assert states == set(get_args(EntryState))

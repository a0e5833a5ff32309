"""What the files of pictures are called: whatever an id is, `datasets` finds one split in a folder of them."""

import tempfile
from pathlib import Path

import pytest
from datasets.data_files import SPLIT_KEYWORDS, get_data_patterns
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ideogram_pipeline.generation.picture_names import in_names, parsed
from ideogram_pipeline.tables.rows import is_name

WORDS = sorted(word for words in SPLIT_KEYWORDS.values() for word in words)
PARTS = st.sampled_from([*WORDS, *"-._079aZ", "é", "да", "Test", "con", "ing", "٣"])


ALL = {"train": ["**"]}
"""How `datasets` finds files none of which is of a split."""


def patterns(names):
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).touch()
        return get_data_patterns(folder)


@given(st.lists(PARTS, min_size=1, max_size=6).map("".join).filter(is_name))
@example("steam-train-01")
@example("train")
@example("test-test")
@settings(max_examples=60)
def test_no_id_makes_a_split_of_its_own(prompt_id):
    name = f"{in_names(prompt_id)}-3c40fe65-0.png"
    assert patterns([name, "b1-3c40fe65-0.jpg", "metadata.parquet"]) == ALL
    assert in_names(prompt_id).lower() == prompt_id.lower()
    found = parsed(name)
    assert (found["prompt_id"], found["short"]) == (in_names(prompt_id), "3c40fe65")
    # only what `datasets` would have taken for a split is altered
    assert (patterns([f"{prompt_id}-3c40fe65-0.png"]) == ALL) is (in_names(prompt_id) == prompt_id)


@pytest.mark.parametrize("prompt_id", ["contest-1", "Test-1", "trainval", "a-evaluations", "eileen-01"])
def test_other_ids_stand_in_names_as_they_are(prompt_id):
    assert in_names(prompt_id) == prompt_id


@pytest.mark.parametrize(
    "name",
    ["._a-3c40fe65-0.png", "a-3c40fe65-0 (conflicted copy).png", "a-3c40fe65-0.webp.tmp", "Thumbs.db", ""],
)
def test_what_others_leave_beside_pictures_is_none(name):
    assert parsed(name) is None

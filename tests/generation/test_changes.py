"""Which batches ask for something else: a digest of each, which their place in the table doesn't touch."""

import random
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.generation import readings
from ideogram_pipeline.generation.changes import batch_digests
from ideogram_pipeline.generation.planner import References
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection

COLUMNS = ("reference_ids", "reference_mask_ids", "style_reference_ids", "image_id", "mask_id")


def row(prompt_id, batch, number, **cells):
    return PromptRow(prompt_id=prompt_id, batch=batch, row_number=number, **cells)


def reference(sha256):
    return References.of(
        [
            Reference(
                reference_id="ada",
                row_number=2,
                uri="ada.png",
                sha256=sha256,
                kind="png",
                width=9,
                height=9,
                bytes=9,
            )
        ],
        [],
    )


def digests_of(rows, rejections, references):
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        readings.write_prompts(store, PromptsTable(tuple(rows), tuple(rejections)))
        return batch_digests(readings.newest_prompts(store)[0].batches, references)


@given(batches=st.lists(st.sampled_from(["one", "two", "three"]), max_size=12), random=st.randoms())
def test_the_order_of_the_rows_does_not_count(batches: list[str], random: random.Random):
    rows = [row(f"p{number}", batch, number) for number, batch in enumerate(batches, 2)]
    moved = random.sample(rows, len(rows))
    renumbered = [one.model_copy(update={"row_number": number}) for number, one in enumerate(moved, 2)]
    digests = digests_of(rows, [], References({}, {}))
    assert digests_of(renumbered, [], References({}, {})) == digests
    assert set(digests) == set(batches)


@pytest.mark.parametrize("column", COLUMNS)
def test_the_bytes_of_each_reference_that_a_row_names_count(column):
    rows = [row("a", "one", 2, **{column: "ada"}), row("b", "two", 3)]
    before, after, without = (
        digests_of(rows, [], references)
        for references in (reference("0" * 64), reference("1" * 64), References({}, {}))
    )
    assert len({before["one"], after["one"], without["one"]}) == 3
    assert before["two"] == after["two"] == without["two"]


def test_a_row_that_is_changed_added_or_rejected_counts_for_its_batch_alone():
    both = [row("a", "one", 2, prompt="x"), row("b", "two", 3)]
    rejection = Rejection(
        file="prompts.csv", row_number=4, row_id="c", batch="one", column="seed", reason="it is no number"
    )
    tables = [
        (both, []),
        ([row("a", "one", 2, prompt="y"), both[1]], []),
        ([*both, row("c", "one", 4)], []),
        (both, [rejection]),
    ]
    digests = [digests_of(*table, References({}, {})) for table in tables]
    assert len({found["one"] for found in digests}) == 4
    assert len({found["two"] for found in digests}) == 1

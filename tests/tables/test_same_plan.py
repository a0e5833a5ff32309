"""One table of texts makes one plan, whatever format it is saved in."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.generation.planner import References, plan_batch
from ideogram_pipeline.tables.prompts import PROMPT_COLUMNS, read_prompts
from ideogram_pipeline.tables.rows import Reference

REFERENCES = References.of(
    [
        Reference(
            reference_id="eileen",
            row_number=2,
            uri="eileen.png",
            sha256="0" * 64,
            kind="png",
            width=1024,
            height=1024,
            bytes=1000,
        )
    ],
    [],
)
WORDS = st.sampled_from(
    [
        *(
            "eileen",
            "eileen|x",
            "TURBO",
            "quality",
            "1280x720",
            "square_hd",
            "v3",
            "character",
            "v3/edit",
            "true",
        ),
        *("20261.0", "7", "7.0", "007", "0.0", "1", "-1", "1e5", "2026-11-30", "#N/A", "#REF!", "=1+1"),
        *("NaN", "nan", "null", "NA", "None", "हिन्दी", "e\N{COMBINING DIAERESIS}", "\ufeff", "_x000D_"),
        *("a\r\nb", "a\tb", "a,b", "a;b", '"a"', "'a"),
    ]
)
OTHER_COLUMNS = [*PROMPT_COLUMNS[3:], "batch", "campaign"]
TEXTS = WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_table_of_texts_plans_alike_in_every_format(formats, data):
    columns = [
        "prompt_id",
        "prompt",
        *data.draw(st.lists(st.sampled_from(OTHER_COLUMNS), unique=True, max_size=4)),
    ]
    count = data.draw(st.integers(1, 4))
    records = [
        {"prompt_id": data.draw(st.just(f"p{number}") | TEXTS)}
        | {name: data.draw(TEXTS) for name in columns[1:]}
        for number in range(count)
    ]
    first, *others = [planned(encode(records, columns), ending) for ending, encode in formats.items()]
    assert all(plan == first for plan in others)


def planned(content: bytes, ending: str) -> object:
    """Return what a table plans, without the numbers of its rows; or why it can't be used."""
    with TemporaryDirectory() as folder:
        path = Path(folder, f"p.{ending}")
        path.write_bytes(content)
        try:
            table = read_prompts(str(path))
        except TableError as error:
            return "ids" in str(error)
    plans = [
        plan_batch(
            batch,
            [row.model_copy(update={"row_number": 0}) for row in table.rows if row.batch == batch],
            [
                rejection.model_copy(update={"row_number": 0, "file": ""})
                for rejection in table.rejections
                if rejection.batch == batch
            ],
            REFERENCES,
            {},
        )
        for batch in table.batches
    ]
    return [
        (plan.batch, [(row.prompt_id, row.decision, row.reason, row.request) for row in plan.rows])
        for plan in plans
    ]

"""The rows people query: one a picture, one a prompt row, with the columns that were promised."""

import json

import pytest

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.records import image_rows, outcome_rows
from ideogram_pipeline.generation.rows import ImageRow
from ideogram_pipeline.storage import parquet
from ideogram_pipeline.tables.rows import Rejection

METADATA_COLUMNS = """
file_name string
prompt_id string
batch string
image_index int64
take int64
current bool
endpoint string
prompt string?
negative_prompt string?
reference_ids list<item: string>
reference_sha256s list<item: string>
reference_mask_ids list<item: string>
reference_mask_sha256s list<item: string>
style_reference_ids list<item: string>
style_reference_sha256s list<item: string>
image_id string?
image_sha256 string?
mask_id string?
mask_sha256 string?
sent_sha256s string
rendering_speed string?
style string?
style_preset string?
style_codes list<item: string>
color_palette string?
image_size string?
num_images int64
strength double?
expand_prompt bool?
sync_mode bool?
seed int64
seed_returned int64?
request_json string
fingerprint string
request_id string?
width int64
height int64
format string
bytes int64
sha256 string
sha256_received string
manifest_id string?
stamped_at timestamp[us, tz=UTC]?
unstamped_because string?
unmarked_because string?
perceptual_hash string?
nearest_image string?
nearest_distance int64?
reference_distance int64?
face_distance double?
submitted_at timestamp[us, tz=UTC]?
started_at timestamp[us, tz=UTC]?
completed_at timestamp[us, tz=UTC]
inference_s double?
cost_usd double?
cost_source string
attempts int64
backend string
dagster_run_id string
code_version string
extra string
"""

ROWS = [
    {"prompt_id": "a", "prompt": "a lighthouse", "num_images": 2, "campaign": "spring"},
    {"prompt_id": "b", "prompt": "a harbour", "rendering_speed": "TURBO", "image_size": "1280x704"},
]


def test_the_columns_of_metadata_parquet_are_those_promised():
    columns = [
        f"{field.name} {field.type}{'?' if field.nullable else ''}"
        for field in parquet.arrow_schema(ImageRow)
    ]
    assert columns == METADATA_COLUMNS.split("\n")[1:-1]


def test_every_picture_has_a_row_that_leads_to_it(store, work_batch):
    work_batch(ROWS)
    rows = files.read_images(store, "drop")
    assert [(row.prompt_id, row.image_index) for row in rows] == [("a", 0), ("a", 1), ("b", 0)]
    pictures = {found.path for found in store.objects("images") if not found.path.endswith(".parquet")}
    assert {f"images/batch=drop/{row.file_name}" for row in rows} == pictures


def test_a_row_says_what_was_asked_and_what_came(store, work_batch):
    batch = work_batch(ROWS)
    first, _, last = files.read_images(store, "drop")
    assert (last.prompt, last.rendering_speed, last.image_size) == ("a harbour", "TURBO", "1280x704")
    assert (last.width, last.height, last.format) == (64, 48, "png")
    assert (last.seed, last.seed_returned) == (batch.request("b").seed, 7)
    assert json.loads(last.request_json) == batch.request("b").arguments
    assert (last.backend, last.dagster_run_id, last.request_id) == ("sandbox", "run-1", "request-b")
    assert (last.completed_at - last.started_at).total_seconds() == last.inference_s == 2.5
    assert json.loads(first.extra) == {"campaign": "spring"}


def test_a_row_names_the_other_picture_of_its_batch_that_looks_most_like_it(store, work_batch):
    work_batch(ROWS)
    work_batch(ROWS[1:], batch="alone")
    rows = files.read_images(store, "drop")
    for row in rows:
        others = {other.file_name for other in rows if other is not row}
        assert row.nearest_image in others
        assert (row.nearest_distance, row.reference_distance) == (0, None)
    (alone,) = files.read_images(store, "alone")
    assert alone.perceptual_hash
    assert (alone.nearest_image, alone.nearest_distance) == (None, None)


def test_the_cost_of_a_request_is_shared_by_its_pictures(store, work_batch):
    work_batch(ROWS)
    assert [row.cost_usd for row in files.read_images(store, "drop")] == [0.06, 0.06, 0.03]


def test_a_picture_of_an_edited_row_stays_and_is_not_current(store, work_batch):
    work_batch(ROWS)
    work_batch([ROWS[0] | {"prompt": "a lighthouse at night"}, ROWS[1]])
    rows = files.read_images(store, "drop")
    assert sorted((row.prompt_id, row.prompt, row.current) for row in rows) == [
        ("a", "a lighthouse", False),
        ("a", "a lighthouse", False),
        ("a", "a lighthouse at night", True),
        ("a", "a lighthouse at night", True),
        ("b", "a harbour", True),
    ]


def test_an_edited_column_of_no_meaning_reaches_the_pictures_there_are(store, work_batch):
    work_batch(ROWS)
    work_batch([ROWS[0] | {"campaign": "autumn"}])
    rows = [row for row in files.read_images(store, "drop") if row.prompt_id == "a"]
    assert {(row.extra, row.current) for row in rows} == {('{"campaign": "autumn"}', True)}


def test_the_rows_can_be_made_again_from_plan_and_ledger(store, work_batch):
    batch = work_batch(ROWS, endings={"a": "failed"})
    plan, entries = files.read_plan(store, "drop"), batch.ledger.entries
    assert list(image_rows(plan, entries)) == files.read_images(store, "drop")
    assert list(outcome_rows(plan, batch.outcomes, entries)) == files.read_outcomes(store, "drop")


ENDINGS = {"g": "generated", "x": "refused", "f": "failed", "u": "unknown", "n": "not_reached"}


def test_every_row_of_the_table_has_one_outcome_in_the_tables_order(store, work_batch):
    rejection = Rejection(
        file="p.csv", row_number=99, row_id="../evil", batch="drop", column="prompt_id", reason="no name"
    )
    rows = [{"prompt_id": name, "prompt": "x"} for name in ENDINGS] + [{"prompt_id": "e"}]
    work_batch(rows, endings=ENDINGS, rejections=[rejection])
    found = files.read_outcomes(store, "drop")
    assert {row.prompt_id: row.state for row in found} == ENDINGS | {"e": "rejected", "../evil": "rejected"}
    assert [row.row_number for row in found] == sorted(row.row_number for row in found)
    assert all(bool(row.reason) == (row.state != "generated") for row in found)


@pytest.mark.parametrize(
    ("ending", "cost_usd", "cost_source", "attempts", "images"),
    [
        ("generated", 0.06, "price_list", 1, 1),
        ("refused", 0.0, "price_list", 1, 0),
        ("unknown", None, "unknown", 1, 0),
        ("not_reached", 0.0, "price_list", 0, 0),
    ],
)
def test_an_outcome_says_what_is_known_of_its_money(
    store, work_batch, ending, cost_usd, cost_source, attempts, images
):
    work_batch([{"prompt_id": "a", "prompt": "x"}], endings={"a": ending})
    [row] = files.read_outcomes(store, "drop")
    assert (row.cost_usd, row.cost_source, row.attempts, row.images) == (
        cost_usd,
        cost_source,
        attempts,
        images,
    )


def test_a_rejected_row_names_its_column(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x", "num_images": 9}])
    [row] = files.read_outcomes(store, "drop")
    assert (row.state, row.column, row.fingerprint, row.cost_usd) == ("rejected", "num_images", None, 0.0)
    assert row.reason.startswith("num_images: ")


def test_a_row_that_was_paid_before_is_generated_and_pays_nothing_more(store, work_batch):
    before = work_batch(ROWS)
    again = work_batch(ROWS)
    assert again.ledger.entries == before.ledger.entries
    assert {row.state for row in files.read_outcomes(store, "drop")} == {"generated"}
    assert {row.decision for row in again.plan.rows} == {"reused"}

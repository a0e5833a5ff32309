"""The reviews table: the newest verdict on each picture, and rows that are none."""

import json
from datetime import UTC, date, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ideogram_pipeline.errors import TableError
from ideogram_pipeline.generation import files
from ideogram_pipeline.tables.reviews import read_reviews

DIGEST = "ab" * 32


def write(tmp_path, *lines):
    path = tmp_path / "reviews.csv"
    path.write_text("\n".join(["image,sha256,review,note,reviewed_at,batch,prompt_id", *lines]) + "\n")
    return str(path)


def test_the_newest_review_of_a_picture_counts(tmp_path):
    table = read_reviews(
        write(
            tmp_path,
            f"images/batch=a/x.png,{DIGEST},rejected,six fingers,2026-11-27T10:00:00Z,a,x",
            f"images/batch=a/x.png,{DIGEST},picked,,2026-11-27T09:00:00,a,x",
            f"images/batch=b/y.png,{DIGEST},rejected,,2026-11-27T10:00:00Z,b,y",
            f"images/batch=b/y.png,{DIGEST},picked,after all,2026-11-27T11:00:00+01:00,b,y",
        )
    )
    found = [(one.image, one.batch, one.review, one.note) for one in table.reviews]
    assert found == [
        ("images/batch=a/x.png", "a", "rejected", "six fingers"),
        ("images/batch=b/y.png", "b", "picked", "after all"),
    ]
    assert table.rejections == ()


def test_rows_that_are_no_review_are_named_and_the_others_count(tmp_path):
    table = read_reviews(
        write(
            tmp_path,
            f"images/batch=a/1.png,{DIGEST},maybe,,2026-11-27T10:00:00Z,,",
            "images/batch=a/2.png,abc,picked,,2026-11-27T10:00:00Z,,",
            f"images/batch=a/3.png,{DIGEST},picked,,yesterday,,",
            f"images/batch=a/4.png,{DIGEST},picked,,2026-11-27,,",
        )
    )
    assert [one.image for one in table.reviews] == ["images/batch=a/4.png"]
    assert [(one.row_number, one.column) for one in table.rejections] == [
        (2, "review"),
        (3, "sha256"),
        (4, "reviewed_at"),
    ]


def test_a_table_without_verdicts_is_refused(tmp_path):
    (tmp_path / "reviews.csv").write_text("image,sha256\nx,y\n")
    with pytest.raises(TableError, match="review"):
        read_reviews(str(tmp_path / "reviews.csv"))


def test_a_folder_of_tables_is_one_table(tmp_path):
    folder = tmp_path / "reviews"
    folder.mkdir()
    header = "image,sha256,review,reviewed_at"
    (folder / "ann.csv").write_text(f"{header}\nimages/batch=a/x.png,{DIGEST},picked,2026-11-27T10:00:00Z\n")
    (folder / "ben.csv").write_text(
        f"{header}\nimages/batch=a/x.png,{DIGEST},rejected,2026-11-27T11:00:00Z\nimages/batch=a/y.png,1,picked,now\n"
    )
    table = read_reviews(str(folder))
    assert [(one.image, one.review) for one in table.reviews] == [("images/batch=a/x.png", "rejected")]
    assert [(rejection.file, rejection.row_number) for rejection in table.rejections] == [
        (str(folder / "ben.csv"), 3)
    ]


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("9999-12-31T23:59:59.999999Z", True),
        ("9999-12-31T23:59:59-14:00", False),
        ("0001-01-01T00:00:00Z", True),
        ("0001-01-01", True),
        ("0001-01-01T00:00:00+14:00", False),
    ],
)
def test_a_review_at_the_ends_of_time_is_kept_or_rejected_and_stops_nothing(tmp_path, store, written, kept):
    table = read_reviews(
        write(
            tmp_path,
            f"images/batch=a/x.png,{DIGEST},rejected,,{written},,",
            f"images/batch=a/x.png,{DIGEST},picked,,2026-11-27T10:00:00+01:00,,",
            f"images/batch=a/y.png,{DIGEST},picked,,{written},,",
        )
    )
    assert [one.image for one in table.reviews] == [f"images/batch=a/{name}.png" for name in "xy"[: 1 + kept]]
    assert [one.column for one in table.rejections] == ["reviewed_at"] * (0 if kept else 2)
    files.write_reviews(store, table)
    assert list(files.read_reviews(store, table.url, "a").values()) == list(table.reviews)


@pytest.mark.parametrize("ending", ["xlsx", "parquet", "jsonl"])
def test_a_date_beside_a_time_with_a_zone_can_be_compared(tmp_path, ending):
    day, later = date(2026, 11, 27), datetime(2026, 11, 27, 12)
    (tmp_path / "reviews").mkdir()
    for name, at, review in (("a", day, "rejected"), ("b", later, "picked")):
        record = {"image": "images/batch=a/x.png", "sha256": DIGEST, "review": review, "reviewed_at": at}
        path = tmp_path / "reviews" / f"{name}.{ending}"
        match ending:
            case "xlsx":
                pd.DataFrame([record]).to_excel(path, index=False)
            case "parquet":
                pq.write_table(pa.Table.from_pylist([record]), path)
            case _:
                path.write_text(json.dumps(record, default=str))
    header = "image,sha256,review,reviewed_at"
    (tmp_path / "reviews" / "c.csv").write_text(
        f"{header}\nimages/batch=a/x.png,{DIGEST},rejected,2026-11-27T12:00:00+02:00\n"
    )
    table = read_reviews(str(tmp_path / "reviews"))
    assert table.rejections == ()
    assert [(one.review, one.reviewed_at) for one in table.reviews] == [
        ("picked", datetime(2026, 11, 27, 12, tzinfo=UTC))
    ]


def test_what_programs_leave_in_a_folder_of_reviews_is_passed_over(tmp_path):
    folder = tmp_path / "reviews"
    (folder / "archive").mkdir(parents=True)
    (folder / "old.csv").mkdir()
    text = f"image,sha256,review,reviewed_at\nimages/batch=a/x.png,{DIGEST},picked,2026-11-27\n"
    (folder / "ann.csv").write_text(text)
    (folder / "archive" / "ben.csv").write_text(text.replace("picked", "rejected"))
    for name in (
        ".DS_Store",
        "._ann.csv",
        ".~lock.ann.xlsx#",
        ".~lock.ann.csv#",
        "~$ann.xlsx",
        "~WRL0001.tmp",
        "ann.csv~",
        "ann.csv.bak",
        "Thumbs.db",
        "desktop.ini",
    ):
        (folder / name).write_bytes(b"\0\1not a table")
    table = read_reviews(str(folder))
    assert [(one.image, one.review) for one in table.reviews] == [("images/batch=a/x.png", "picked")]
    assert table.rejections == ()


def test_a_file_that_a_person_put_into_a_folder_of_reviews_is_never_passed_over(tmp_path):
    (tmp_path / "ben.numbers").write_bytes(b"")
    with pytest.raises(TableError, match=r"ben\.numbers"):
        read_reviews(str(tmp_path))

"""The reviews table: the newest verdict on each picture, and rows that are none."""

import pytest

from ideogram_pipeline.errors import TableError
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

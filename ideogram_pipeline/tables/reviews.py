"""The reviews table: what people think of pictures, as the gallery exports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ideogram_pipeline.tables.reader import RawRow, read_rows
from ideogram_pipeline.tables.rows import Rejection, Review, RowProblem, parse_row


@dataclass(frozen=True, slots=True)
class ReviewsTable:
    """What a reviews table holds."""

    reviews: tuple[Review, ...]
    """The newest review of each picture, by its path."""
    rejections: tuple[Rejection, ...]
    """Rows that are no review, in table order."""
    url: str = ""
    """Where it was read from."""


def read_reviews(url: str) -> ReviewsTable:
    """Read a reviews table, or all that lie in a local folder, by name.

    Of several reviews of one file the newest counts, and of two at once the later row.

    Raises:
        TableError: the file is missing or unreadable, or lacks a column that reviews need.
    """
    newest: dict[str, Review] = {}
    rejections: list[Rejection] = []
    folder = Path(url).expanduser()
    tables = sorted(map(str, folder.iterdir())) if folder.is_dir() else [url]
    for table in tables:
        for record in read_rows(table, required=("image", "sha256", "review", "reviewed_at")):
            try:
                review = parse_row(Review, record)
            except RowProblem as problem:
                rejections.append(_rejection(table, record, problem))
                continue
            before = newest.get(review.image)
            if before is None or before.reviewed_at <= review.reviewed_at:
                newest[review.image] = review
    return ReviewsTable(tuple(newest[image] for image in sorted(newest)), tuple(rejections), url)


def _rejection(table: str, record: RawRow, problem: RowProblem) -> Rejection:
    return Rejection(
        file=table,
        row_number=record.number,
        row_id=str(record.cells.get("image", "")),
        column=problem.column,
        reason=problem.reason,
    )

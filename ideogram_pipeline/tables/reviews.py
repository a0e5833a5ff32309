"""The reviews table: what people think of pictures, as the gallery exports it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ideogram_pipeline.tables.columns import refuse_mistyped
from ideogram_pipeline.tables.reader import RawRow, read_rows
from ideogram_pipeline.tables.rows import Rejection, Review, RowProblem, parse_row

_PROGRAMS_BEGIN = (".", "~")
"""`.DS_Store`, `._ann.csv`; `.~lock.ann.xlsx#` of LibreOffice and `~$ann.xlsx` of Excel, while it is open."""
_PROGRAMS_END = ("~", ".tmp", ".bak", ".part", ".crdownload")
_FOLDERS_SHOWN = ("desktop.ini", "thumbs.db", "icon\r")


@dataclass(frozen=True, slots=True)
class ReviewsTable:
    """What a reviews table holds."""

    reviews: tuple[Review, ...]
    """The newest review of each picture, by its path."""
    rejections: tuple[Rejection, ...]
    """Rows that are no review, in table order."""
    url: str = ""
    """Where it was read from."""


def read_reviews(url: str, *, extra_columns: Collection[str] = ()) -> ReviewsTable:
    """Read a reviews table, or all that lie in a local folder, by name; not what lies in folders in it.

    Of several reviews of one file the newest counts, and of two at once the later row. What systems and programs leave
    in a folder is passed over; any other file in it has to be a reviews table. `extra_columns` are people's own,
    whatever they are called.

    Raises:
        TableError: a file is missing or unreadable, lacks a column that reviews need, or has one that is nearly called
            as one that counts.
    """
    newest: dict[str, Review] = {}
    rejections: list[Rejection] = []
    for table in _tables(url):
        records = read_rows(table, required=("image", "sha256", "review", "reviewed_at"))
        refuse_mistyped(table, records, Review, extra_columns)
        for record in records:
            try:
                review = parse_row(Review, record, extra_columns)
            except RowProblem as problem:
                rejections.append(_rejection(table, record, problem))
                continue
            before = newest.get(review.image)
            if before is None or before.reviewed_at <= review.reviewed_at:
                newest[review.image] = review
    return ReviewsTable(tuple(newest[image] for image in sorted(newest)), tuple(rejections), url)


def _tables(url: str) -> list[str]:
    folder = Path(url).expanduser()
    if "://" in url or not folder.is_dir():
        return [url]
    files = (found for found in folder.iterdir() if found.is_file() and not _of_a_program(found.name))
    return sorted(map(str, files))


def _of_a_program(name: str) -> bool:
    """Say whether a system or a program has left a file: a lock, a backup, or how a folder is shown."""
    return name.startswith(_PROGRAMS_BEGIN) or name.endswith(_PROGRAMS_END) or name.lower() in _FOLDERS_SHOWN


def _rejection(table: str, record: RawRow, problem: RowProblem) -> Rejection:
    return Rejection(
        file=table,
        row_number=record.number,
        row_id=str(record.cells.get("image", "")),
        column=problem.column,
        reason=problem.reason,
    )

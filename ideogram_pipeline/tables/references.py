"""The references table: every record becomes a reference whose picture was opened, or a rejection."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.pictures import EXTENSIONS, BadPicture, Picture, inspect
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.columns import refuse_mistyped
from ideogram_pipeline.tables.erased import Tombstone, refusal
from ideogram_pipeline.tables.prompts import refuse_repeated_ids
from ideogram_pipeline.tables.reader import RawRow, read_rows
from ideogram_pipeline.tables.rows import (
    Problem,
    Reference,
    ReferenceRow,
    Rejection,
    RowProblem,
    as_text,
    parse_row,
)
from ideogram_pipeline.tables.sources import Sources


@dataclass(frozen=True, slots=True)
class ReferencesTable:
    """What a references table holds."""

    references: tuple[Reference, ...]
    """The usable references, in table order."""
    rejections: tuple[Rejection, ...]
    """The others, in table order."""
    url: str = ""
    """Where it was read from."""


def picture_path(reference: Reference) -> str:
    """Return where in the store a reference lies: under its digest, so that what was hashed is what is sent."""
    return f"references/{reference.sha256}.{EXTENSIONS[reference.kind]}"


def read_references(
    url: str,
    store: Store | None,
    *,
    erased: Mapping[str, Tombstone] = MappingProxyType({}),
    private_hosts: Collection[str] = (),
    extra_columns: Collection[str] = (),
) -> ReferencesTable:
    """Read a references table and open every picture in it; keep a copy of the bytes in `store`, where one is given.

    A picture that was `erased` is refused, and no copy is kept. Pictures on the web may also lie on `private_hosts`.
    `extra_columns` are people's own, whatever they are called.

    Raises:
        TableError: the file is missing or unreadable, lacks `reference_id` or `uri`, has a column that is nearly called
            as one that counts, or repeats a `reference_id`.
    """
    records = read_rows(url, required=("reference_id", "uri"))
    refuse_mistyped(url, records, ReferenceRow, extra_columns)
    refuse_repeated_ids(url, "reference_id", records)
    sources = Sources(url, private_hosts)
    kept = {found.path: found.size for found in store.objects("references")} if store else {}

    def opened(row: ReferenceRow) -> tuple[Reference, bytes]:
        content = _content(row, sources)
        reference = _reference(row, _picture(content))
        if stone := erased.get(reference.sha256):
            raise RowProblem(Problem("uri", refusal(stone)))
        return reference, content

    def open_one(record: RawRow) -> Reference | Rejection:
        def of_its_picture(row: ReferenceRow) -> Iterable[Problem]:
            try:
                if row.uri == as_text(record.cells.get("uri")):
                    opened(row)
            except RowProblem as problem:
                return problem.problems
            return ()

        try:
            reference, content = opened(parse_row(ReferenceRow, record, extra_columns, of_its_picture))
        except RowProblem as problem:
            return Rejection(
                file=url,
                row_number=record.number,
                row_id=str(record.cells.get("reference_id", "")),
                column=problem.column,
                reason=problem.reason,
            )
        if store and kept.get(picture_path(reference)) != len(content):
            store.create(picture_path(reference), content)
        return reference

    with ThreadPoolExecutor(max_workers=8) as threads:
        entries = list(threads.map(open_one, records))
    return ReferencesTable(
        references=tuple(entry for entry in entries if isinstance(entry, Reference)),
        rejections=tuple(entry for entry in entries if isinstance(entry, Rejection)),
        url=url,
    )


def _reference(row: ReferenceRow, picture: Picture) -> Reference:
    return Reference(
        **row.model_dump(exclude={"uri"}),
        uri=row.uri if not row.uri.startswith("data:") else f"data:image/{picture.kind}",
        sha256=picture.sha256,
        kind=picture.kind,
        width=picture.width,
        height=picture.height,
        bytes=picture.bytes,
        perceptual_hash=picture.perceptual_hash,
    )


def _content(row: ReferenceRow, sources: Sources) -> bytes:
    try:
        return sources.reference(row.uri)
    except (OSError, StoreError) as error:
        raise RowProblem(Problem("uri", f"the picture can't be read: {error}")) from None


def _picture(content: bytes) -> Picture:
    try:
        return inspect(content)
    except BadPicture as problem:
        raise RowProblem(Problem("uri", f"the picture can't be used: {problem}")) from None

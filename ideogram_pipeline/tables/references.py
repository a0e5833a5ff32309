"""The references table: every record becomes a reference whose picture was opened, or a rejection.

Where EXIF turns a picture, an upright copy of it is made and sent in its place: nobody knows of every program on the
way whether it turns pictures, and a mask fits only one of the two. The picture stays what the table names, and its
digest what requests are told apart by.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.pictures import EXTENSIONS, BadPicture, Examined, examine
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

KEPT_COPY = re.compile(r"references/([0-9a-f]{64})\.\w+")
"""Where the copy of a picture with a digest lies: see `picture_path`."""
_UPRIGHT = re.compile(r"references/(?P<original>[0-9a-f]{64})\.(?P<sent>[0-9a-f]{64})\.\w+")


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


def upright_path(path: str, sent_sha256: str) -> str:
    """Return where the upright copy lies of the picture at a path: under both digests, its picture's first."""
    stem, _, extension = path.rpartition(".")
    return f"{stem}.{sent_sha256}.{extension}"


def upright_copies(store: Store) -> dict[str, str]:
    """Return the digests of the pictures of which the store has an upright copy, by the digests of these."""
    names = (_UPRIGHT.fullmatch(found.path) for found in store.objects("references"))
    return {name["sent"]: name["original"] for name in names if name}


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

    def opened(row: ReferenceRow) -> tuple[Reference, Mapping[str, bytes]]:
        content = _content(row, sources)
        found = _examined(content)
        reference = _reference(row, found)
        if stone := erased.get(reference.sha256):
            raise RowProblem(Problem("uri", refusal(stone)))
        return reference, dict(_copies(reference, content, found.upright))

    def open_one(record: RawRow) -> Reference | Rejection:
        def of_its_picture(row: ReferenceRow) -> Iterable[Problem]:
            try:
                if row.uri == as_text(record.cells.get("uri")):
                    opened(row)
            except RowProblem as problem:
                return problem.problems
            return ()

        try:
            reference, copies = opened(parse_row(ReferenceRow, record, extra_columns, of_its_picture))
        except RowProblem as problem:
            return Rejection(
                file=url,
                row_number=record.number,
                row_id=str(record.cells.get("reference_id", "")),
                column=problem.column,
                reason=problem.reason,
            )
        for path, copy in copies.items():
            if store and kept.get(path) != len(copy):
                store.create(path, copy)
        return reference

    with ThreadPoolExecutor(max_workers=8) as threads:
        entries = list(threads.map(open_one, records))
    return ReferencesTable(
        references=tuple(entry for entry in entries if isinstance(entry, Reference)),
        rejections=tuple(entry for entry in entries if isinstance(entry, Rejection)),
        url=url,
    )


def _copies(reference: Reference, content: bytes, upright: bytes | None) -> Iterator[tuple[str, bytes]]:
    """Yield what is kept of a picture, and where."""
    yield picture_path(reference), content
    if upright is not None and reference.sent_sha256:
        yield upright_path(picture_path(reference), reference.sent_sha256), upright


def _reference(row: ReferenceRow, found: Examined) -> Reference:
    picture, upright = found.picture, found.upright
    return Reference(
        **row.model_dump(exclude={"uri"}),
        uri=row.uri if not row.uri.startswith("data:") else f"data:image/{picture.kind}",
        sha256=picture.sha256,
        kind=picture.kind,
        width=picture.width,
        height=picture.height,
        bytes=picture.bytes,
        perceptual_hash=picture.perceptual_hash,
        sent_sha256=hashlib.sha256(upright).hexdigest() if upright is not None else None,
        sent_bytes=len(upright) if upright is not None else None,
        as_mask=found.as_mask,
    )


def _content(row: ReferenceRow, sources: Sources) -> bytes:
    try:
        return sources.reference(row.uri)
    except (OSError, StoreError) as error:
        raise RowProblem(Problem("uri", f"the picture can't be read: {error}")) from None


def _examined(content: bytes) -> Examined:
    try:
        return examine(content)
    except BadPicture as problem:
        mend = f"; {problem.mend}" if problem.mend else ""
        raise RowProblem(Problem("uri", f"the picture can't be used: {problem}{mend}")) from None

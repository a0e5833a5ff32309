"""What tells of erased pictures, wherever it lies: every folder of the store is looked through by one list.

A file tells by its name, or by what stands in it: the digest of an erased picture or of one that came from it, the
fingerprint of a request, fal's id of it, the name of a picture of it. Both the removal and the checks walk this list.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from pydantic import JsonValue

from ideogram_pipeline.errors import DamagedFile
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.picture_names import ENDED
from ideogram_pipeline.storage import Store, parquet, versions
from ideogram_pipeline.storage.versions import Purged, Version
from ideogram_pipeline.tables.erased import DIGEST, Tombstone, by_digest, fingerprints
from ideogram_pipeline.texts import counted

if TYPE_CHECKING:
    import pyarrow as pa

READ: Mapping[str, tuple[str, ...]] = {
    "catalog": (".parquet",),
    "credentials": (),
    "gallery": (".html", ".js", ".json"),
    "images": (".parquet",),
    "inbox": (),
    "ledger": (),
    "ledger_copies": (".gz",),
    "ledger_gaps": (".json",),
    "limits": (".json",),
    "lineage": (".parquet",),
    "outcomes": (".parquet",),
    "plans": (".parquet",),
    "references": (),
    "run_plans": (".parquet",),
    "tables": (".json", ".parquet"),
    "takes": (".json",),
    "uploads": (),
}
"""The folders that may hold traces, with the files in them that are read; of the others the name tells enough."""
NOT_LOOKED_THROUGH = frozenset({"budget", "claims", "dagster", "doctor", "erased", "runs", "sandbox"})
"""Folders that hold no trace, or are seen to by those who know them (Dagster's records, the sandbox's memory)."""

_DERIVED = ("catalog/", "gallery/", "ledger_copies/")
"""What is made anew from the rest goes as whole files."""
_PICTURE = re.compile(rf"(?P<stem>[^/]+{ENDED})\.[a-z]+")
"""The name of a picture, and of its thumbnail or signature."""
_WITHIN = re.compile(rf"{ENDED}(?!\d)")
"""What other programs' names for a copy or a thumbnail of one have in them, such as `._a-3c40fe65-0.png`."""
_LINK = re.compile(r"batch=(?P<batch>[^/\"']+)/(?:thumbnails/)?(?P<name>[^/\"'<>]+-[0-9a-f]{8}-\d+\.[a-z]+)")
"""Where a page of the gallery leads to a picture."""
_PEOPLES = frozenset({"prompt", "negative_prompt", "extra", "notes", "note"})
"""Columns in which people write what they like."""
_NEAREST = "nearest_image", "nearest_distance"
"""Columns that tell of the picture of another row."""
_NAMES = frozenset({"reference_ids", "reference_mask_ids", "style_reference_ids", "image_id", "mask_id"})
"""Columns of the prompts table that name references."""
_LEFTOVER = re.compile(r"#\d+$")
_ASIDE = ".new"
"""Ends the name of a file of the catalog that was written and, for its writer was killed, never got its own name."""
_SHEET = re.compile(r"gallery/.+/sheets/\d+\.jpg")
"""A printed page: many pictures in one."""
_GZIP = 31
_PICTURED = ("images/", "credentials/", "gallery/", "references/")
"""Where pictures lie, and what is made of each."""
_OURS = re.compile(
    rf"(?:images|credentials|gallery)/batch=[^/]+/(?:thumbnails/)?[^./][^/]*{ENDED}\.[a-z]+"
    r"|gallery/(?:batch=|characters/)[^/]+/(?:(?:index|\d+)\.html|sheets/\d+\.jpg|batch=[^/]+\.js)"
    r"|gallery/(?:index\.(?:html|json)|static/[^./][^/]*)"
    r"|(?:gallery/)?references/[0-9a-f]{64}\.\w+"
)
"""What we write there, but for the rows beside pictures."""
_OF_THE_SYSTEM = frozenset({"Thumbs.db", "ehthumbs.db", "desktop.ini", ".DS_Store"})
"""Where Windows and macOS keep small pictures and names of what lies in a folder; they make it anew."""


@dataclass(frozen=True)
class Gone:
    """By what the traces of erased pictures are known."""

    digests: frozenset[str]
    """Of erased pictures, and of those that came from them."""
    fingerprints: frozenset[str]
    """Of the requests that were made from them."""
    request_ids: frozenset[str] = frozenset()
    """fal's ids of these."""
    reference_ids: frozenset[str] = frozenset()
    """How the tables name the pictures, where that is known: no tombstone says it."""

    @classmethod
    def of(cls, stones: Iterable[Tombstone]) -> Gone:
        """Return what tombstones know of."""
        stones = list(stones)
        return cls(
            frozenset(by_digest(stones)),
            fingerprints(stones),
            frozenset(one for stone in stones for one in stone.request_ids),
        )

    @cached_property
    def shorts(self) -> frozenset[str]:
        """What the names of pictures have of the fingerprints."""
        return frozenset(fingerprint[:8] for fingerprint in self.fingerprints)

    def picture(self, name: str) -> str:
        """Return the picture, without its ending, of one of the requests that a file is by its name; empty for none.

        A copy or a thumbnail that another program made counts too, and so does a name that has the same digits.
        """
        if picture := _PICTURE.fullmatch(name):
            return picture["stem"] if picture["short"] in self.shorts else ""
        within = (found for found in _WITHIN.finditer(name) if found["short"] in self.shorts)
        return next((name[: found.end()].removeprefix("._") for found in within), "")

    @cached_property
    def words(self) -> frozenset[str]:
        """What a cell or a text may hold of it."""
        return self.digests | self.fingerprints | self.request_ids

    def are_told_in(self, text: str) -> bool:
        """Say whether a text is, or has in it, one of these words."""
        return text in self.request_ids or not self.words.isdisjoint(DIGEST.findall(text))


class Trace(NamedTuple):
    """Something that is left of what was erased."""

    path: str
    """The file."""
    batches: frozenset[str]
    """The batches that it is of; none for what all share."""
    rows: int = 0
    """How many of its rows it is; 0 where the whole file goes."""

    def __str__(self) -> str:
        """Return it as people read it."""
        return f"{counted(self.rows, 'row')} of {self.path}" if self.rows else f"the file {self.path}"


def traces(store: Store, gone: Gone) -> Iterator[Trace]:
    """Yield every trace, folder by folder: half-written files of killed processes too.

    Raises:
        StoreError: the store can't be read.
    """
    if not gone.words and not gone.reference_ids:
        return
    kept = _Kept(store, gone)
    for folder, read in READ.items():
        for path in sorted(one.path for one in store.objects(folder)):
            if _is_named(path, gone, kept):
                yield Trace(path, _batch(path))
            elif path.endswith((".parquet", _ASIDE)) and ".parquet" in read:
                yield from _rows(store, path, gone)
            elif read and path.endswith(read):
                yield from _texts(store, path, gone, kept)
        for path in store.leftovers(folder):
            if _is_named(path.partition("#")[0], gone, kept):
                yield Trace(path, _batch(path))


def purge_versions(store: Store, gone: Gone, batches: Iterable[str]) -> Purged:
    """Delete what a versioned bucket keeps of erased pictures: versions of files that tell of them, or may have.

    Of a file that is looked through, all earlier versions go if it is of one of these batches, or of all batches. What
    files hold now stays. So do earlier versions of other pictures, and of other requests' ledger entries.
    """
    kept = _Kept(store, gone)

    def wanted(found: Iterable[Version]) -> list[Version]:
        earlier = [
            one
            for one in found
            if one.path.partition("/")[0] in READ and (one.is_folder or one.is_marker or not one.is_latest)
        ]
        named = [one for one in earlier if _is_named(one.path.rstrip("/"), gone, kept)]
        known = frozenset(named)
        # They tell of which batches an erasure was that was killed after all else had gone. So they go last.
        about = {*batches}.union(*(_batch(one.path) for one in named))
        others = (one for one in earlier if one not in known)
        told = [one for one in others if _may_have_told(one, gone, about)]
        return [*told, *sorted(named, key=lambda one: one.path.startswith("ledger/"))]

    return versions.purge(store, wanted)


def _may_have_told(version: Version, gone: Gone, batches: Collection[str]) -> bool:
    path = version.path
    if version.is_folder:
        return version.is_latest and not gone.reference_ids.isdisjoint(path.split("/"))
    read = READ[path.partition("/")[0]]
    is_read = (bool(read) and path.endswith(read)) or _SHEET.fullmatch(path) is not None
    return is_read and _batch(path) <= {*batches}


def remove(store: Store, gone: Gone, trace: Trace) -> None:
    """Remove a trace. The rows that stay in its file stay as they are.

    Raises:
        StoreError: the store can't be read or written.
    """
    if _LEFTOVER.search(trace.path):
        store.delete_leftover(trace.path)
    elif not trace.rows or trace.path.startswith(_DERIVED):
        store.delete(trace.path)
        if trace.path.startswith("gallery/") and trace.path.endswith(READ["gallery"]):
            _remove_pages(store, trace.path)
    elif trace.path.endswith(".json"):
        try:
            left = _without(json.loads(store.get(trace.path)), gone.words | _by_name(trace.path, gone))
        except ValueError:  # what is damaged can't be left in part
            store.delete(trace.path)
        else:
            store.put(trace.path, json.dumps(left, separators=(",", ":")).encode())
    else:
        by_name = _by_name(trace.path, gone)
        tables = [_left(table, gone, by_name) for table in parquet.tables(store, trace.path)]
        store.put(trace.path, parquet.encode_tables(tables[0].schema, tables))


def remove_what_others_left(store: Store, removed: Iterable[Trace]) -> None:
    """Remove what other programs keep of pictures that were removed, in the folders where these lay.

    That is their thumbnails and lists of names, and anything at all in a folder that holds nothing of ours any more.
    """
    folders = {
        folder
        for trace in removed
        if not trace.rows and trace.path.startswith(_PICTURED)
        for folder in _folders_of(trace.path)
    }
    for folder in sorted(folders, key=lambda folder: folder.count("/"), reverse=True):
        there = [
            one.path for one in store.objects(folder) if one.path.rpartition("/")[2] != "metadata.parquet"
        ]
        is_empty = not any(map(_OURS.fullmatch, there))
        for path in there:
            at, _, name = path.rpartition("/")
            if is_empty or (at == folder and name in _OF_THE_SYSTEM):
                store.delete(path)
        store.delete_empty_folder(folder)


def _folders_of(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def _remove_pages(store: Store, page: str) -> None:
    """Remove the pages and printed pages beside a page, which may not say what they show; and have all made anew."""
    folder = page.rpartition("/")[0]
    if folder != "gallery":
        for path in [one.path for one in store.objects(folder)]:
            if path.endswith(".html") or path.startswith(f"{folder}/sheets/"):
                store.delete(path)
    store.delete("gallery/index.json")


def _batch(path: str) -> frozenset[str]:
    """Return the batch in whose folder a file lies, or whose file it is."""
    *folders, name = path.partition("#")[0].split("/")
    names = [*folders, name.removesuffix(".gz").removesuffix(".js").removesuffix(".json")]
    return frozenset(one.removeprefix("batch=") for one in names if one.startswith("batch="))


class _Kept:
    """Knows the pictures that stay, though their names share eight digits with one that goes."""

    def __init__(self, store: Store, gone: Gone) -> None:
        self._store = store
        self._gone = gone
        self._stems: dict[str, frozenset[str]] = {}

    def lacks(self, batch: str, name: str) -> bool:
        """Say whether a picture of this name is one that goes."""
        picture = self._gone.picture(name)
        if not picture:
            return False
        if batch not in self._stems:
            rows: list[files.PictureFacts] = []
            with suppress(FileNotFoundError):
                rows = files.picture_facts(self._store, batch)
            self._stems[batch] = frozenset(
                row.file_name.rpartition(".")[0]
                for row in rows
                if row.fingerprint not in self._gone.fingerprints
            )
        return picture not in self._stems[batch]


def _is_named(path: str, gone: Gone, kept: _Kept) -> bool:
    """Say whether a file is one of what was erased, by its name and those of its folders."""
    if not (gone.fingerprints | gone.digests).isdisjoint(DIGEST.findall(path)):
        return True
    folder, *parts = path.split("/")
    return folder in ("images", "credentials", "gallery") and any(
        kept.lacks(batch, part) for batch in _batch(path) for part in parts
    )


def _rows(store: Store, path: str, gone: Gone) -> Iterator[Trace]:
    """Yield the trace that some rows of a table are."""
    by_name, rows, batches = _by_name(path, gone), 0, set(_batch(path))
    try:
        for table in parquet.tables(store, path):
            told = _told(table, gone, by_name)
            rows += sum(told)
            if "batch" in table.column_names:
                named = zip(table["batch"].to_pylist(), told, strict=True)
                batches |= {batch for batch, is_told in named if is_told and batch}
    except (FileNotFoundError, DamagedFile):
        return  # it went meanwhile, or is no table
    if rows:
        yield Trace(path, frozenset(batches), rows)


def _texts(store: Store, path: str, gone: Gone, kept: _Kept) -> Iterator[Trace]:
    """Yield the trace that a text is which tells of anything."""
    try:
        content = store.get(path)
        text = (zlib.decompress(content, _GZIP) if path.endswith(".gz") else content).decode(errors="replace")
    except (FileNotFoundError, zlib.error):
        return
    links = ((unquote(link["batch"]), unquote(link["name"])) for link in _LINK.finditer(text))
    if gone.are_told_in(text) or any(kept.lacks(*link) for link in links) or _is_called(path, text, gone):
        yield Trace(path, _batch(path), 0 if path.startswith(_DERIVED) else 1)


def _is_called(path: str, text: str, gone: Gone) -> bool:
    """Say whether a reading of a table says that a batch names an erased picture."""
    names = _by_name(path, gone)
    if not any(name in text for name in names):
        return False
    try:
        return _is_member(json.loads(text), names)
    except ValueError:
        return True


def _by_name(path: str, gone: Gone) -> frozenset[str]:
    """Return by which names the rows of a file tell of erased pictures: in the tables alone names are all there is."""
    return gone.reference_ids if path.startswith("tables/") else frozenset()


def _told(table: pa.Table, gone: Gone, by_name: Collection[str]) -> list[bool]:
    """Say of each row whether it tells of anything."""
    told = [False] * table.num_rows
    for column in set(table.column_names) - _PEOPLES - {*_NEAREST}:
        names = by_name if column in _NAMES else ()
        for number, cell in enumerate(table[column].to_pylist()):
            texts = cell if isinstance(cell, list) else (cell,)
            told[number] |= any(
                isinstance(text, str) and (gone.are_told_in(text) or text in names) for text in texts
            )
    if by_name and {"row_id", "batch"} <= {*table.column_names}:  # rejections; references have no batch
        for number, row in enumerate(table.select(["row_id", "batch"]).to_pylist()):
            told[number] |= not row["batch"] and row["row_id"] in by_name
    return told


def _left(table: pa.Table, gone: Gone, by_name: Collection[str]) -> pa.Table:
    """Return the rows that stay. Where one names a picture that goes, the batch's next run finds it another."""
    import pyarrow as pa

    told = _told(table, gone, by_name)
    left = table.take(pa.array([number for number, is_told in enumerate(told) if not is_told], pa.int64()))
    if _NEAREST[0] not in left.column_names:
        return left
    keeps = [not name or not gone.picture(name) for name in left[_NEAREST[0]].to_pylist()]
    for name in _NEAREST:
        kind = left.schema.field(name)
        cells = [cell if keep else None for cell, keep in zip(left[name].to_pylist(), keeps, strict=True)]
        left = left.set_column(left.column_names.index(name), kind, pa.array(cells, kind.type))
    return left


def _without(told: JsonValue, words: Collection[str]) -> JsonValue:
    """Return JSON without the keys and members that are among some words."""
    if isinstance(told, dict):
        return {name: _without(value, words) for name, value in told.items() if name not in words}
    if isinstance(told, list):
        return [_without(one, words) for one in told if not (isinstance(one, str) and one in words)]
    return told


def _is_member(told: JsonValue, words: Collection[str]) -> bool:
    """Say whether a list somewhere in JSON has one of some words as a member."""
    if isinstance(told, dict):
        return any(_is_member(value, words) for value in told.values())
    return isinstance(told, list) and any(
        one in words if isinstance(one, str) else _is_member(one, words) for one in told
    )

"""The tables as they were read: a run works what it was started with, whatever is read meanwhile.

Each reading of a table that differs from the one before is kept, and is never changed. Two tables on one store don't
touch each other's readings: a table is known by where it is read from.

    tables/readings/<prompts or references>/<table>-<number>.json   which files a reading consists of; the highest
                                                                    number of a table is its newest
    tables/prompts/<bucket>-<digest>.parquet                        rows of some batches
    tables/rejected_prompts/<bucket>-<digest>.parquet               records of them that can't be used
    tables/references/all-<digest>.parquet                          references
    tables/rejected_references/all-<digest>.parquet                 records of them that can't be used

Files are named by what is in them, and readings share them. A reading that isn't the newest goes after
`KEEP_READINGS`, and with it what only it names. All of it is derived: what is missing or damaged is made anew when the
table is read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Generic, NamedTuple, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline import digests
from ideogram_pipeline.errors import ConfigurationError, DamagedFile
from ideogram_pipeline.generation.buckets import bucket
from ideogram_pipeline.generation.planner import References
from ideogram_pipeline.storage import Store, StoredObject, parquet
from ideogram_pipeline.tables.erased import refusal, refused
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.references import ReferencesTable
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection

KEEP_READINGS = timedelta(days=7)
"""A run that has not planned its batch by then has to be started again."""

_READINGS = "tables/readings"
_NAME = re.compile(r"([0-9a-f]{12})-(\d+)")
_KEPT = re.compile(r"tables/\w+/([0-9a-f]{2}|all)(-[0-9a-f]{16})?\.parquet")
"""Where the rows of a bucket lie; without a digest, by an earlier version."""
_BEFORE = "before"
"""Names the one reading of a store in which the readings of all tables took each other's place."""
_INDEX_BEFORE = "tables/batches.json"

Row = TypeVar("Row", bound=BaseModel)


class BatchInTable(BaseModel):
    """What the prompts table asks for in one batch, in short."""

    model_config = ConfigDict(frozen=True)

    images: int = Field(description="Pictures that its rows ask for.")
    digest: str = Field(description="Changes with its rows and rejections, wherever in the table they stand.")
    named: tuple[str, ...] = Field(description="The references that its rows name, sorted.")


class _Reading(BaseModel):
    model_config = ConfigDict(frozen=True)

    table: str = Field(description="Where the table was read from.")
    rows: Mapping[str, str] = Field(description="The files with its rows, by bucket.")
    rejections: Mapping[str, str] = Field(description="The files with its unusable records, by bucket.")


class PromptsReading(_Reading):
    """A prompts table as it was read: what is known of it without reading its rows."""

    batches: Mapping[str, BatchInTable] = Field(default={}, description="Every batch, sorted by name.")


class ReferencesReading(_Reading):
    """A references table as it was read."""


Reading = TypeVar("Reading", bound=_Reading)


@dataclass(frozen=True, slots=True)
class _Kind(Generic[Reading]):
    """One of the two tables."""

    name: str
    """Its folder among the readings, and what it is called."""
    model: type[Reading]
    """What is kept of a reading."""

    @property
    def folder(self) -> str:
        return f"{_READINGS}/{self.name}"


_PROMPTS = _Kind("prompts", PromptsReading)
_REFERENCES = _Kind("references", ReferencesReading)
_WHOLE = "all"
"""The one bucket of a references table."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables that a run works: one reading of each."""

    store: Store
    """Where they lie."""
    name: str
    """Names both readings; `tables_named` finds them by it."""
    prompts: PromptsReading
    """The prompts table."""
    references: ReferencesReading
    """The references table."""

    @property
    def prompts_reading(self) -> str:
        """Which reading of which prompts table it is; empty in a store whose tables were read by an earlier version."""
        name = self.name.split()[0]
        return "" if name == _BEFORE else name

    def read_prompts(self, batch: str) -> tuple[parquet.Rows[PromptRow], parquet.Rows[Rejection]]:
        """Return a batch's rows and its rejected records.

        Raises:
            ConfigurationError: the reading has lost a file.
        """
        return (
            self._of_batch(self.prompts.rows, batch, PromptRow),
            self._of_batch(self.prompts.rejections, batch, Rejection),
        )

    def read_references(self, named: Collection[str]) -> References:
        """Return the references of these names, as far as the table has them, and nothing was erased since it was read.

        Raises:
            ConfigurationError: the reading has lost a file.
        """
        stones = refused(self.store)
        known = [
            one
            for path in self.references.rows.values()
            for one in self._rows(path, Reference, ("reference_id", named))
        ]
        rejected = [
            one
            for path in self.references.rejections.values()
            for one in self._rows(path, Rejection, ("row_id", named))
        ]
        erased = [
            Rejection(
                file=self.references.table,
                row_number=one.row_number,
                row_id=one.reference_id,
                column="uri",
                reason=refusal(stones[one.sha256]),
            )
            for one in known
            if one.sha256 in stones
        ]
        return References.of([one for one in known if one.sha256 not in stones], [*rejected, *erased])

    def _of_batch(self, files: Mapping[str, str], batch: str, model: type[Row]) -> parquet.Rows[Row]:
        path = files.get(bucket(batch))
        return self._rows(path, model, ("batch", [batch])) if path else parquet.Rows.of(model, [])

    def _rows(self, path: str, model: type[Row], where: tuple[str, Collection[str]]) -> parquet.Rows[Row]:
        try:
            return parquet.rows(self.store, path, model, where=where)
        except FileNotFoundError:
            _gone(self.store)


def table_key(url: str) -> str:
    """Return how a table is known: by where it is read from, whichever folder a path starts in."""
    place = url if "://" in url else os.path.abspath(os.path.expanduser(url))
    return hashlib.sha256(place.encode()).hexdigest()[:12]


def table_and_number(reading: str) -> tuple[str, int]:
    """Return which table a reading is of, as `table_key` has it, and its number; no table where it is none."""
    match = _NAME.fullmatch(reading)
    return (match[1], int(match[2])) if match else ("", 0)


def newest_numbers(readings: Iterable[str]) -> dict[str, int]:
    """Return the highest number of each table among readings, by table, sorted."""
    numbers: dict[str, int] = {}
    for table, number in map(table_and_number, readings):
        numbers[table] = max(number, numbers.get(table, 0))
    return dict(sorted(numbers.items()))


def write_prompts(store: Store, table: PromptsTable) -> str:
    """Keep a prompts table as it was read, in buckets of batches, so that one batch can be read without the others.

    Return the reading's name. What lies there already isn't written; the reading is named last, when it is whole.
    """
    rows: dict[str, list[PromptRow]] = defaultdict(list)
    rejections: dict[str, list[Rejection]] = defaultdict(list)
    for row in table.rows:
        rows[bucket(row.batch)].append(row)
    for rejection in table.rejections:
        rejections[bucket(rejection.batch)].append(rejection)
    ordered = {name: sorted(members, key=lambda row: row.batch) for name, members in rows.items()}
    reading = PromptsReading(
        table=table.url,
        rows=_kept(store, "tables/prompts", PromptRow, ordered),
        rejections=_kept(store, "tables/rejected_prompts", Rejection, rejections),
        batches=_in_short(table),
    )
    return _name_reading(store, _PROMPTS, reading)


def write_references(store: Store, table: ReferencesTable) -> str:
    """Keep a references table as it was read, and return the reading's name."""
    reading = ReferencesReading(
        table=table.url,
        rows=_kept(store, "tables/references", Reference, {_WHOLE: table.references}),
        rejections=_kept(store, "tables/rejected_references", Rejection, {_WHOLE: table.rejections}),
    )
    return _name_reading(store, _REFERENCES, reading)


def newest_name(store: Store, prompts: str, references: str) -> str:
    """Return what `tables_named` finds the newest readings of two tables by. Only names are read.

    Raises:
        ConfigurationError: one of the tables was never read into this store.
    """
    return f"{_newest_of_table(store, _PROMPTS, prompts)} {_newest_of_table(store, _REFERENCES, references)}"


def tables_named(store: Store, name: str) -> Tables:
    """Return the readings of a name that `newest_name` gave, or that two readings had when they were written.

    Raises:
        ConfigurationError: one of them is no longer kept, or is damaged.
    """
    prompts, _, references = name.partition(" ")
    return Tables(store, name, _opened(store, _PROMPTS, prompts), _opened(store, _REFERENCES, references))


def newest_tables(store: Store, prompts: str, references: str) -> Tables:
    """Return the newest readings of two tables.

    Raises:
        ConfigurationError: one of the tables was never read into this store, or what was kept of it is damaged.
    """
    return tables_named(store, newest_name(store, prompts, references))


def newest_prompts(store: Store) -> list[PromptsReading]:
    """Return the newest reading of every prompts table; damaged ones are passed over."""
    names = _newest_names(store, _PROMPTS).values()
    found = (_read(store, _PROMPTS, name) for name in [*names] or [_BEFORE])
    return [reading for reading in found if reading]


class Terms(NamedTuple):
    """What references tables say of a picture, beyond what it is; each statement once, joined by semicolons."""

    license: str
    """Terms under which it may be used; empty if none are told."""
    notes: str
    """What people want to remember; empty if there is nothing."""


def terms_of(store: Store, sha256s: Collection[str] | None = None) -> dict[str, Terms]:
    """Return what the newest reading of every references table says of pictures, by digest: of these, or of all.

    What is damaged is passed over; a run makes it anew.
    """
    licenses: dict[str, dict[str, None]] = defaultdict(dict)
    notes: dict[str, dict[str, None]] = defaultdict(dict)
    where = None if sha256s is None else ("sha256", sha256s)
    names = _newest_names(store, _REFERENCES).values()
    for reading in filter(None, (_read(store, _REFERENCES, name) for name in names)):
        for path in reading.rows.values():
            with suppress(FileNotFoundError, DamagedFile):
                for one in parquet.read(store, path, Reference, where=where):
                    licenses[one.sha256] |= dict.fromkeys(filter(None, [one.license]))
                    notes[one.sha256] |= dict.fromkeys(filter(None, [one.notes]))
    return {
        sha256: Terms("; ".join(told), "; ".join(notes[sha256]))
        for sha256, told in licenses.items()
        if told or notes[sha256]
    }


def _kept(store: Store, folder: str, model: type[Row], rows: Mapping[str, Collection[Row]]) -> dict[str, str]:
    """Write the rows of each bucket where they don't lie yet; return where each lies."""
    there = {found.path: found for found in store.objects(folder)}
    paths = {}
    for name, members in sorted(rows.items()):
        if not members:
            continue
        content = parquet.encode(model, members)
        path = f"{folder}/{name}-{hashlib.sha256(content).hexdigest()[:16]}.parquet"
        found = there.get(path)
        # One that was kept for an old reading is written again, so that it doesn't go with it.
        if not found or found.size != len(content) or found.is_older_than(KEEP_READINGS / 2):
            store.put(path, content)
        paths[name] = path
    return paths


def _name_reading(store: Store, kind: _Kind[Reading], reading: Reading) -> str:
    """Keep a reading as its table's newest one, if it differs from that; return its name."""
    table = table_key(reading.table)
    name = _newest_names(store, kind).get(table, f"{table}-0")
    if _read(store, kind, name) != reading:
        name = f"{table}-{int(name.partition('-')[2]) + 1}"
        while not store.create(f"{kind.folder}/{name}.json", reading.model_dump_json().encode()):
            name = f"{table}-{int(name.partition('-')[2]) + 1}"
        _sweep(store, kind)
    return name


def _sweep(store: Store, kind: _Kind[Reading]) -> None:
    """Remove the old readings that aren't their table's newest, and the files that no reading names any more."""
    newest = set(_newest_names(store, kind).values())
    left = []
    for found in _files(store, kind):
        name = PurePosixPath(found.path).stem
        if name not in newest and found.is_older_than(KEEP_READINGS):
            store.delete(found.path)
        else:
            left.append(name)
    folders = {f"tables/{kind.name}": "rows", f"tables/rejected_{kind.name}": "rejections"}
    stored = [found for folder in folders for found in store.objects(folder) if _KEPT.fullmatch(found.path)]
    old = [found.path for found in stored if found.is_older_than(KEEP_READINGS)]
    if old:
        kept = (_read(store, kind, name) for name in left)
        named = {path for one in kept if one for path in (*one.rows.values(), *one.rejections.values())}
        for path in old:
            if path not in named:
                store.delete(path)
    for path in _of_before(kind, (found.path for found in stored)):
        store.delete(path)


def _files(store: Store, kind: _Kind[Reading]) -> list[StoredObject]:
    """Return the files of all readings of a table."""
    return [
        found
        for found in store.objects(kind.folder)
        if found.path.endswith(".json") and _NAME.fullmatch(PurePosixPath(found.path).stem)
    ]


def _of_before(kind: _Kind[Reading], stored: Iterable[str]) -> Iterator[str]:
    """Yield where a table lay in a store of an earlier version."""
    if kind is _PROMPTS:
        yield _INDEX_BEFORE
        yield from (path for path in stored if "-" not in PurePosixPath(path).stem)
    else:
        yield from ("tables/references.parquet", "tables/rejected_references.parquet")


def _newest_names(store: Store, kind: _Kind[Reading]) -> dict[str, str]:
    """Return the name of every table's newest reading, by table, sorted."""
    numbers = newest_numbers(PurePosixPath(found.path).stem for found in _files(store, kind))
    return {table: f"{table}-{number}" for table, number in numbers.items() if table}


def _newest_of_table(store: Store, kind: _Kind[Reading], url: str) -> str:
    names = _newest_names(store, kind)
    if not names and _read(store, kind, _BEFORE):
        return _BEFORE
    if table_key(url) not in names:
        raise ConfigurationError(
            f"The {kind.name} table {url!r} was never read into the store {store.url!r}. Run `refresh_tables`, which "
            "reads it."
        )
    return names[table_key(url)]


def _opened(store: Store, kind: _Kind[Reading], name: str) -> Reading:
    return _read(store, kind, name) or _gone(store)


def _gone(store: Store) -> NoReturn:
    raise ConfigurationError(
        f"The tables that this run was started with are no longer whole in the store {store.url!r}: they are kept for "
        f"{KEEP_READINGS.days} days, or a file is missing or damaged. Start a new run after `refresh_tables`, which "
        "reads the tables again; nothing was submitted."
    )


def _read(store: Store, kind: _Kind[Reading], name: str) -> Reading | None:
    """Return a reading; None where there is none that can be read."""
    try:
        if name == _BEFORE:
            return kind.model.model_validate(_before(store, kind))
        return kind.model.model_validate_json(store.get(f"{kind.folder}/{name}.json"))
    except (FileNotFoundError, ValidationError, ValueError):
        return None


def _before(store: Store, kind: _Kind[Reading]) -> Mapping[str, object]:
    """Return the reading of a table in a store of an earlier version."""
    if kind is _REFERENCES:
        paths = {"rows": "tables/references.parquet", "rejections": "tables/rejected_references.parquet"}
        store.etag(paths["rows"])
        return {"table": "", **{name: {_WHOLE: path} for name, path in paths.items()}}
    index = json.loads(store.get(_INDEX_BEFORE))
    files: dict[str, dict[str, str]] = {"tables/prompts": {}, "tables/rejected_prompts": {}}
    for path in index["files"]:
        files[path.rpartition("/")[0]][PurePosixPath(path).stem] = path
    rows, rejections = files.values()
    return {"table": "", "rows": rows, "rejections": rejections, "batches": index["batches"]}


def _in_short(table: PromptsTable) -> dict[str, BatchInTable]:
    lines: dict[str, list[str]] = defaultdict(list)
    named: dict[str, set[str]] = defaultdict(set)
    images: dict[str, int] = defaultdict(int)
    for row in table.rows:
        lines[row.batch].append(row.model_dump_json(exclude={"row_number"}))
        named[row.batch].update(row.named)
        images[row.batch] += row.num_images or 1
    for rejection in table.rejections:
        lines[rejection.batch].append(f"rejected {rejection.row_id} {rejection.column} {rejection.reason}")
    return {
        batch: BatchInTable(
            images=images[batch],
            digest=digests.of_lines(sorted(lines[batch])),
            named=tuple(sorted(named[batch])),
        )
        for batch in sorted(lines)
    }

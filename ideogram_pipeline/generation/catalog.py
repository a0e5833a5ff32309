"""The catalog: the picture rows of all batches as one dataset, in buckets, each written anew only when it changes.

    catalog/<bucket>.parquet    the rows: all of it is what `catalog/*.parquet` holds, at any moment
    catalog.json                what each file was made of, so that one listing tells which are out of date

A file counts as up to date only while it is the very one that the index speaks of and its batches' results are those
it was made of. So whatever is deleted, edited, cut off by a crash or written by two at once is made anew by the next
refresh, or by the one that lost.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.errors import DamagedFile
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.buckets import bucket
from ideogram_pipeline.generation.rebuild import mend, record_again
from ideogram_pipeline.generation.rows import CatalogRow
from ideogram_pipeline.storage import Store, parquet

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "catalog"
INDEX = "catalog.json"
_TABLE = re.compile(rf"{FOLDER}/[^./][^/]*\.parquet")
"""What `catalog/*.parquet` finds: ours, or a stray, which would give people rows twice."""
_LOOKS = 5
"""Runs that end meanwhile are taken in as well, unless they never cease to."""


@dataclass(frozen=True, slots=True)
class CatalogSummary:
    """What a catalog holds."""

    images: int
    """Pictures."""
    batches: int
    """Batches."""
    rewritten: int
    """Files that had changed."""
    cost_usd: float
    """US dollars of all pictures whose cost is known."""
    bytes: int
    """Length of all picture files together."""
    digest: str
    """Changes when, and only when, a row does."""


class Source(BaseModel):
    """The state of a batch that its rows in the catalog were made of."""

    model_config = ConfigDict(frozen=True)

    mark: str = Field(description="Of its results, as `files.results` has it.")
    asked_for: bool = Field(description="Whether the prompts table has the batch.")


class BatchInCatalog(BaseModel):
    """What the catalog holds of one batch."""

    model_config = ConfigDict(frozen=True)

    source: Source = Field(description="What it was made of.")
    images: int = Field(description="Pictures.")
    cost_usd: float = Field(description="US dollars of those whose cost is known.")
    bytes: int = Field(description="Length of the picture files.")
    backends: tuple[str, ...] = Field(description="Who made them.")


class CatalogFile(BaseModel):
    """One file of the catalog."""

    model_config = ConfigDict(frozen=True)

    etag: str = Field(description="The store's mark of the file.")
    sha256: str = Field(description="Hex digest of the file.")
    batches: Mapping[str, BatchInCatalog] = Field(description="Its batches.")

    def is_of(self, sources: Mapping[str, Source]) -> bool:
        """Say whether it was made of these."""
        return {batch: known.source for batch, known in self.batches.items()} == sources


class CatalogIndex(BaseModel):
    """What the catalog's files were made of."""

    model_config = ConfigDict(frozen=True)

    columns: tuple[str, ...] = Field(
        default=(), description="Those of its files; another version of ours may have others."
    )
    files: Mapping[str, CatalogFile] = Field(default={}, description="By path.")
    refreshed: tuple[str, ...] = Field(default=(), description="Batches that the last refresh had to read.")


@dataclass(frozen=True, slots=True)
class State:
    """How the catalog lies in the store, beside what it should be made of."""

    index: CatalogIndex
    """What the last refresh knew."""
    sources: Mapping[str, Mapping[str, Source]]
    """What each file should be made of, by batch."""
    there: Mapping[str, str | None]
    """The files in the folder, each with its mark."""

    @classmethod
    def of(cls, store: Store, index: CatalogIndex) -> State:
        """Look at the store: two listings and the index of the prompts table, and no rows."""
        asked_for = files.batches(store)
        sources: dict[str, dict[str, Source]] = defaultdict(dict)
        for batch, mark in files.results(store).items():
            sources[path(batch)][batch] = Source(mark=mark, asked_for=batch in asked_for)
        there = {found.path: found.etag for found in store.objects(FOLDER) if _TABLE.fullmatch(found.path)}
        return cls(index, dict(sorted(sources.items())), there)

    @property
    def outdated(self) -> list[str]:
        """The files that are missing, not as they were made, or made of something else."""
        return [
            file
            for file, sources in self.sources.items()
            if (known := self.index.files.get(file)) is None
            or known.etag != self.there.get(file)
            or not known.is_of(sources)
        ]

    @property
    def strays(self) -> list[str]:
        """The files that no batch belongs to."""
        return sorted(self.there.keys() - self.sources.keys())


def path(batch: str) -> str:
    """Return in which file of the catalog a batch's rows lie."""
    return f"{FOLDER}/{bucket(batch)}.parquet"


def paths(store: Store) -> list[str]:
    """Return the files of the catalog that lie there, sorted."""
    return sorted(found.path for found in store.objects(FOLDER) if _TABLE.fullmatch(found.path))


def read(store: Store, file: str, batches: Iterable[str] | None = None) -> Iterator[CatalogRow]:
    """Yield the rows of a file of the catalog as they are: of some batches, or all."""
    return parquet.read(store, file, CatalogRow, where=("batch", list(batches)) if batches else None)


def batch_rows(store: Store, batch: str, *, asked_for: bool) -> Iterator[CatalogRow]:
    """Yield a batch's rows in the catalog as they should be; `asked_for`: the prompts table has the batch."""
    folder = _folder(batch)
    for row in files.images(store, batch):
        yield CatalogRow(
            **row.model_dump(exclude={"current"}),
            current=row.current and asked_for,
            path=f"{folder}/{row.file_name}",
        )


def read_index(store: Store) -> CatalogIndex:
    """Return what the last refresh knew; nothing before the first, where it can't be read, or had other columns."""
    try:
        index = CatalogIndex.model_validate_json(store.get(INDEX))
    except (FileNotFoundError, ValueError):
        return CatalogIndex()
    return index if index.columns == tuple(CatalogRow.model_fields) else CatalogIndex()


def refresh(store: Store, *, anew: bool = False) -> CatalogSummary:
    """Bring the catalog up to date with the batches' results: read and write only what changed, or all of it `anew`."""
    store.sweep(FOLDER)
    index = CatalogIndex() if anew else read_index(store)
    made = dict(index.files)
    refreshed: set[str] = set()
    rewritten: set[str] = set()
    for _ in range(_LOOKS):
        state = State.of(store, CatalogIndex(files=made))
        for file in state.strays:
            store.delete(file)
            made.pop(file, None)
        if not state.outdated:
            break
        for file in state.outdated:
            sources, known = state.sources[file], made.get(file)
            refreshed |= {
                batch
                for batch, source in sources.items()
                if not known or batch not in known.batches or known.batches[batch].source != source
            }
            try:
                for batch, source in sources.items():
                    _be_asked_for(store, batch, source, known.batches.get(batch) if known else None)
                content, batches = _encoded(store, sources)
            except DamagedFile:
                for batch in sources:
                    mend(store, batch)
                continue  # what was mended has other marks by now, and is taken in by the next look
            sha256 = hashlib.sha256(content).hexdigest()
            etag = state.there.get(file)
            if not known or etag is None or (etag, sha256) != (known.etag, known.sha256):
                etag = store.put_whole(file, content)
                rewritten.add(file)
            made[file] = CatalogFile(etag=etag, sha256=sha256, batches=batches)
    made = {file: made[file] for file in state.sources if file in made}
    new = CatalogIndex(columns=tuple(CatalogRow.model_fields), files=made, refreshed=tuple(sorted(refreshed)))
    if new != index:
        store.put(INDEX, new.model_dump_json().encode())
    return _summary(made, len(rewritten))


def _summary(made: Mapping[str, CatalogFile], rewritten: int) -> CatalogSummary:
    batches = [known for file in made.values() for known in file.batches.values()]
    whole = hashlib.sha256("".join(file.sha256 for file in made.values()).encode())
    return CatalogSummary(
        images=sum(known.images for known in batches),
        batches=len(batches),
        rewritten=rewritten,
        cost_usd=round(sum(known.cost_usd for known in batches), 6),
        bytes=sum(known.bytes for known in batches),
        digest=whole.hexdigest(),
    )


def _encoded(store: Store, sources: Mapping[str, Source]) -> tuple[bytes, dict[str, BatchInCatalog]]:
    """Return the file of these batches, and what is in it of each."""
    batches: dict[str, BatchInCatalog] = {}

    def tables() -> Iterator[pa.Table]:
        for batch, source in sources.items():
            images, size, cost, backends = 0, 0, 0.0, set[str]()
            for table in _tables(store, batch, asked_for=source.asked_for):
                images += table.num_rows
                size += sum(length or 0 for length in table["bytes"].to_pylist())
                cost += sum(usd or 0.0 for usd in table["cost_usd"].to_pylist())
                backends |= {str(backend) for backend in table["backend"].to_pylist()}
                yield table
            batches[batch] = BatchInCatalog(
                source=source, images=images, cost_usd=cost, bytes=size, backends=tuple(sorted(backends))
            )

    return parquet.encode_tables(parquet.arrow_schema(CatalogRow), tables()), batches


def _tables(store: Store, batch: str, *, asked_for: bool) -> Iterator[pa.Table]:
    """Yield a batch's rows as the catalog has them, in Arrow alone: a file holds many rows that did not change."""
    import pyarrow as pa

    schema, folder = parquet.arrow_schema(CatalogRow), _folder(batch)
    for rows in parquet.tables(store, files.metadata_path(batch)):
        kept = {name for name in rows.column_names if asked_for or name != "current"}
        new = pa.schema([field for field in schema if field.name not in kept])
        # The path, and what was added since the batch was last run.
        cells = {field.name: CatalogRow.model_fields[field.name].get_default() for field in new}
        if not asked_for:
            cells["current"] = False
        paths = (f"{folder}/{name}" for name in rows["file_name"].to_pylist())
        added = parquet.table_of(new, (json.dumps(cells | {"path": path}) for path in paths))
        columns = [rows[name] if name in kept else added[name] for name in schema.names]
        yield pa.Table.from_arrays(columns, names=schema.names).cast(schema)


class _Current(NamedTuple):
    current: bool


def _be_asked_for(store: Store, batch: str, source: Source, known: BatchInCatalog | None) -> None:
    """Have a batch's own rows say `current` only while a prompts table has the batch, and again once one has."""
    if not source.asked_for:
        _leave(store, batch)
    elif known is None or not known.source.asked_for:
        rows = parquet.view(store, files.metadata_path(batch), _Current)
        if rows and not any(row.current for row in rows):
            record_again(store, batch)


def _leave(store: Store, batch: str) -> None:
    """Have a batch's rows say that nobody asks for its pictures any more: it left the tables, or was renamed."""
    import pyarrow as pa

    path, outcomes = files.metadata_path(batch), files.outcomes_path(batch)
    mark = store.etag(outcomes)
    tables = list(parquet.tables(store, path))
    if not any(any(table["current"].to_pylist()) for table in tables):
        return
    left = []
    for table in tables:
        at = table.column_names.index("current")
        field = table.schema.field(at)
        left.append(table.set_column(at, field, pa.array([False] * table.num_rows, field.type)))
    store.put(path, parquet.encode_tables(left[0].schema, left))
    if store.etag(outcomes) != mark:
        record_again(store, batch)  # a run that had begun before has ended meanwhile


def _folder(batch: str) -> str:
    return files.metadata_path(batch).rpartition("/")[0]

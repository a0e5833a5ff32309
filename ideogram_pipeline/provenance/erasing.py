"""Taking back what came from a picture: consent was withdrawn, and nothing of it may remain.

The tombstones come first: from then on nothing is planned from the picture, and an erasure that is interrupted is taken
up where it was by asking for it again. Then goes whatever tells of it, wherever it lies (see `traces`), and last of all
what says how the tables call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple, TypeVar

from ideogram_pipeline.errors import ConfigurationError, DamagedFile
from ideogram_pipeline.generation.ledger import Entry, Ledger, StoredImage, request_ids
from ideogram_pipeline.generation.ledger import batches as batches_with_ledger
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.provenance import traces
from ideogram_pipeline.provenance.traces import Gone, Trace
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables import erased
from ideogram_pipeline.tables.erased import ErasedImage, Tombstone
from ideogram_pipeline.tables.references import upright_copies

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Descent:
    """All that came from a picture, as far as the store knows."""

    reference: str
    """What was asked for: an id, or a digest."""
    reference_ids: frozenset[str]
    """What it is called in the references table, now and before."""
    digests: frozenset[str]
    """Digests of its bytes, and of those of its pictures that were used as references in turn."""
    entries: Mapping[str, Mapping[str, Entry]] = field(repr=False)
    """The requests that were made from it and that the ledger knows, by batch and fingerprint."""
    fingerprints: frozenset[str]
    """All requests that were made from it, or were to be; those too that only a plan or a backup still knows."""
    made: tuple[ErasedImage, ...]
    """The pictures that came of them."""
    gone: Gone = field(repr=False)
    """By what it is known."""
    traces: tuple[Trace, ...] = field(repr=False)
    """All that lies in the store of it."""

    @property
    def images(self) -> list[str]:
        """Where their pictures lie in the store."""
        known = {image.path for entry in self._all for image in _images(entry)}
        told = {trace.path for trace in self.traces if trace.path.startswith("images/") and not trace.rows}
        return sorted(known | told)

    @property
    def request_ids(self) -> list[str]:
        """fal's ids of them."""
        return [one for entry in self._all for one in entry.request_ids]

    @property
    def batches(self) -> frozenset[str]:
        """The batches that have anything of it."""
        return frozenset(self.entries).union(*(trace.batches for trace in self.traces))

    @property
    def _all(self) -> list[Entry]:
        return [entry for batch in self.entries.values() for entry in batch.values()]


def descent(store: Store, reference: str) -> Descent:
    """Find all that came from a reference, named by its id or by the SHA-256 of its bytes.

    Ledger, plans, metadata, lineage and tombstones are asked: the ledger knows also what no run has recorded yet, and
    the others what came back from a backup. Pictures that were made from it and used as references are followed.

    Raises:
        ConfigurationError: nothing names it.
    """
    named = list(_named_in_tables(store))
    stones = erased.tombstones(store)
    ledgers = {batch: Ledger(store, batch, with_erased=True).entries for batch in batches_with_ledger(store)}
    requests = [*_in_ledgers(ledgers), *_in_files(store)]
    called = {*named, *(name for request in requests for name in request.uses)}
    digests = {sha256 for name, sha256 in called if reference in (name, sha256)}
    digests |= {stone.sha256 for stone in stones if stone.sha256 == reference}
    copies = upright_copies(store)
    digests |= {sha256 for sent, sha256 in copies.items() if sent == reference}
    found, made = _closure(requests, digests)
    digests |= {sha256 for request in requests for _, sha256 in request.uses if sha256 in made}
    digests |= {sha256 for _, sha256 in named if sha256 in made}
    digests |= {sent for sent, sha256 in copies.items() if sha256 in digests}
    buried = [stone for stone in stones if stone.sha256 in digests]
    reference_ids = {name for name, sha256 in named if sha256 in digests}
    if reference not in digests and reference not in (name for name, _ in named):
        reference_ids.add(reference)  # only rows that name it may have come back
    fingerprints = found | erased.fingerprints(buried)
    entries = {
        batch: {one: entry for one, entry in known.items() if one in fingerprints}
        for batch, known in ledgers.items()
    }
    gone = Gone(
        frozenset(digests | made | erased.by_digest(buried).keys()),
        frozenset(fingerprints),
        _request_ids(entries.values(), buried),
        frozenset(reference_ids),
    )
    left = tuple(traces.traces(store, gone))
    if not digests and not left:
        raise ConfigurationError(
            f"Nothing in this store names a reference {reference!r}. Give its reference_id, or the SHA-256 of its "
            "bytes: of what was erased nothing else is kept."
        )
    return Descent(
        reference,
        frozenset(reference_ids),
        frozenset(digests),
        {batch: known for batch, known in entries.items() if known},
        frozenset(fingerprints),
        tuple(
            dict.fromkeys(
                image for request in requests if request.fingerprint in found for image in request.images
            )
        ),
        gone,
        left,
    )


class _Known(NamedTuple):
    """What one file of the store knows of a request."""

    fingerprint: str
    uses: frozenset[tuple[str, str]]
    """Ids and digests of the pictures it was made from."""
    images: tuple[ErasedImage, ...] = ()
    """The pictures that came of it."""


def _closure(requests: Iterable[_Known], digests: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the requests that were made from pictures or from what came of these, and the digests of what came."""
    found: set[str] = set()
    made: set[str] = set()
    sources = set(digests)
    waiting = list(requests)
    grown = True
    while grown:
        grown = False
        for request in waiting:
            if request.fingerprint in found or not sources.isdisjoint(sha256 for _, sha256 in request.uses):
                new = {one for image in request.images for one in (image.sha256, image.sha256_received)}
                grown |= request.fingerprint not in found or not new <= made
                found.add(request.fingerprint)
                made |= new
        sources |= made
    return found, made


def _in_ledgers(ledgers: Mapping[str, Mapping[str, Entry]]) -> Iterator[_Known]:
    for entries in ledgers.values():
        for fingerprint, entry in entries.items():
            yield _Known(
                fingerprint,
                _uses(entry.last.reserved.request) if entry.attempts else frozenset(),
                tuple(
                    ErasedImage(sha256=one.sha256, sha256_received=one.sha256_received or one.sha256)
                    for one in _images(entry)
                ),
            )


def _uses(request: GenerationRequest) -> frozenset[tuple[str, str]]:
    return frozenset((use.reference_id, use.sha256) for use in request.pictures)


class _PlannedIn(NamedTuple):
    request_json: str | None


class _PictureIn(NamedTuple):
    fingerprint: str
    sha256: str
    sha256_received: str | None
    reference_ids: list[str]
    reference_sha256s: list[str]
    reference_mask_ids: list[str]
    reference_mask_sha256s: list[str]
    style_reference_ids: list[str]
    style_reference_sha256s: list[str]
    image_id: str | None
    image_sha256: str | None
    mask_id: str | None
    mask_sha256: str | None


class _EdgeIn(NamedTuple):
    kind: str
    from_id: str
    to_id: str
    reference_id: str | None


def _in_files(store: Store) -> Iterator[_Known]:
    """Yield what plans, metadata, catalog and lineage know."""
    for folder in ("plans", "run_plans"):
        for planned in _cells(store, folder, _PlannedIn):
            if planned.request_json:
                request = GenerationRequest.model_validate_json(planned.request_json)
                yield _Known(request.fingerprint, _uses(request))
    for folder in ("images", "catalog"):
        for row in _cells(store, folder, _PictureIn):
            uses = [
                *zip(row.reference_ids, row.reference_sha256s, strict=False),
                *zip(row.reference_mask_ids, row.reference_mask_sha256s, strict=False),
                *zip(row.style_reference_ids, row.style_reference_sha256s, strict=False),
                *((name, sha256) for name, sha256 in _sources(row) if name and sha256),
            ]
            image = ErasedImage(sha256=row.sha256, sha256_received=row.sha256_received or row.sha256)
            yield _Known(row.fingerprint, frozenset(uses), (image,))
    for edge in _cells(store, "lineage", _EdgeIn):
        if edge.kind == "uses":
            yield _Known(edge.to_id, frozenset({(edge.reference_id or "", edge.from_id)}))


def _sources(row: _PictureIn) -> tuple[tuple[str | None, str | None], ...]:
    return (row.image_id, row.image_sha256), (row.mask_id, row.mask_sha256)


class _NamedIn(NamedTuple):
    reference_id: str | None
    sha256: str | None


def _named_in_tables(store: Store) -> Iterator[tuple[str, str]]:
    """Yield how the references tables call pictures: ids and digests."""
    for row in _cells(store, "tables", _NamedIn):
        if row.reference_id and row.sha256:
            yield row.reference_id, row.sha256


View = TypeVar("View", bound=NamedTuple)


def _cells(store: Store, folder: str, kind: type[View]) -> Iterator[View]:
    """Yield some columns of every table below a folder that can be read."""
    for path in [one.path for one in store.objects(folder)]:
        if path.endswith(".parquet"):
            try:
                rows = parquet.view(store, path, kind)
            except (FileNotFoundError, DamagedFile):
                continue
            yield from rows


def _request_ids(ledgers: Iterable[Mapping[str, Entry]], stones: Iterable[Tombstone]) -> frozenset[str]:
    told = {one for stone in stones for one in stone.request_ids}
    return frozenset(told.union(*(request_ids(entries.values()) for entries in ledgers)))


def entomb(store: Store, found: Descent) -> None:
    """Say for good that nothing is made from the picture any more, and keep the digests of what was."""
    stones = {stone.sha256: stone for stone in erased.tombstones(store)}
    costs = [entry.cost.usd for batch in found.entries.values() for entry in batch.values()]
    known = [cost for cost in costs if cost is not None]
    for digest in sorted(found.digests):
        before = stones.get(digest)
        stone = Tombstone(
            sha256=digest,
            erased_at=before.erased_at if before else datetime.now(UTC),
            fingerprints=_with(before.fingerprints if before else (), sorted(found.fingerprints)),
            request_ids=_with(before.request_ids if before else (), found.request_ids),
            cost_usd=before.cost_usd
            if before
            else (str(sum(known, Decimal(0))) if len(known) == len(costs) else None),
            images=_with(before.images if before else (), found.made),
        )
        if stone != before:
            store.put(erased.path(digest), stone.model_dump_json().encode())


def remove(store: Store, found: Descent, *, told: Callable[[str], None] = lambda _: None) -> None:
    """Remove whatever tells of the picture, and say of what. Catalog and gallery are to be made anew.

    Nobody else may be working on these batches.

    Raises:
        StoreError: the store can't be read or written.
    """
    for trace in _names_last(found.traces):
        told(trace.path)
        with suppress(FileNotFoundError):  # it is gone already
            traces.remove(store, found.gone, trace)
    traces.remove_what_others_left(store, found.traces)
    held = {f"batch={batch}" for batch in found.batches}
    for path in [path for folder in traces.READ for path in store.leftovers(folder)]:
        if not held.isdisjoint(path.split("/")):
            store.delete_leftover(path)  # nobody writes here now, so whoever did is dead


def _names_last(found: Iterable[Trace]) -> list[Trace]:
    """Return traces in the order in which they go: what tells by name which rows go stays until these have gone."""
    return sorted(found, key=lambda trace: (trace.path.startswith("tables/references"), trace.path))


def remains(store: Store) -> list[Trace]:
    """Return what is left of erased pictures, whichever folder it came back in; nothing where all is gone.

    Raises:
        StoreError: the store, or a tombstone, can't be read.
    """
    return list(traces.traces(store, Gone.of(erased.tombstones(store))))


def _images(entry: Entry) -> Iterator[StoredImage]:
    for attempt in entry.attempts:
        yield from attempt.settled.images if attempt.settled else ()


def _with(before: Iterable[Item], after: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys([*before, *after]))

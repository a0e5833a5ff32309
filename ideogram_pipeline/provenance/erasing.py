"""Taking back what came from a picture: consent was withdrawn, and nothing of it may remain.

The tombstones come first: from then on nothing is planned from the picture, and an erasure that is interrupted is taken
up where it was by asking for it again. Then goes what can't be made anew, and last the rows that lead to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar

from pydantic import BaseModel

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.edges import submit_id
from ideogram_pipeline.generation.ledger import Entry, Ledger, StoredImage
from ideogram_pipeline.generation.ledger import batches as batches_with_ledger
from ideogram_pipeline.generation.rows import EdgeRow, ImageRow, OutcomeRow, PlannedRow
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables import erased
from ideogram_pipeline.tables.erased import ErasedImage, Tombstone
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection, Review

Row = TypeVar("Row", bound=BaseModel)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Descent:
    """All that came from a picture, as far as the store knows."""

    reference_ids: frozenset[str]
    """What it is called in the references table, now and before."""
    digests: frozenset[str]
    """Digests of its bytes, and of those of its pictures that were used as references in turn."""
    entries: Mapping[str, Mapping[str, Entry]] = field(repr=False)
    """The requests that were made from it, by batch and fingerprint."""

    @property
    def fingerprints(self) -> set[str]:
        """The requests."""
        return {fingerprint for batch in self.entries.values() for fingerprint in batch}

    @property
    def images(self) -> list[str]:
        """Where their pictures lie in the store."""
        return [image.path for entry in self._all for image in _images(entry)]

    @property
    def request_ids(self) -> list[str]:
        """fal's ids of them."""
        return [
            attempt.submitted.request_id
            for entry in self._all
            for attempt in entry.attempts
            if attempt.submitted
        ]

    @property
    def owners(self) -> set[str]:
        """The runs that submitted them."""
        return {attempt.reserved.owner for entry in self._all for attempt in entry.attempts}

    @property
    def _all(self) -> list[Entry]:
        return [entry for batch in self.entries.values() for entry in batch.values()]


def descent(store: Store, reference: str) -> Descent:
    """Find all that came from a reference, named by its id or by the SHA-256 of its bytes.

    The ledger is asked, which knows also what no run has recorded yet. Pictures that were made from it and used as
    references themselves are followed.

    Raises:
        ConfigurationError: nothing is, or was, called so.
    """
    known = _references(store)
    digests = {one.sha256 for one in known if reference in (one.reference_id, one.sha256)}
    digests |= {stone.sha256 for stone in erased.tombstones(store) if stone.sha256 == reference}
    ledgers = {batch: Ledger(store, batch).entries for batch in batches_with_ledger(store)}
    for entries in ledgers.values():
        for entry in entries.values():
            asked = entry.last.reserved.request.pictures
            digests |= {use.sha256 for use in asked if reference in (use.reference_id, use.sha256)}
    if not digests:
        raise ConfigurationError(
            f"No reference is, or was, called {reference!r} in this store. Give its reference_id, or the SHA-256 of "
            "its bytes."
        )
    found: dict[str, dict[str, Entry]] = defaultdict(dict)
    made: set[str] = set()
    used: set[str] = set()
    grown = True
    while grown:
        grown = False
        for batch, entries in ledgers.items():
            for fingerprint, entry in entries.items():
                uses = {use.sha256 for use in entry.last.reserved.request.pictures}
                if fingerprint not in found[batch] and not uses.isdisjoint(digests | made):
                    found[batch][fingerprint] = entry
                    for image in _images(entry):
                        made |= {image.sha256, image.sha256_received or image.sha256}
                    used |= uses & made
                    grown = True
    digests |= used | {one.sha256 for one in known if one.sha256 in made}
    return Descent(
        frozenset(one.reference_id for one in known if one.sha256 in digests),
        frozenset(digests),
        {batch: entries for batch, entries in found.items() if entries},
    )


def entomb(store: Store, found: Descent) -> None:
    """Say for good that nothing is made from the picture any more, and keep the digests of what was."""
    stones = {stone.sha256: stone for stone in erased.tombstones(store)}
    costs = [entry.cost.usd for batch in found.entries.values() for entry in batch.values()]
    known = [cost for cost in costs if cost is not None]
    images = [
        ErasedImage(sha256=image.sha256, sha256_received=image.sha256_received or image.sha256)
        for batch in found.entries.values()
        for entry in batch.values()
        for image in _images(entry)
    ]
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
            images=_with(before.images if before else (), images),
        )
        if stone != before:
            store.put(erased.path(digest), stone.model_dump_json().encode())


def remove(store: Store, found: Descent) -> None:
    """Remove pictures, small pictures, copies, uploads' addresses, ledger entries and rows. Catalog and gallery follow.

    A run must not be working on these batches.
    """
    for folder in ("references", "gallery/references", "uploads"):
        _delete(store, folder, lambda name: name.partition(".")[0] in found.digests)
    for batch, entries in found.entries.items():
        _remove_from_batch(store, batch, entries)
    images = set(found.images)

    def stays(row: BaseModel) -> bool:
        match row:
            case Review():
                return row.image not in images
            case Reference():
                return row.sha256 not in found.digests
            case PromptRow():
                return found.reference_ids.isdisjoint(row.named)
            case Rejection(batch=""):  # of a references table
                return row.row_id not in found.reference_ids
        return True

    for path, model in files.table_files(store):
        _keep(store, path, model, stays)
    for batch, entries in found.entries.items():
        store.delete(f"ledger_copies/batch={batch}.gz")
        for fingerprint in entries:
            _delete(store, f"ledger/batch={batch}/{fingerprint}", lambda _: True)


def _remove_from_batch(store: Store, batch: str, entries: Mapping[str, Entry]) -> None:
    starts = tuple(
        f"{entry.last.reserved.request.prompt_id}-{fingerprint[:8]}-"
        for fingerprint, entry in entries.items()
    )
    ends = _ends(entries)
    for folder in (
        f"images/batch={batch}",
        f"credentials/batch={batch}",
        f"gallery/batch={batch}/thumbnails",
    ):
        _delete(store, folder, lambda name: name.startswith(starts))
    _delete(store, f"inbox/batch={batch}", lambda name: name[:64] in entries)
    _delete(store, f"run_plans/batch={batch}", lambda _: True)
    for one in [one.path for one in store.objects(f"plans/batch={batch}")]:
        _keep(store, one, PlannedRow, lambda row: row.fingerprint not in entries)
    _keep(
        store,
        files.metadata_path(batch),
        ImageRow,
        lambda row: row.fingerprint not in entries,
        lambda row: _without_likeness(row, starts),
    )
    _keep(store, files.outcomes_path(batch), OutcomeRow, lambda row: row.fingerprint not in entries)
    _keep(
        store, files.edges_path(batch), EdgeRow, lambda row: row.from_id not in ends and row.to_id not in ends
    )


def remains(store: Store) -> list[str]:
    """Return what is left of erased pictures, a line each; nothing where all is gone."""
    stones = erased.tombstones(store)
    digests = {stone.sha256 for stone in stones}
    fingerprints = {fingerprint for stone in stones for fingerprint in stone.fingerprints}
    if not digests:
        return []
    left = [
        f"the file {one.path}"
        for folder in ("references", "gallery/references", "uploads", "ledger", "inbox")
        for one in store.objects(folder)
        if not fingerprints.isdisjoint(one.path.split("/"))
        or one.path.rsplit("/", 1)[-1].partition(".")[0] in digests
        or one.path.rsplit("/", 1)[-1][:64] in fingerprints
    ]
    short = {fingerprint[:8] for fingerprint in fingerprints}
    for batch in files.batches_with_results(store):
        rows = files.picture_facts(store, batch)
        ended = files.row_ends(store, batch)
        told = sum(row.fingerprint in fingerprints for row in rows)
        told += sum(row.fingerprint in fingerprints for row in ended)
        left += [f"{told} rows of the batch {batch}"] if told else []
        kept = {row.file_name.rpartition(".")[0] for row in rows if row.fingerprint not in fingerprints}
        for folder in (
            f"images/batch={batch}",
            f"credentials/batch={batch}",
            f"gallery/batch={batch}/thumbnails",
        ):
            for one in store.objects(folder):
                stem = one.path.rsplit("/", 1)[-1].rpartition(".")[0]
                if stem not in kept and stem.rsplit("-", 2)[1:2] and stem.rsplit("-", 2)[1] in short:
                    left.append(f"the file {one.path}")
    return left


def _ends(entries: Mapping[str, Entry]) -> set[str]:
    """Return what only edges of these requests lead to or from."""
    ends = set(entries)
    for entry in entries.values():
        ends |= {submit_id(attempt) for attempt in entry.attempts} | {image.path for image in _images(entry)}
    return ends


def _images(entry: Entry) -> Iterator[StoredImage]:
    for attempt in entry.attempts:
        yield from attempt.settled.images if attempt.settled else ()


def _with(before: Iterable[Item], after: Iterable[Item]) -> tuple[Item, ...]:
    return tuple(dict.fromkeys([*before, *after]))


def _references(store: Store) -> list[Reference]:
    paths = [path for path, model in files.table_files(store) if model is Reference]
    return [row for path in paths for row in parquet.read(store, path, Reference)]


def _delete(store: Store, folder: str, matches: Callable[[str], bool]) -> None:
    for one in [one.path for one in store.objects(folder)]:
        if matches(one.rsplit("/", 1)[-1]):
            store.delete(one)


def _without_likeness(row: ImageRow, starts: tuple[str, ...]) -> ImageRow:
    """Return a row that names no picture which goes; the next run of the batch compares it with those that stay."""
    if row.nearest_image is None or not row.nearest_image.startswith(starts):
        return row
    return row.model_copy(update={"nearest_image": None, "nearest_distance": None})


def _keep(
    store: Store,
    path: str,
    model: type[Row],
    stays: Callable[[Row], bool],
    left: Callable[[Row], Row] = lambda row: row,
) -> None:
    """Leave only some of a file's rows in it, as `left` leaves them; a file that isn't there has none."""
    try:
        rows = list(parquet.read(store, path, model))
    except FileNotFoundError:
        return
    kept = [left(row) for row in rows if stays(row)]
    if len(kept) < len(rows):
        parquet.write(store, path, model, kept)

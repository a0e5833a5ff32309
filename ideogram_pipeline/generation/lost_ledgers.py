"""What a batch's requests left outside its ledger: pictures, metadata, outcomes and lineage that name them as paid.

The ledger alone says what is paid for. So where these name a request that it lacks, its files were lost, or an older
ledger stands in its place, and the request would be paid again: a run refuses, and `adopting` enters what is missing.
A ledger that went back together with all of these says nothing of it; only fal's list does.

What nobody can enter, because nothing tells any more what was asked, is kept under `ledger_gaps/batch=<batch>.json`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import ConfigurationError, DamagedFile
from ideogram_pipeline.generation import files, ledger
from ideogram_pipeline.generation.picture_names import PREFIX, parsed
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables import erased
from ideogram_pipeline.texts import counted

LOST_LEDGER = (
    "Was the folder 'ledger' lost, or an older one restored? Restore it from a backup, or have "
    "`ideogram-pipeline reconcile --adopt` enter what was paid; then run again."
)
"""What to do where a ledger lacks requests that were paid for."""


class PaidRequest(NamedTuple):
    """A request that something in the store names as paid for."""

    fingerprint: str
    """Its identity; the first `PREFIX` digits where pictures alone name it."""
    prompt_id: str
    """The row of the prompts table."""
    request_id: str | None
    """fal's id of it, where that is told."""
    path: str
    """What names it."""


class Gaps(BaseModel):
    """Requests of a batch that were paid for and can't be entered into its ledger."""

    model_config = ConfigDict(frozen=True)

    fingerprints: tuple[str, ...] = Field(
        description=f"What named them; the first {PREFIX} digits where pictures alone did."
    )


class _Pictured(NamedTuple):
    fingerprint: str
    prompt_id: str
    request_id: str | None


class _Ended(NamedTuple):
    fingerprint: str | None
    prompt_id: str
    request_id: str | None
    attempts: int | None


class _Edge(NamedTuple):
    kind: str
    from_id: str
    to_id: str


View = TypeVar("View", bound=NamedTuple)


def paid_batches(store: Store) -> set[str]:
    """Return the batches that the store may have paid rows of: those with a ledger or outcomes."""
    return {*ledger.batches(store), *files.batches_with_results(store)}


def lacking(store: Store, batch: str, known: Collection[str] = ()) -> dict[str, PaidRequest]:
    """Return what names requests of a batch that its ledger lacks, by fingerprint; erased ones excepted.

    `known` is what the ledger was found to hold. It is listed anew only where that doesn't explain everything.
    """
    named = _without(dict(_named(store, batch)), known)
    if named:
        named = _without(named, ledger.names(store, batch))
    if named:
        gone = erased.fingerprints(erased.tombstones(store))
        named = _without(named, gone.union(gaps(store, batch)))
    return named


def check(store: Store, batch: str, known: Collection[str] = ()) -> None:
    """Refuse to go on where a batch's ledger lacks requests that were paid for; `known` as in `lacking`.

    Raises:
        ConfigurationError: it does. Names some, and the command that enters them.
    """
    if says := missing(store, batch, known):
        raise ConfigurationError(f"{says} {LOST_LEDGER} Nothing was submitted.")


def check_asked(store: Store, batch: str, asked: Collection[str]) -> None:
    """Refuse to pay for requests that were paid for, of which nothing told more when they were looked for.

    A row may ask for one since: the table of that time was another one.

    Raises:
        ConfigurationError: one of the fingerprints that are `asked` for is such a request's.
    """
    known = set(gaps(store, batch))
    again = [one for one in asked if one in known or one[:PREFIX] in known]
    if again:
        raise ConfigurationError(
            f"{counted(len(again), 'request')} of the batch {batch!r} that {'is' if len(again) == 1 else 'are'} to be "
            f"paid for, such as {again[0][:PREFIX]}, {'was' if len(again) == 1 else 'were'} paid for before their "
            "ledger was lost, and no row asked for them when `ideogram-pipeline reconcile --adopt` looked. Have it "
            "look again, with the tables as they are now; then run again. Nothing was submitted."
        )


def missing_of(store: Store, batches: Collection[str]) -> list[str]:
    """Say of each of these batches whose ledger lacks requests that were paid for, in their order; writes nothing."""
    with ThreadPoolExecutor(max_workers=16) as threads:
        return [says for says in threads.map(partial(missing, store), batches) if says]


def missing(store: Store, batch: str, known: Collection[str] = ()) -> str:
    """Say which requests a batch's ledger lacks; empty where it lacks none."""
    found = lacking(store, batch, known)
    if not found:
        return ""
    first = next(iter(found.values()))
    return (
        f"The ledger of the batch {batch!r} lacks {counted(len(found), 'request that was', 'requests that were')} "
        f"paid for, such as {first.fingerprint[:PREFIX]} of {first.prompt_id}, named by {store.where(first.path)!r}: a "
        f"run would pay for {'it' if len(found) == 1 else 'them'} again."
    )


def gaps(store: Store, batch: str) -> tuple[str, ...]:
    """Return what was looked for and can't be entered into a batch's ledger."""
    try:
        return Gaps.model_validate_json(store.get(_gaps_path(batch))).fingerprints
    except (FileNotFoundError, ValidationError):
        return ()


def keep_gaps(store: Store, batch: str, fingerprints: Collection[str]) -> None:
    """Remember what can't be entered into a batch's ledger, beside what is remembered already."""
    if fingerprints:
        found = Gaps(fingerprints=tuple(sorted({*gaps(store, batch), *fingerprints})))
        store.put(_gaps_path(batch), found.model_dump_json().encode())


def picture_paths(store: Store, batch: str, fingerprint: str) -> list[str]:
    """Return the pictures whose names tell a fingerprint, sorted."""
    return sorted(
        path for path, name in _picture_names(store, batch) if name["short"] == fingerprint[:PREFIX]
    )


def _named(store: Store, batch: str) -> Iterator[tuple[str, PaidRequest]]:
    """Yield what names requests as paid: the weakest first, so that who says most has the last word."""
    pictures = {
        name["short"]: PaidRequest(name["short"], name["prompt_id"], None, path)
        for path, name in _picture_names(store, batch)
    }
    told = [*_edges(store, batch), *_outcomes(store, batch), *_metadata(store, batch)]
    for one in told:
        pictures.pop(one.fingerprint[:PREFIX], None)
    yield from pictures.items()
    yield from ((one.fingerprint, one) for one in told)


def _without(named: Mapping[str, PaidRequest], known: Collection[str]) -> dict[str, PaidRequest]:
    """Return what isn't known; a picture's is explained by any fingerprint that begins like it."""
    begins = {one[:PREFIX] for one in known}
    return {
        one: paid
        for one, paid in named.items()
        if one not in known and (len(one) > PREFIX or one not in begins)
    }


def _picture_names(store: Store, batch: str) -> Iterator[tuple[str, re.Match[str]]]:
    folder = files.metadata_path(batch).rpartition("/")[0]
    for found in store.objects(folder):
        if name := parsed(found.path[len(folder) + 1 :]):
            yield found.path, name


def _metadata(store: Store, batch: str) -> Iterator[PaidRequest]:
    path = files.metadata_path(batch)
    for row in _view(store, path, _Pictured):
        yield PaidRequest(row.fingerprint, row.prompt_id, row.request_id, path)


def _outcomes(store: Store, batch: str) -> Iterator[PaidRequest]:
    path = files.outcomes_path(batch)
    for row in _view(store, path, _Ended):
        if row.fingerprint and (row.attempts or row.request_id):
            yield PaidRequest(row.fingerprint, row.prompt_id, row.request_id, path)


def _edges(store: Store, batch: str) -> Iterator[PaidRequest]:
    path = files.edges_path(batch)
    edges = _view(store, path, _Edge)
    asked_by = {edge.to_id: edge.from_id for edge in edges if edge.kind == "asks"}
    for edge in edges:
        if edge.kind == "sent_as" and "#" not in edge.to_id:
            yield PaidRequest(edge.from_id, asked_by.get(edge.from_id, ""), edge.to_id, path)


def _view(store: Store, path: str, kind: type[View]) -> list[View]:
    """Return columns of a file; nothing of one that isn't there, or is damaged: others name the same requests."""
    try:
        return parquet.view(store, path, kind)
    except (FileNotFoundError, DamagedFile):
        return []


def _gaps_path(batch: str) -> str:
    return f"ledger_gaps/batch={batch}.json"

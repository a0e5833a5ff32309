"""What is derived, made again: a batch's plan, metadata and outcomes from its ledger and its pictures."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from ideogram_pipeline.errors import ConfigurationError, DamagedFile
from ideogram_pipeline.generation import files, lost_ledgers
from ideogram_pipeline.generation.ledger import Ledger, damages
from ideogram_pipeline.generation.recording import plan_of_ledger, record
from ideogram_pipeline.storage import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a batch was found to hold."""

    batch: str
    """The partition."""
    rows: int
    """Rows of the prompts table that the ledger knows."""
    images: int
    """Pictures that are whole."""
    damaged: tuple[str, ...]
    """Pictures of the ledger that are missing or not what was stored, by their paths."""
    unreadable: tuple[str, ...]
    """What can't be read of the ledger, and what to do: a line for each request that it is about."""


def rebuild_batch(store: Store, batch: str) -> Rebuilt:
    """Write a batch's metadata, outcomes and edges anew and look at every picture's bytes.

    Where the batch has lost its plans, it gets one of the newest request of each prompt row: rows that were rejected
    then stand only in the prompts table, and come back with the next run.

    Raises:
        ConfigurationError: the ledger lacks what was paid for; nothing was written.
    """
    ledger = Ledger(store, batch)
    results = _made_anew(store, ledger)
    folder = files.metadata_path(batch).rpartition("/")[0]
    damaged = [
        path
        for image in results.images
        if not _is_whole(store, path := f"{folder}/{image.file_name}", image.sha256)
    ]
    rows = sum(row.fingerprint in ledger.entries for row in results.outcomes)
    unreadable = tuple(f"{one[:8]}: {damage}" for one, damage in damages(ledger.entries).items())
    return Rebuilt(batch, rows, len(results.images) - len(damaged), tuple(damaged), unreadable)


def mend(store: Store, batch: str) -> None:
    """Write a batch's metadata, outcomes and edges anew, because one of them was found damaged.

    Raises:
        ConfigurationError: the ledger lacks what was paid for; nothing was written.
    """
    _log.warning("%s: a file that is derived was damaged; its rows are made anew from the ledger", batch)
    _made_anew(store, Ledger(store, batch))


def record_again(store: Store, batch: str) -> None:
    """Write a batch's metadata, outcomes and edges again: it was out of the tables, and is asked for again."""
    ledger = Ledger(store, batch)
    if not lost_ledgers.lacking(store, batch, ledger.entries):  # what tells of these would be lost
        record(store, ledger)


def _made_anew(store: Store, ledger: Ledger) -> files.Results:
    if says := lost_ledgers.missing(store, ledger.batch, ledger.entries):
        # What tells of a request that the ledger lacks would be overwritten.
        raise ConfigurationError(f"{says} {lost_ledgers.LOST_LEDGER}")
    files.delete_damaged_plans(store, ledger.batch)
    if not files.plans(store, ledger.batch):
        files.write_plan(store, plan_of_ledger(ledger.batch, ledger.entries))
    return record(store, ledger, anew=True)


def refresh_results(store: Store, ledger: Ledger, batch: str) -> bool:
    """Bring a batch's metadata and outcomes up to date with its ledger: with fal's bills, with what was cancelled or
    given up; say whether anything had changed."""
    if lost_ledgers.lacking(store, batch, ledger.entries):
        return False  # what tells of a request that the ledger lacks would be lost
    try:
        before = files.read_results(store, batch)
    except FileNotFoundError:
        return False
    except DamagedFile:
        _made_anew(store, ledger)
        return True
    return record(store, ledger) != before


def _is_whole(store: Store, path: str, sha256: str) -> bool:
    try:
        return hashlib.sha256(store.get(path)).hexdigest() == sha256
    except FileNotFoundError:
        return False

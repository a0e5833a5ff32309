"""What is derived, made again: a batch's plan, metadata and outcomes from its ledger and its pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.edges import edge_rows
from ideogram_pipeline.generation.ledger import Entry, Ledger
from ideogram_pipeline.generation.outcomes import Failed, NotReached, Outcome, Refused, Reused, Unknown
from ideogram_pipeline.generation.planner import Plan
from ideogram_pipeline.generation.records import image_rows, outcome_rows, with_costs
from ideogram_pipeline.generation.rows import PlannedRow
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.parquet import Rows


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
    """Write a batch's plan, metadata and outcomes anew and look at every picture's bytes.

    The plan holds the newest request of each prompt row. Rows that were rejected stand only in the prompts table, and
    come back with the next run.
    """
    entries = Ledger(store, batch).entries
    current = _newest(entries)
    plan = Plan(batch, Rows.of(PlannedRow, (_planned(entries[fingerprint]) for fingerprint in current)))
    files.write_plan(store, plan)
    ended = (_outcome(entries[fingerprint]) for fingerprint in current)
    files.write_results(store, batch, image_rows(plan, entries), outcome_rows(plan, ended, entries))
    files.write_edges(store, batch, edge_rows(entries))
    folder = files.metadata_path(batch).rpartition("/")[0]
    images = files.images(store, batch)
    damaged = [
        path for image in images if not _is_whole(store, path := f"{folder}/{image.file_name}", image.sha256)
    ]
    unreadable = tuple(f"{one[:8]}: {entry.damage}" for one, entry in entries.items() if entry.damage)
    return Rebuilt(batch, len(current), len(images) - len(damaged), tuple(damaged), unreadable)


def _newest(entries: Mapping[str, Entry]) -> list[str]:
    """Return the fingerprint of each prompt row's newest request, in the order of the table."""
    newest: dict[str, tuple[datetime, int, str]] = {}
    for fingerprint, entry in entries.items():
        if not entry.attempts:
            continue
        reserved, request = entry.last.reserved, entry.last.reserved.request
        if request.prompt_id not in newest or newest[request.prompt_id][0] <= reserved.reserved_at:
            newest[request.prompt_id] = reserved.reserved_at, request.row_number, fingerprint
    return [fingerprint for _, _, fingerprint in sorted(newest.values(), key=lambda one: one[1])]


def refresh_costs(store: Store, ledger: Ledger, batch: str) -> bool:
    """Bring the costs in a batch's metadata and outcomes up to date with fal's bills; say whether any had changed."""
    try:
        before = files.read_images(store, batch), files.read_outcomes(store, batch)
    except FileNotFoundError:
        return False
    images, outcomes = with_costs(*before, ledger.entries)
    if (images, outcomes) == before:
        return False
    files.write_results(store, batch, images, outcomes)
    return True


def _planned(entry: Entry) -> PlannedRow:
    request = entry.last.reserved.request
    return PlannedRow(
        prompt_id=request.prompt_id,
        row_number=request.row_number,
        decision="settled",
        reason="rebuilt from the ledger",
        endpoint=request.endpoint,
        fingerprint=request.fingerprint,
        images=request.num_images,
        price_usd=None if request.price_usd is None else float(request.price_usd),
        request_json=request.model_dump_json(),
    )


def _outcome(entry: Entry) -> Outcome:
    request, settled = entry.last.reserved.request, entry.last.settled
    match entry.state:
        case "generated":
            return Reused(request, entry)
        case "refused":
            return Refused(request, entry, settled.reason if settled else "")
        case "failed" | "retryable":
            return Failed(request, entry, settled.reason if settled else "")
        case "reserved":
            return Unknown(
                request, entry, "its submit was never answered; `ideogram-pipeline reconcile` looks for it"
            )
        case "damaged":
            return Unknown(request, entry, entry.damage)
        case _:
            return NotReached(request, entry, "the next run fetches it")


def _is_whole(store: Store, path: str, sha256: str) -> bool:
    try:
        return hashlib.sha256(store.get(path)).hexdigest() == sha256
    except FileNotFoundError:
        return False

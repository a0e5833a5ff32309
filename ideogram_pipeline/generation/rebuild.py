"""What is derived, made again: a batch's plan, metadata and outcomes from its ledger and its pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.ledger import Entry, Ledger
from ideogram_pipeline.generation.outcomes import Failed, NotReached, Outcome, Refused, Reused, Unknown
from ideogram_pipeline.generation.planner import Plan
from ideogram_pipeline.generation.records import image_rows, outcome_rows, with_costs
from ideogram_pipeline.generation.rows import PlannedRow
from ideogram_pipeline.storage import Store


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


def rebuild_batch(store: Store, batch: str) -> Rebuilt:
    """Write a batch's plan, metadata and outcomes anew and look at every picture's bytes.

    The plan holds the newest request of each prompt row. Rows that were rejected stand only in the prompts table, and
    come back with the next run.
    """
    ledger = Ledger(store, batch)
    newest: dict[str, Entry] = {}
    for entry in sorted(ledger.entries.values(), key=lambda entry: entry.last.reserved.reserved_at):
        newest[entry.last.reserved.request.prompt_id] = entry
    current = sorted(newest.values(), key=lambda entry: entry.last.reserved.request.row_number)
    plan = Plan(batch, tuple(_planned(entry) for entry in current))
    images = image_rows(plan, ledger.entries)
    files.write_plan(store, plan)
    files.write_results(store, batch, images, outcome_rows(plan, [_outcome(entry) for entry in current]))
    folder = files.metadata_path(batch).rpartition("/")[0]
    damaged = [
        path for image in images if not _is_whole(store, path := f"{folder}/{image.file_name}", image.sha256)
    ]
    return Rebuilt(batch, len(current), len(images) - len(damaged), tuple(damaged))


def refresh_costs(store: Store, ledger: Ledger, batch: str) -> bool:
    """Bring the costs in a batch's metadata and outcomes up to date with fal's bills; say whether any had changed."""
    if not store.exists(files.outcomes_path(batch)):
        return False
    before = files.read_images(store, batch), files.read_outcomes(store, batch)
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
        case _:
            return NotReached(request, entry, "the next run fetches it")


def _is_whole(store: Store, path: str, sha256: str) -> bool:
    try:
        return hashlib.sha256(store.get(path)).hexdigest() == sha256
    except FileNotFoundError:
        return False

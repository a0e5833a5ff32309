"""How the cost of one more batch grows with what was made before: planning and bookkeeping, without drawing.

For each size a store is filled with batches of 1,000 rows as runs leave them: ledger, plans, results, catalog, gallery.
Then one more batch is planned, recorded and published, and the CPU time and the store's operations of each step are
counted. Ledger entries are written as files, and there are no pictures: nothing is sent, and nothing is drawn.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from ideogram_pipeline.gallery.pages import write_gallery
from ideogram_pipeline.generation import catalog, files, readings
from ideogram_pipeline.generation.ledger import (
    Attempt,
    Entry,
    Ledger,
    Reserved,
    Settled,
    StoredImage,
    Submitted,
)
from ideogram_pipeline.generation.outcomes import Generated
from ideogram_pipeline.generation.planner import Plan, plan_batch
from ideogram_pipeline.generation.records import image_rows, outcome_rows
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.references import ReferencesTable

BATCH = 1_000
"""Rows of a batch."""
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@contextmanager
def measured(store: Store, told: list[str], rows: int) -> Iterator[None]:
    """Note the CPU time a row and the operations of a step."""
    store.requests.clear()
    cpu, wall = time.process_time(), time.monotonic()
    yield
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    told.append(f"{1000 * cpu / rows:.2f} / {1000 * wall / rows:.2f} ({store.requests.total()})")


def entry(request: GenerationRequest) -> Entry:
    """Return what the ledger holds of a request that brought its picture."""
    reserved = Reserved(
        request=request,
        sent_sha256="0" * 64,
        attempt=1,
        owner="bench",
        reserved_at=NOW,
        backend="sandbox",
        code_version="bench",
    )
    url = f"https://queue.example/{request.fingerprint}"
    submitted = Submitted(
        request_id=request.fingerprint[:32],
        status_url=url,
        response_url=url,
        cancel_url=url,
        submitted_at=NOW,
    )
    image = StoredImage(
        index=0,
        path=f"images/batch={request.batch}/{request.prompt_id}-{request.fingerprint[:8]}-0.png",
        sha256="0" * 64,
        bytes=1_000_000,
        width=1024,
        height=1024,
        format="png",
    )
    settled = Settled(
        state="generated",
        images=(image,),
        seed=1,
        inference_s=4.0,
        completed_at=NOW,
        cost_usd=request.price_usd or Decimal(0),
        cost_source="price_list",
    )
    return Entry((Attempt(reserved, submitted=submitted, settled=settled),))


def keep(store: Store, batch: str, entries: dict[str, Entry]) -> None:
    """Write ledger entries as the engine leaves them, without waiting for the disk."""
    assert store.folder
    for fingerprint, known in entries.items():
        folder = store.folder / f"ledger/batch={batch}" / fingerprint
        folder.mkdir(parents=True)
        for step in ("reserved", "submitted", "settled"):
            (folder / f"1-{step}.json").write_text(getattr(known.last, step).model_dump_json())


def planned(store: Store, batch: str) -> Plan:
    """Plan a batch as its asset does."""
    (read,) = readings.newest_prompts(store)
    tables = readings.newest_tables(store, read.table, "")
    rows, rejections = tables.read_prompts(batch)
    references = tables.read_references(files.named_by(rows))
    return plan_batch(batch, rows, rejections, references, Ledger(store, batch).entries)


def record(store: Store, plan: Plan, entries: dict[str, Entry]) -> None:
    """Write what a run leaves of a batch."""
    outcomes = (Generated(request, entries[request.fingerprint]) for request in plan.requests)
    files.write_plan(store, plan, root_run_id="bench")
    files.write_results(store, plan.batch, image_rows(plan, entries), outcome_rows(plan, outcomes, entries))


def publish(store: Store) -> None:
    """Bring catalog and gallery up to date."""
    catalog.refresh(store)
    write_gallery(store, thumbnails=False)


def made(plan: Plan) -> dict[str, Entry]:
    """Return a ledger in which every row of a plan has its picture."""
    return {request.fingerprint: entry(request) for row in plan.rows if (request := row.request)}


def measure(history: int, folder: Path) -> Sequence[str]:
    """Fill a store with so many rows and measure one more batch."""
    table = folder / "prompts.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt_id", "batch", "prompt"])
        for number in range(history + BATCH):
            writer.writerow([f"row-{number:07}", f"drop-{number // BATCH:05}", f"portrait number {number}"])
    (folder / "references.csv").write_text("reference_id,uri\n")
    store = Store.open(str(folder / "store"))
    told: list[str] = []
    with measured(store, told, history + BATCH):
        readings.write_prompts(store, read_prompts(str(table)))
    readings.write_references(store, ReferencesTable((), ()))
    for number in range(history // BATCH):
        plan = planned(store, f"drop-{number:05}")
        entries = made(plan)
        keep(store, plan.batch, entries)
        record(store, plan, entries)
    publish(store)
    print(f"  {history} rows are there", file=sys.stderr)
    newest = f"drop-{history // BATCH:05}"
    with measured(store, told, BATCH):
        plan = planned(store, newest)
    entries = made(plan)
    keep(store, newest, entries)
    with measured(store, told, BATCH):
        plan = planned(store, newest)
    with measured(store, told, BATCH):
        record(store, plan, entries)
    with measured(store, told, BATCH):
        publish(store)
    with measured(store, told, BATCH):
        publish(store)
    return told


def main() -> None:
    """Print a Markdown table."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument(
        "--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="rows there before"
    )
    print("CPU / wall in ms a row (store operations in all)\n")
    print(
        "| rows there | read the tables | plan, new | plan, all there | record | publish | publish, no change |"
    )
    print("|---" * 7 + "|")
    for history in arguments.parse_args().rows:
        with tempfile.TemporaryDirectory(prefix="growth-") as name:
            print(f"| {history:,} | {' | '.join(measure(history, Path(name)))} |", flush=True)


if __name__ == "__main__":
    main()

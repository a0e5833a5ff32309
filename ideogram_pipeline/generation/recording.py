"""What a batch leaves: written from its ledger and from the newest plan of each table, as they are at that moment.

Several runs may work one batch, and whoever ends last writes for all of them. So nobody writes what it remembers: the
ledger and the plans are read again, the rows that other runs have recorded keep what was said of them as long as the
ledger says nothing newer, and when all is written it is looked whether anything came meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from ideogram_pipeline.errors import DamagedFile
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.edges import edge_rows
from ideogram_pipeline.generation.files import Results
from ideogram_pipeline.generation.ledger import Entries, Entry, Ledger
from ideogram_pipeline.generation.outcomes import NotReached, Outcome, Outcomes, of_entry, recalled
from ideogram_pipeline.generation.planner import NOT_WORKED, Plan
from ideogram_pipeline.generation.records import image_rows, outcome_rows
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.rows import EdgeRow, ImageRow, OutcomeRow, PlannedRow
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.storage.parquet import Rows

ROUNDS = 5
"""So often a batch is written at most, while other runs go on writing what it is made of."""

_Recorded = Mapping[tuple[str, str | None], OutcomeRow]


@dataclass(frozen=True, slots=True)
class Worked:
    """What one run did of a batch."""

    plan: Plan
    """What it was asked for."""
    outcomes: Outcomes
    """How the rows ended that it worked, or left."""


def record(store: Store, ledger: Ledger, worked: Worked | None = None, *, anew: bool = False) -> Results:
    """Write metadata, outcomes and edges of a batch, and return metadata and outcomes as they lie there.

    They hold the rows of every table that has the batch. What a run has `worked` ends as it says; other rows keep what
    their run has recorded, unless they are to be made `anew`; in either case the ledger has the last word.

    Raises:
        StoreError: the store is at fault.
    """
    batch = ledger.batch
    for _ in range(ROUNDS):
        mark = _mark(store, ledger)
        asked = _asked(store, ledger, worked)
        results = files.write_results(store, batch, *_rows(store, ledger.entries, asked, worked, anew=anew))
        files.write_edges(store, batch, _edges(store, ledger))
        if files.read_results(store, batch) == results and _mark(store, ledger) == mark:
            break
    return results


def rows_of(store: Store, ledger: Ledger, worked: Worked, results: Results) -> Results:
    """Return those of a batch's results that a run was asked for: all of them where no other table has the batch."""
    plan = _with_newest_takes(worked.plan, ledger.entries)
    if _asked(store, ledger, worked).rows == plan.rows:
        return results
    images, outcomes = _rows(store, ledger.entries, plan, worked, anew=False)
    return Results(Rows.of(ImageRow, images), Rows.of(OutcomeRow, outcomes))


def asked_together(store: Store, ledger: Ledger, plan: Plan) -> Plan:
    """Return what a plan and the newest plans of the other tables ask of a batch, as `record` would write it."""
    others = files.plans(store, ledger.batch, but=plan.reading)
    return _with_newest_takes(files.together([plan, *others]), ledger.entries)


def _mark(store: Store, ledger: Ledger) -> str:
    """Bring the ledger up to date; return what changes with all that results are made of."""
    return "\n".join([ledger.catch_up(), *files.plan_marks(store, ledger.batch)])


def _asked(store: Store, ledger: Ledger, worked: Worked | None) -> Plan:
    """Return what all tables ask of a batch together."""
    plans = files.plans(store, ledger.batch)
    if worked and (not plans or [plan.rows.content for plan in plans] == [worked.plan.rows.content]):
        plans = [worked.plan]
    if not plans:
        return plan_of_ledger(ledger.batch, ledger.entries)
    return _with_newest_takes(files.together(plans), ledger.entries)


def _rows(
    store: Store, entries: Entries, plan: Plan, worked: Worked | None, *, anew: bool
) -> tuple[Iterator[ImageRow], Iterator[OutcomeRow]]:
    recorded: _Recorded | None = {} if anew else None

    def ended(request: GenerationRequest) -> Outcome:
        nonlocal recorded
        if worked and (outcome := worked.outcomes.now(request)):
            return outcome
        if recorded is None:
            recorded = _recorded(store, plan.batch)
        entry = entries.get(request.fingerprint)
        if row := recorded.get((request.prompt_id, request.fingerprint)):
            return recalled(request, entry, row)
        if entry:
            return of_entry(request, entry)
        return NotReached(request, None, NOT_WORKED, "elsewhere")

    images, outcomes = image_rows(plan, entries), outcome_rows(plan, map(ended, plan.requests), entries)
    if not entries.damaged:
        return images, outcomes
    before = _recorded(store, plan.batch)
    return _with_images_of_damaged(store, images, plan, entries), (
        _with_money_of(before.get((row.prompt_id, row.fingerprint)), row)
        if row.fingerprint in entries.damaged
        else row
        for row in outcomes
    )


def _with_images_of_damaged(
    store: Store, images: Iterable[ImageRow], plan: Plan, entries: Entries
) -> Iterator[ImageRow]:
    """Yield the rows of pictures: of damaged entries as they were recorded, those too that the entries don't tell."""
    kept: dict[str, ImageRow] = {}
    with suppress(FileNotFoundError, DamagedFile):
        path = files.metadata_path(plan.batch)
        found = parquet.read(store, path, ImageRow, where=("fingerprint", entries.damaged))
        kept = {row.file_name: row for row in found}
    for row in images:
        before = kept.pop(row.file_name, row)
        yield before.model_copy(update={"current": row.current, "extra": row.extra})
    asked = {row.fingerprint for row in plan.rows}
    for row in kept.values():
        yield row.model_copy(update={"current": row.fingerprint in asked})


def _with_money_of(before: OutcomeRow | None, row: OutcomeRow) -> OutcomeRow:
    """Return the outcome of a row whose entry is damaged, with what was known of its money if that is more."""
    if before is None or before.attempts < max(row.attempts, 1):
        return row
    known = {"request_id", "cost_usd", "cost_source", "attempts", "images"}
    return row.model_copy(update=before.model_dump(include=known))


def _edges(store: Store, ledger: Ledger) -> Iterator[EdgeRow]:
    """Yield the edges of a batch; after them what was recorded of damaged entries, as far as these don't tell it."""
    damaged, told = ledger.entries.damaged, set[EdgeRow]()
    for edge in edge_rows(ledger.entries):
        if damaged:
            told.add(edge)
        yield edge
    if not damaged:
        return
    with suppress(FileNotFoundError, DamagedFile):
        before = list(parquet.read(store, files.edges_path(ledger.batch), EdgeRow))
        submits = {one.to_id for one in before if one.kind == "sent_as" and one.from_id in damaged}
        about = damaged | submits
        yield from (one for one in before if about & {one.from_id, one.to_id} and one not in told)


def _recorded(store: Store, batch: str) -> _Recorded:
    """Return what runs have recorded of a batch's rows."""
    with suppress(FileNotFoundError, DamagedFile):
        return {(row.prompt_id, row.fingerprint): row for row in files.outcomes(store, batch)}
    return {}


def _with_newest_takes(plan: Plan, entries: Entries) -> Plan:
    """Return a plan that asks for the newest take of each row that the ledger knows, and leaves no row out.

    Another run may have asked for further takes since the plan was made.
    """
    later = _later_takes(entries)
    if not later and not plan.count("left out"):
        return plan
    return Plan(plan.batch, Rows.of(PlannedRow, _newest_takes(plan, later, entries)), plan.reading)


def _newest_takes(plan: Plan, later: Mapping[str, str], entries: Entries) -> Iterator[PlannedRow]:
    replaced = {row.request.replaces for row in plan.rows if row.request} if later else set()
    seen: set[str] = set()
    for row in plan.rows:
        fingerprint = row.fingerprint
        if fingerprint is None:
            yield row
            continue
        while fingerprint in later:
            fingerprint = later[fingerprint]
        if fingerprint in seen or fingerprint in replaced:
            continue
        seen.add(fingerprint)
        changes: dict[str, object] = {"decision": "settled" if row.decision == "left out" else row.decision}
        if fingerprint != row.fingerprint and (asked := row.request):
            kept = {"extra": asked.extra, "row_number": asked.row_number}
            newest = entries[fingerprint].last.reserved.request.model_copy(update=kept)
            changes |= {"fingerprint": fingerprint, "request_json": newest.model_dump_json()}
        yield row.model_copy(update=changes)


def _later_takes(entries: Entries) -> dict[str, str]:
    """Return the next take of every request of which the ledger knows one, by fingerprint."""
    takes = (entries[one].last.reserved.request for one in entries if b'"replaces":"' in entries.files(one))
    return {request.replaces: request.fingerprint for request in takes if request.replaces}


def plan_of_ledger(batch: str, entries: Mapping[str, Entry]) -> Plan:
    """Return a plan that asks for the newest request of each prompt row that the ledger knows, and no more."""
    return Plan(batch, Rows.of(PlannedRow, (_planned(entries[one]) for one in _newest(entries))))


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


def _planned(entry: Entry) -> PlannedRow:
    request = entry.last.reserved.request
    return PlannedRow(
        prompt_id=request.prompt_id,
        batch=request.batch,
        row_number=request.row_number,
        decision="settled",
        reason="rebuilt from the ledger",
        endpoint=request.endpoint,
        fingerprint=request.fingerprint,
        images=request.num_images,
        price_usd=None if request.price_usd is None else float(request.price_usd),
        request_json=request.model_dump_json(),
    )

"""What people do after runs: look for lost answers and fal's bills, and make what is derived anew."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from dagster._core.storage.tags import PARTITION_NAME_TAG

from ideogram_pipeline import __version__
from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.fal import FalClient, FalError
from ideogram_pipeline.fal.errors import RequestNotFound
from ideogram_pipeline.gallery.pages import write_gallery
from ideogram_pipeline.generation import catalog, files, lost_ledgers
from ideogram_pipeline.generation.adopting import Adoption
from ideogram_pipeline.generation.adopting import adopt as enter_what_was_paid
from ideogram_pipeline.generation.billing import Bill, bill, read_bills
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.cancelling import Cancelled, Stuck, WithFal, cancel, look, with_fal
from ideogram_pipeline.generation.giving_up import GivenUp, give_up_batch
from ideogram_pipeline.generation.ledger import Ledger, damages
from ideogram_pipeline.generation.ledger import batches as batches_with_ledger
from ideogram_pipeline.generation.rebuild import Rebuilt, rebuild_batch, refresh_results
from ideogram_pipeline.generation.reconcile import Unanswered, reconcile_batch
from ideogram_pipeline.generation.runs import beating, erasing, wait_for_overviews, working
from ideogram_pipeline.launch import instance_of
from ideogram_pipeline.preview import first_takes, store_as_it_is
from ideogram_pipeline.provenance.erasing import (
    Descent,
    descent,
    entomb,
    remains,
    remove,
)
from ideogram_pipeline.provenance.traces import purge_versions
from ideogram_pipeline.resources import build_resources, fal_resource
from ideogram_pipeline.sandbox import forget_uploads
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from ideogram_pipeline.threads import result_of


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What fal was found to know."""

    unanswered: tuple[Unanswered, ...]
    """Every submit that was never answered."""
    bills: tuple[Bill, ...]
    """What fal charged for each batch that has accepted requests, as far as it was read now or before."""
    bills_unread: str
    """Why fal's bills could not be read, or empty."""
    given_up: tuple[GivenUp, ...]
    """What became of the requests with fal that were to be given up."""
    damaged: tuple[str, ...]
    """What can't be read of the ledgers, and what to do: a line for each request that it is about."""


def refuse_unknown(settings: Settings, batches: Sequence[str]) -> None:
    """Refuse batches that have no ledger: their names are likely to be misspelt, and not to have nothing open.

    Raises:
        ConfigurationError: there is one.
        StoreError: the store can't be read.
    """
    known = batches_with_ledger(store_as_it_is(settings)) if batches else []
    for batch in batches:
        if batch not in known:
            raise ConfigurationError(
                f"No request of the batch {batch!r} is in the ledger; it has those of {', '.join(known) or 'none'}."
            )


def reconcile(
    settings: Settings,
    batches: Sequence[str],
    *,
    resubmit_after: timedelta | None,
    give_up_after: timedelta | None = None,
) -> Reconciled:
    """Look for every unanswered submit in fal's list of requests, and for the bill of every accepted one.

    What is found is recorded, and the costs in metadata, outcomes, catalog and gallery are brought up to date. What
    isn't found stays as it was. With `resubmit_after`, a submit that was reserved longer ago than that, by a run that
    no longer works, is given up: the next run submits it again, and it may then be paid twice. With `give_up_after`,
    so is what fal has accepted longer ago than that and does not give.

    Raises:
        BeingErased: an erasure holds a batch; what came before it was looked for.
        PipelineError: the configuration or the store is at fault.
    """
    store, own_id = build_resources(settings)["store"].open(), f"reconcile-{uuid4().hex}"
    with fal_resource(settings).connect(store) as make_client:

        async def look() -> Reconciled:
            lost: list[Unanswered] = []
            bills: list[Bill] = []
            bills_unread = ""
            given_up: list[GivenUp] = []
            damaged: list[str] = []
            changed = False
            async with make_client() as client:
                for batch in batches or batches_with_ledger(store):
                    with working(store, own_id, batch):
                        ledger = Ledger(store, batch)
                        damaged += [
                            f"{batch}, {one[:8]}: {damage}" for one, damage in damages(ledger.entries).items()
                        ]
                        if give_up_after is not None:
                            old = with_fal(ledger, older_than=give_up_after)
                            given_up += await give_up_batch(client, store, ledger, old, own_id)
                        lost += await reconcile_batch(client, store, ledger, resubmit_after=resubmit_after)
                        bills_unread = bills_unread or await _look_for_bills(client, ledger)
                        bills.append(bill(batch, ledger.entries))
                        changed |= refresh_results(store, ledger, batch)
            if changed:
                with beating(store, own_id):
                    _refresh_overviews(store, settings)
            return Reconciled(
                tuple(lost),
                tuple(one for one in bills if one.requests),
                bills_unread,
                tuple(given_up),
                tuple(damaged),
            )

        return result_of(look())


async def _look_for_bills(client: FalClient, ledger: Ledger) -> str:
    try:
        await read_bills(client, ledger)
    except FalError as error:
        return str(error)
    return ""


def adopt(settings: Settings, batches: Sequence[str], *, told: Callable[[str], None]) -> Adoption:
    """Enter into the ledger what was paid for and it doesn't know, for the rows of the tables as they are now.

    `told` hears how far it is.

    Raises:
        BeingErased: an erasure holds a batch; nothing was entered.
        PipelineError: a table, the configuration or the store is at fault.
    """
    store = build_resources(settings)["store"].open()
    told("the tables")
    asked = first_takes(settings, batches)
    if not batches:
        left = {*batches_with_ledger(store), *files.batches_with_results(store)} - asked.keys()
        asked |= {batch: [] for batch in sorted(left)}
    own_id = f"adopted-{uuid4().hex}"
    with working(store, own_id, *asked), fal_resource(settings).connect(store) as make_client:
        facts = RunFacts(run_id=own_id, backend=settings.backend, code_version=__version__)

        async def work() -> Adoption:
            async with make_client() as client:
                return await enter_what_was_paid(client, store, asked, run=facts, told=told)

        return result_of(work())


@contextmanager
def stuck(settings: Settings) -> Iterator[StuckRequests]:
    """Hand out the requests that are with fal, to be looked at and cancelled while the block lasts.

    Raises:
        PipelineError: the configuration or the store is at fault.
    """
    store = build_resources(settings)["store"].open()
    with fal_resource(settings).connect(store) as make_client:
        yield StuckRequests(store, make_client, settings)


class StuckRequests:
    """The requests of a store that fal has accepted and whose end nobody has seen."""

    def __init__(self, store: Store, make_client: Callable[[], FalClient], settings: Settings) -> None:
        self._store = store
        self._make_client = make_client
        self._settings = settings

    def look(self, batches: Sequence[str], older_than: timedelta, told: Callable[[], None]) -> list[Stuck]:
        """Return those that have been with fal for so long, the oldest of each batch first; `told` after each."""
        found = [
            one
            for batch in batches or batches_with_ledger(self._store)
            for one in with_fal(Ledger(self._store, batch), older_than=older_than)
        ]

        async def work() -> list[Stuck]:
            async with self._make_client() as client:
                return await look(client, self._store, found, told)

        return result_of(work()) if found else []

    def cancel(self, requests: Sequence[WithFal], told: Callable[[], None]) -> list[Cancelled]:
        """Cancel requests, and record those that fal has dropped, in outcomes and gallery too; `told` after each."""
        by_batch: dict[str, list[WithFal]] = defaultdict(list)
        for one in requests:
            by_batch[one.request.batch].append(one)

        own_id = f"cancel-{uuid4().hex}"

        async def work() -> list[Cancelled]:
            ended: list[Cancelled] = []
            async with self._make_client() as client:
                for batch, members in by_batch.items():
                    with working(self._store, own_id, batch):
                        ledger = Ledger(self._store, batch)
                        ended += await cancel(client, self._store, ledger, members, told=told, own_id=own_id)
                        refresh_results(self._store, ledger, batch)
            with beating(self._store, own_id):
                _refresh_overviews(self._store, self._settings)
            return ended

        return result_of(work())


def rebuild(settings: Settings) -> list[Rebuilt]:
    """Make every metadata, outcome, catalog and gallery file anew, from the ledger and the pictures alone.

    Raises:
        BeingErased: an erasure holds a batch; what came before it was made anew.
        PipelineError: the store is at fault, or a ledger lacks what was paid for.
    """
    store, own_id = build_resources(settings)["store"].open(), f"rebuild-{uuid4().hex}"
    batches = sorted({*batches_with_ledger(store), *files.batches_with_results(store)})
    if lost := lost_ledgers.missing_of(store, batches):
        # What tells of a request that a ledger lacks would be overwritten.
        raise ConfigurationError(f"{lost[0]} {lost_ledgers.LOST_LEDGER}")
    rebuilt = []
    for batch in batches_with_ledger(store):
        with working(store, own_id, batch):
            rebuilt.append(rebuild_batch(store, batch))
    with beating(store, own_id):
        _refresh_overviews(store, settings, anew=True)
    return rebuilt


def _refresh_overviews(store: Store, settings: Settings, *, anew: bool = False) -> None:
    catalog.refresh(store, anew=anew)
    write_gallery(store, thumbnails=settings.thumbnails, anew=anew, reviews=files.all_reviews(store))


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did, or would do."""

    payloads: int
    """Requests whose payloads and pictures fal has deleted."""
    payloads_left: str
    """Why fal still has some; empty where it has none."""
    left: tuple[str, ...]
    """What remains in the store, or may remain; nothing where all is gone."""
    versions: int
    """Earlier versions that a bucket had kept, and that are deleted."""


def erase(
    settings: Settings, found: Descent, *, wait: bool = False, told: Callable[[str], None] = lambda _: None
) -> Erased:
    """Erase all that came from a reference: at fal, in the store, and in Dagster's records of the runs that made it.

    `wait` for runs that hold one of its batches. What is waited for, or removed, is `told`.

    Raises:
        AtWork: a run, or another erasure, holds one of its batches; without `wait` only.
        PipelineError: the store is at fault. Ask again: it goes on where it was.
    """
    store = build_resources(settings)["store"].open()
    while True:
        with erasing(store, found.batches, wait=wait, told=told):
            now = descent(store, found.reference)
            if now.batches <= found.batches:
                entomb(store, now)  # from here on nothing is planned from it, in no batch
                now = descent(store, found.reference)
            if now.batches <= found.batches:
                return _erase_held(settings, store, now, told)
        found = now  # a run has planned it in another batch meanwhile


def _erase_held(settings: Settings, store: Store, found: Descent, told: Callable[[str], None]) -> Erased:
    wait_for_overviews(store, told)  # who reads the tables now may not have seen the tombstones
    payloads, payloads_left = _erase_at_fal(settings, store, found)
    remove(store, found, told=told)
    wait_for_overviews(store, told)  # who publishes now may have read the rows
    with beating(store, f"overviews-{uuid4().hex}"):
        _refresh_overviews(store, settings)
    _forget_runs(settings, found)
    told("what a bucket keeps of earlier versions")
    purged = purge_versions(store, found.gone, found.batches)
    return Erased(payloads, payloads_left, (*map(str, remains(store)), *purged.left), purged.deleted)


def _erase_at_fal(settings: Settings, store: Store, found: Descent) -> tuple[int, str]:
    """Have fal delete what was asked and what came of it; return for how many requests, and why not for the others."""
    deleted, left = 0, ""
    if found.request_ids:
        with fal_resource(settings).connect(store) as make_client:

            async def work() -> tuple[int, str]:
                done, why = 0, ""
                async with make_client() as client:
                    for request_id in found.request_ids:
                        try:
                            await client.delete_payloads(request_id)
                        except RequestNotFound:
                            pass  # it is gone
                        except FalError as error:
                            why = str(error)
                            continue
                        done += 1
                return done, why

            deleted, left = result_of(work())
    memory = store.folder / "sandbox" / "state.sqlite" if store.folder else None
    if memory and memory.exists():
        forget_uploads(memory, found.digests)
    return deleted, left


def _forget_runs(settings: Settings, found: Descent) -> None:
    """Remove Dagster's records of the runs that worked on the batches: contact sheets stand in them."""
    instance = instance_of(settings)
    for run in instance.get_runs():
        if run.tags.get(PARTITION_NAME_TAG) in found.batches:
            instance.delete_run(run.run_id)
    for records in Path(instance.root_directory).rglob("*.db"):
        with closing(sqlite3.connect(records, timeout=10.0)) as db:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

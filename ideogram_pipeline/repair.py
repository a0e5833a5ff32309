"""What people do after runs: look for lost answers and fal's bills, and make what is derived anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from ideogram_pipeline.fal import FalClient, FalError
from ideogram_pipeline.gallery.pages import write_gallery
from ideogram_pipeline.generation import catalog
from ideogram_pipeline.generation.billing import Bill, bill, read_bills
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.ledger import batches as batches_with_ledger
from ideogram_pipeline.generation.rebuild import Rebuilt, rebuild_batch, refresh_costs
from ideogram_pipeline.generation.reconcile import Unanswered, reconcile_batch
from ideogram_pipeline.resources import build_resources, fal_resource
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What fal was found to know."""

    unanswered: tuple[Unanswered, ...]
    """Every submit that was never answered."""
    bills: tuple[Bill, ...]
    """What fal charged for each batch that has accepted requests, as far as it was read now or before."""
    bills_unread: str
    """Why fal's bills could not be read, or empty."""


def reconcile(settings: Settings, batches: Sequence[str], *, resubmit_after: timedelta | None) -> Reconciled:
    """Look for every unanswered submit in fal's list of requests, and for the bill of every accepted one.

    What is found is recorded, and the costs in metadata, outcomes, catalog and gallery are brought up to date. What
    isn't found stays as it was. With `resubmit_after`, a submit that was reserved longer ago than that, by a run that
    no longer works, is given up: the next run submits it again, and it may then be paid twice.

    Raises:
        PipelineError: the configuration or the store is at fault.
    """
    store = build_resources(settings)["store"].open()
    with fal_resource(settings).connect(store) as make_client:

        async def look() -> Reconciled:
            lost: list[Unanswered] = []
            bills: list[Bill] = []
            bills_unread = ""
            changed = False
            async with make_client() as client:
                for batch in batches or batches_with_ledger(store):
                    ledger = Ledger(store, batch)
                    lost += await reconcile_batch(client, store, ledger, resubmit_after=resubmit_after)
                    bills_unread = bills_unread or await _look_for_bills(client, ledger)
                    bills.append(bill(batch, ledger.entries))
                    changed |= refresh_costs(store, ledger, batch)
            if changed:
                _refresh_overviews(store, settings)
            return Reconciled(tuple(lost), tuple(one for one in bills if one.requests), bills_unread)

        return asyncio.run(look())


async def _look_for_bills(client: FalClient, ledger: Ledger) -> str:
    try:
        await read_bills(client, ledger)
    except FalError as error:
        return str(error)
    return ""


def rebuild(settings: Settings) -> list[Rebuilt]:
    """Make every metadata, outcome, catalog and gallery file anew, from the ledger and the pictures alone.

    Raises:
        PipelineError: the store is at fault.
    """
    store = build_resources(settings)["store"].open()
    rebuilt = [rebuild_batch(store, batch) for batch in batches_with_ledger(store)]
    _refresh_overviews(store, settings, anew=True)
    return rebuilt


def _refresh_overviews(store: Store, settings: Settings, *, anew: bool = False) -> None:
    catalog.refresh(store, anew=anew)
    write_gallery(store, thumbnails=settings.thumbnails, anew=anew)

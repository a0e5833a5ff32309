"""What people do when a run did not end as it should: look for lost answers, and make what is derived anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from ideogram_pipeline.fal import FalClient
from ideogram_pipeline.gallery.pages import write_gallery
from ideogram_pipeline.generation import catalog
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.rebuild import Rebuilt, rebuild_batch
from ideogram_pipeline.generation.reconcile import give_up, search, unanswered
from ideogram_pipeline.generation.runs import is_alive
from ideogram_pipeline.resources import FalResource, build_resources
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A submit that was never answered, and what became of it."""

    batch: str
    """The partition."""
    prompt_id: str
    """The row of the prompts table."""
    reserved_at: datetime
    """When it was about to be sent, UTC."""
    price_usd: Decimal | None
    """What it may have cost, and what a second submit would."""
    found: str | None
    """fal's id of the request, if it was found: the next run fetches it."""
    given_up: bool
    """Whether the next run submits it again, by choice."""
    reason: str
    """Why it wasn't found."""


def reconcile(
    settings: Settings, batches: Sequence[str], *, resubmit_after: timedelta | None
) -> list[Unanswered]:
    """Look for every unanswered submit in fal's list of requests; record those that are found.

    What isn't found stays unknown. With `resubmit_after`, what was reserved longer ago than that, by a run that no
    longer works, is given up: the next run submits it again, and it may then be paid twice.

    Raises:
        PipelineError: the configuration or the store is at fault.
    """
    store = build_resources(settings)["store"].open()
    fal: FalResource = build_resources(settings)["fal"].process_config_and_initialize()
    with fal.connect(store) as make_client:

        async def look() -> list[Unanswered]:
            async with make_client() as client:
                every = [
                    await _reconcile(client, store, batch, resubmit_after)
                    for batch in batches or _batches(store)
                ]
            return [one for batch in every for one in batch]

        return asyncio.run(look())


async def _reconcile(
    client: FalClient, store: Store, batch: str, resubmit_after: timedelta | None
) -> list[Unanswered]:
    ledger = Ledger(store, batch)
    wanted = unanswered(ledger.entries)
    searched = await search(client, ledger, wanted)
    results = []
    for fingerprint in wanted:
        attempt = ledger.entries[fingerprint].last
        given_up = False
        if resubmit_after is not None and fingerprint in searched.missing:
            is_old = attempt.reserved.reserved_at + resubmit_after <= datetime.now(UTC)
            given_up = is_old and not await is_alive(store, attempt.reserved.owner)
        if given_up:
            await give_up(ledger, fingerprint)
        results.append(
            Unanswered(
                batch=batch,
                prompt_id=attempt.reserved.request.prompt_id,
                reserved_at=attempt.reserved.reserved_at,
                price_usd=attempt.reserved.request.price_usd,
                found=attempt.submitted.request_id if attempt.submitted else None,
                given_up=given_up,
                reason=searched.missing.get(fingerprint, ""),
            )
        )
    return results


def rebuild(settings: Settings) -> list[Rebuilt]:
    """Make every metadata, outcome, catalog and gallery file anew, from the ledger and the pictures alone.

    Raises:
        PipelineError: the store is at fault.
    """
    store = build_resources(settings)["store"].open()
    rebuilt = [rebuild_batch(store, batch) for batch in _batches(store)]
    catalog.refresh(store)
    write_gallery(store, thumbnails=settings.thumbnails)
    return rebuilt


def _batches(store: Store) -> list[str]:
    return [folder.removeprefix("batch=") for folder in store.folders("ledger")]

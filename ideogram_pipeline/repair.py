"""What people do when a run did not end as it should: look for lost answers, and make what is derived anew."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

from ideogram_pipeline.gallery.pages import write_gallery
from ideogram_pipeline.generation import catalog
from ideogram_pipeline.generation.ledger import batches as batches_with_ledger
from ideogram_pipeline.generation.rebuild import Rebuilt, rebuild_batch
from ideogram_pipeline.generation.reconcile import Unanswered, reconcile_batches
from ideogram_pipeline.resources import FalResource, StoreResource, build_resources
from ideogram_pipeline.settings import Settings


def reconcile(
    settings: Settings, batches: Sequence[str], *, resubmit_after: timedelta | None
) -> list[Unanswered]:
    """Look for every unanswered submit in fal's list of requests; record those that are found.

    What isn't found stays unknown. With `resubmit_after`, what was reserved longer ago than that, by a run that no
    longer works, is given up: the next run submits it again, and it may then be paid twice.

    Raises:
        PipelineError: the configuration or the store is at fault.
    """
    store = StoreResource(url=settings.store, backend=settings.backend).open()
    fal: FalResource = build_resources(settings)["fal"].process_config_and_initialize()
    with fal.connect(store) as make_client:

        async def look() -> list[Unanswered]:
            async with make_client() as client:
                return await reconcile_batches(client, store, batches, resubmit_after=resubmit_after)

        return asyncio.run(look())


def rebuild(settings: Settings) -> list[Rebuilt]:
    """Make every metadata, outcome, catalog and gallery file anew, from the ledger and the pictures alone.

    Raises:
        PipelineError: the store is at fault.
    """
    store = StoreResource(url=settings.store, backend=settings.backend).open()
    rebuilt = [rebuild_batch(store, batch) for batch in batches_with_ledger(store)]
    catalog.refresh(store)
    write_gallery(store, thumbnails=settings.thumbnails)
    return rebuilt

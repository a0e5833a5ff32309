"""The one way this project is partitioned: by the `batch` column of the prompts table."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

BATCHES = dg.DynamicPartitionsDefinition(name="ideogram_batches")
"""A run works one batch; the engine works its rows. A row is not a partition."""

_CHUNK = 500


def register(instance: dg.DagsterInstance, batches: Iterable[str]) -> list[str]:
    """Add the batches that Dagster doesn't know yet and return them. None is ever removed: a run may hold it."""
    from sqlalchemy.exc import IntegrityError

    known = set(instance.get_dynamic_partitions(BATCHES.name or ""))
    new = [batch for batch in batches if batch not in known]
    for start in range(0, len(new), _CHUNK):
        chunk = new[start : start + _CHUNK]
        try:
            instance.add_dynamic_partitions(BATCHES.name or "", chunk)
        except IntegrityError:  # another run added some of them at the same moment
            for batch in chunk:
                if not instance.has_dynamic_partition(BATCHES.name or "", batch):
                    instance.add_dynamic_partitions(BATCHES.name or "", [batch])
    return new

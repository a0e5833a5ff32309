"""The one way a pipeline is partitioned: by the `batch` column of its prompts table."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

_CHUNK = 500


def register(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, batches: Iterable[str]
) -> list[str]:
    """Add the batches that Dagster doesn't know yet and return them. None is ever removed: a run may hold it."""
    from sqlalchemy.exc import IntegrityError

    name = partitions.name or ""
    known = set(instance.get_dynamic_partitions(name))
    new = [batch for batch in batches if batch not in known]
    for start in range(0, len(new), _CHUNK):
        chunk = new[start : start + _CHUNK]
        try:
            instance.add_dynamic_partitions(name, chunk)
        except IntegrityError:  # another run added some of them at the same moment
            for batch in chunk:
                if not instance.has_dynamic_partition(name, batch):
                    instance.add_dynamic_partitions(name, [batch])
    return new

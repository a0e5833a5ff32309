"""What an asset holds while it writes: its batch, which no erasure gets meanwhile; or what all batches share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import dagster as dg

Result = TypeVar("Result")


def holding(asset: Callable[..., Result]) -> Callable[..., Result]:
    """Hold an asset's partition, or show that it works what all batches share, from before it reads to its last write.

    Raises:
        BeingErased: an erasure holds the batch; nothing was submitted or changed.
    """

    @wraps(asset)
    def holds(*args: Any, **resources: Any) -> Result:
        from ideogram_pipeline.generation.runs import beating, working

        context = dg.AssetExecutionContext.get()
        store, run_id = resources["store"].open(), context.run.run_id
        hold = (
            working(store, run_id, context.partition_key)
            if context.has_partition_key
            else beating(store, run_id)
        )
        with hold:
            return asset(*args, **resources)

    return holds

"""Calls in threads, from an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def to_its_end(call: Callable[[], Result]) -> Result:
    """Make a call in a thread; whoever is cut off meanwhile goes on once it has ended, and what it wrote is certain."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        running.exception()
        raise

"""Which runs are alive: a run beats in the store while it works, and others look whether it still does.

Nothing is decided by clocks. On the same machine the process itself is looked for; elsewhere a run is alive if its beat
changes while it is watched. Being wrong costs a wait or a message, never money: what a run has reserved is not
submitted again by another one either way.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage import Store

BEAT_EVERY_S = 5.0
"""Seconds between two beats."""
WATCH_S = 4 * BEAT_EVERY_S
"""A run on another machine whose beat stands still for so long is dead."""


class RunBeat(BaseModel):
    """A working run, under `runs/<run id>.json`."""

    model_config = ConfigDict(frozen=True)

    machine: str = Field(description="The boot of the machine it runs on.")
    process: str = Field(description="Its process id and when that process started.")
    beat: int = Field(description="Grows while the run works.")


@asynccontextmanager
async def beating(store: Store, run_id: str) -> AsyncIterator[None]:
    """Show that a run works, for as long as the block does."""
    path = _path(run_id)

    async def beat() -> None:
        for count in range(2**31):
            sign = RunBeat(machine=_machine(), process=_process(os.getpid()), beat=count)
            with suppress(StoreError):  # a beat that is missed is one that comes later
                await store.put_async(path, sign.model_dump_json().encode())
            await asyncio.sleep(BEAT_EVERY_S)

    beats = asyncio.create_task(beat())
    try:
        yield
    finally:
        beats.cancel()
        await asyncio.wait([beats])
        with suppress(StoreError):
            store.delete(path)


async def is_alive(store: Store, run_id: str) -> bool:
    """Say whether a run still works. Watching one on another machine takes up to `WATCH_S`."""
    seen = await _beat(store, run_id)
    if seen is None:
        return False
    if seen.machine == _machine():
        return seen.process == _process(int(seen.process.partition("@")[0]))
    for _ in range(int(WATCH_S / BEAT_EVERY_S)):
        await asyncio.sleep(BEAT_EVERY_S)
        now = await _beat(store, run_id)
        if now is None:
            return False
        if now.beat != seen.beat:
            return True
    return False


async def _beat(store: Store, run_id: str) -> RunBeat | None:
    try:
        return RunBeat.model_validate_json(await store.get_async(_path(run_id)))
    except (FileNotFoundError, ValidationError):
        return None


def _path(run_id: str) -> str:
    return f"runs/{run_id}.json"


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else f"{os.uname().nodename}"


def _process(pid: int) -> str:
    """Return a name of a process that no later process with the same id has; empty if there is none."""
    status = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return f"{pid}@" if _signals(pid) else ""
    try:
        return f"{pid}@{status.read_text().rpartition(')')[2].split()[19]}"
    except OSError:
        return ""


def _signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

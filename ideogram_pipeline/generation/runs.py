"""Which runs are alive: a run beats in the store while it works, and others look whether it still does.

Nothing is decided by clocks. On the same machine the process itself is looked for; elsewhere a run is alive if its beat
changes while it is watched. Two containers count as two machines, on one host too: neither sees the other's processes.
Being wrong costs a wait or a message, never money: what a run has reserved is not submitted again by another one either
way.

A step that crashed may be run again in another process of the same run. So each process has a beat of its own.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage import Store

BEAT_EVERY_S = 5.0
"""Seconds between two beats."""
WATCH_S = 4 * BEAT_EVERY_S
"""A run on another machine whose beat stands still for so long is dead."""


class RunBeat(BaseModel):
    """A process that works a run, under `runs/<run id>/<any name>.json`."""

    model_config = ConfigDict(frozen=True)

    machine: str = Field(description="The boot of the machine it runs on, and the container.")
    process: str = Field(description="Its process id and when that process started.")
    beat: int = Field(description="Grows while the process works.")


@asynccontextmanager
async def beating(store: Store, run_id: str) -> AsyncIterator[str]:
    """Show that this process works a run, for as long as the block does; hand out where its beat lies."""
    path = f"{_folder(run_id)}/{uuid4().hex}.json"

    async def beat() -> None:
        for count in range(2**31):
            sign = RunBeat(machine=_machine(), process=_process(os.getpid()), beat=count)
            with suppress(StoreError):  # a beat that is missed is one that comes later
                await store.put_async(path, sign.model_dump_json().encode())
            await asyncio.sleep(BEAT_EVERY_S)

    beats = asyncio.create_task(beat())
    try:
        yield path
    finally:
        beats.cancel()
        await asyncio.wait([beats])
        with suppress(StoreError):
            store.delete(path)


async def is_alive(store: Store, run_id: str, *, but: str = "") -> bool:
    """Say whether a process still works a run, `but` the one whose beat lies there.

    Watching those on other machines takes up to `WATCH_S`.
    """
    seen = await _beats(store, run_id, but)
    here = [sign for sign in seen.values() if sign.machine == _machine()]
    if any(sign.process == _process(int(sign.process.partition("@")[0])) for sign in here):
        return True
    elsewhere = {path for path, sign in seen.items() if sign.machine != _machine()}
    for _ in range(int(WATCH_S / BEAT_EVERY_S)):
        if not elsewhere:
            return False
        await asyncio.sleep(BEAT_EVERY_S)
        now = await _beats(store, run_id, but)
        if any(path in now and now[path].beat != seen[path].beat for path in elsewhere):
            return True
        elsewhere &= now.keys()
    return False


async def _beats(store: Store, run_id: str, but: str) -> dict[str, RunBeat]:
    """Return the beats of a run's processes, by where they lie."""
    paths = await asyncio.to_thread(lambda: [found.path for found in store.objects(_folder(run_id))])
    signs = {path: await _beat(store, path) for path in paths if path != but}
    return {path: sign for path, sign in signs.items() if sign}


async def _beat(store: Store, path: str) -> RunBeat | None:
    try:
        return RunBeat.model_validate_json(await store.get_async(path))
    except (FileNotFoundError, ValidationError):
        return None


def _folder(run_id: str) -> str:
    return f"runs/{run_id}"


def _machine() -> str:
    """Return what processes share that can look for each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


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

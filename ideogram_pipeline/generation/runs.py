"""Which runs are alive and which batches they hold: a run beats in the store while it works, and others look at that.

Nothing is decided by clocks. On the same machine the process itself is looked for; elsewhere a run is alive if its beat
changes while it is watched. Two containers count as two machines, on one host too: neither sees the other's processes.
Being wrong costs a wait or a message, never money: what a run has reserved is not submitted again by another one either
way.

A step that crashed may be run again in another process of the same run. So each process has a beat of its own.

Runs share a batch with each other, and an erasure shares its batches with nobody. Each first writes its beat, which
says what it holds, and only then looks for the others. So of a run and an erasure at least one sees the other and goes
back, and a process that was killed holds nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import PipelineError, StoreError
from ideogram_pipeline.storage import Store

BEAT_EVERY_S = 5.0
"""Seconds between two beats."""
WATCH_S = 4 * BEAT_EVERY_S
"""A run on another machine whose beat stands still for so long is dead."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks of those who wait for others to end."""
TRIES = 5
"""Two erasures that see each other both go back, and try again after a random while; so often, unless they wait."""

_RUNS = "runs"


class BeingErased(PipelineError):
    """A batch can't be worked: an erasure holds it."""


class AtWork(PipelineError):
    """Batches can't be held for an erasure: runs work them, or another erasure does."""


class RunBeat(BaseModel):
    """A process that works a run, under `runs/<run id>/<any name>.json`."""

    model_config = ConfigDict(frozen=True)

    machine: str = Field(description="The boot of the machine it runs on, and the container.")
    process: str = Field(description="Its process id and when that process started.")
    beat: int = Field(description="Grows while the process works.")
    batches: tuple[str, ...] = Field(
        default=(), description="What it holds; none where it works tables, catalog or gallery."
    )
    erases: bool = Field(
        default=False, description="Whether it is an erasure, which holds its batches alone."
    )


@contextmanager
def beating(
    store: Store, run_id: str, batches: Collection[str] = (), *, erases: bool = False
) -> Iterator[str]:
    """Show that this process works a run, for as long as the block does; hand out where its beat lies.

    Raises:
        StoreError: the store can't be written.
    """
    path = f"{_folder(run_id)}/{uuid4().hex}.json"
    first = RunBeat(
        machine=_machine(), process=_process(os.getpid()), beat=0, batches=tuple(batches), erases=erases
    )
    over = threading.Event()

    def beat() -> None:
        for number in count(1):
            if over.wait(BEAT_EVERY_S):
                return
            with suppress(StoreError):  # a beat that is missed is one that comes later
                store.put(path, first.model_copy(update={"beat": number}).model_dump_json().encode())

    store.create(path, first.model_dump_json().encode())
    beats = threading.Thread(
        target=beat, name="beat", daemon=True
    )  # it goes on while a large batch is recorded
    beats.start()
    try:
        yield path
    finally:
        over.set()
        beats.join()
        with suppress(StoreError):
            store.delete(path)


@contextmanager
def working(store: Store, run_id: str, *batches: str) -> Iterator[str]:
    """Hold batches, with other runs but with no erasure, for as long as the block does; hand out where its beat lies.

    What the block reads of ledger and tombstones is what counts until it ends. Looking at an erasure on another machine
    takes up to `WATCH_S`.

    Raises:
        BeingErased: an erasure holds one; nothing was done.
        StoreError: the store can't be read or written.
    """
    with beating(store, run_id, batches) as beat:
        for erasure in _held(store, batches, but=beat, by_erasures=True):
            named = f"the batch {batches[0]!r}" if len(batches) == 1 else f"one of {len(batches)} batches"
            raise BeingErased(
                f"The {_shown(erasure)} holds {named}, so nothing was submitted or changed. "
                "Run it again once `ideogram-pipeline erase` has ended."
            )
        yield beat


@contextmanager
def erasing(
    store: Store,
    batches: Collection[str],
    *,
    wait: bool = False,
    told: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """Hold batches alone for as long as the block does.

    Where others hold one, `wait` until they have let go of it; who they are is `told`, again and again. No run of these
    batches starts meanwhile.

    Raises:
        AtWork: others hold one; without `wait` only.
        StoreError: the store can't be read or written.
    """
    erasure = f"erasure-{uuid4().hex}"
    for tried in count(1):
        with beating(store, erasure, batches, erases=True) as beat:
            held = _held(store, batches, but=beat)
            while wait and held and not any(sign.erases for sign in held.values()):
                told(_sentence(held, batches))
                time.sleep(LOOK_EVERY_S)
                held = _held(store, batches, but=beat)
            if not held:
                yield
                return
        if not wait and (tried == TRIES or not all(sign.erases for sign in held.values())):
            raise AtWork(
                f"{_sentence(held, batches)} Nothing was erased. Let it end, or stop it, and run the command again; "
                "or wait for it with --wait."
            )
        told(_sentence(held, batches))
        time.sleep(random.uniform(0.1, 1) * LOOK_EVERY_S)  # noqa: S311 - two that met are to meet no more


def wait_for_overviews(store: Store, told: Callable[[str], None]) -> None:
    """Wait until those have ended who are at this moment reading tables, or writing catalog and gallery.

    They may have read what was there before; whoever begins after this call reads what is there now.

    Raises:
        StoreError: the store can't be read.
    """

    def look() -> dict[str, RunBeat]:
        return _beats(store, _RUNS, lambda _, sign: not sign.batches and not sign.erases)

    before = set(look())
    while before and (alive := _watched(lambda: {at: one for at, one in look().items() if at in before})):
        told(f"The {_shown(next(iter(alive)))} reads the tables, or publishes.")
        time.sleep(LOOK_EVERY_S)


def holders(store: Store, batch: str) -> list[str]:
    """Return the ids of the runs and erasures that hold a batch; watching those elsewhere takes up to `WATCH_S`."""
    return sorted({_run_id(path) for path in _held(store, [batch])})


async def is_alive(store: Store, run_id: str, *, but: str = "") -> bool:
    """Say whether a process still works a run, `but` the one whose beat lies there.

    Watching those on other machines takes up to `WATCH_S`.
    """

    def look() -> dict[str, RunBeat]:
        signs = _beats(store, _folder(run_id))
        own = signs.get(but)
        return {
            path: sign
            for path, sign in signs.items()
            if not own or (sign.machine, sign.process) != (own.machine, own.process)
        }

    watch = await asyncio.to_thread(_Watch, look)
    while not watch.alive and watch.goes_on:
        await asyncio.sleep(BEAT_EVERY_S)
        await asyncio.to_thread(watch.look_again)
    return bool(watch.alive)


def _held(
    store: Store, batches: Collection[str], *, but: str = "", by_erasures: bool = False
) -> Mapping[str, RunBeat]:
    """Return the beats of those who are alive and hold one of the batches, by where they lie."""

    def look() -> dict[str, RunBeat]:
        return _beats(
            store,
            _RUNS,
            lambda path, sign: (
                path != but and not set(sign.batches).isdisjoint(batches) and (sign.erases or not by_erasures)
            ),
        )

    return _watched(look)


def _watched(look: Callable[[], dict[str, RunBeat]]) -> Mapping[str, RunBeat]:
    watch = _Watch(look)
    while watch.goes_on:
        time.sleep(BEAT_EVERY_S)
        watch.look_again()
    return watch.alive


class _Watch:
    """Tells which processes are alive: those of this machine at once, the others once their beat has changed."""

    def __init__(self, look: Callable[[], dict[str, RunBeat]]) -> None:
        self._look = look
        self._first = look()
        here = {path: sign for path, sign in self._first.items() if sign.machine == _machine()}
        self.alive = {
            path: sign
            for path, sign in here.items()
            if sign.process == _process(int(sign.process.partition("@")[0]))
        }
        """Those that are known to be."""
        self._undecided = self._first.keys() - here.keys()
        self._looks = int(WATCH_S / BEAT_EVERY_S)

    @property
    def goes_on(self) -> bool:
        """Whether another look may find more of them."""
        return bool(self._undecided) and self._looks > 0

    def look_again(self) -> None:
        """Look again, `BEAT_EVERY_S` after the last look."""
        self._looks -= 1
        now = self._look()
        changed = {path for path in self._undecided & now.keys() if now[path].beat != self._first[path].beat}
        self.alive |= {path: now[path] for path in changed}
        self._undecided = (self._undecided & now.keys()) - changed


def _beats(
    store: Store, folder: str, wanted: Callable[[str, RunBeat], bool] = lambda _, __: True
) -> dict[str, RunBeat]:
    """Return the beats below a folder that are wanted, by where they lie."""
    paths = [found.path for found in store.objects(folder)]
    signs = {path: _beat(store, path) for path in paths}
    return {path: sign for path, sign in signs.items() if sign and wanted(path, sign)}


def _beat(store: Store, path: str) -> RunBeat | None:
    try:
        return RunBeat.model_validate_json(store.get(path))
    except (FileNotFoundError, ValidationError):
        return None


def _sentence(held: Mapping[str, RunBeat], batches: Collection[str]) -> str:
    path, sign = next(iter(sorted(held.items())))
    batch = sorted(set(sign.batches) & set(batches))[0]
    return f"The {_shown(path)} works on the batch {batch!r}."


def _shown(path: str) -> str:
    name = _run_id(path)
    return name.replace("-", " ", 1) if name.startswith("erasure-") else f"run {name}"


def _run_id(path: str) -> str:
    return path.split("/")[1]


def _folder(run_id: str) -> str:
    return f"{_RUNS}/{run_id}"


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

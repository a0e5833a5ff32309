"""Who is alive: processes of this machine, of others, and of the same run."""

import asyncio
import subprocess
import sys

import pytest

from ideogram_pipeline.generation import runs
from ideogram_pipeline.generation.runs import RunBeat, beating, is_alive

BEAT = """
import asyncio, sys
from ideogram_pipeline.generation.runs import beating
from ideogram_pipeline.storage import Store

async def work():
    store = Store.open(sys.argv[1])
    with beating(store, "run-1") as beat:
        while not store.exists(beat):
            await asyncio.sleep(0)
        print(beat, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(work())
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runs, "BEAT_EVERY_S", 0.2)
    monkeypatch.setattr(runs, "WATCH_S", 0.8)


@pytest.fixture
def working(store):
    """Start a process that works run-1; return it and where its beat lies."""
    started = []

    def start(*within):
        process = subprocess.Popen(
            [*within, sys.executable, "-c", BEAT, store.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_run_is_alive_as_long_as_its_process_is(store, working):
    process, beat = working()
    assert asyncio.run(is_alive(store, "run-1"))
    process.kill()
    process.wait()
    assert store.exists(beat)
    assert not asyncio.run(is_alive(store, "run-1"))


def test_a_run_that_ended_in_order_leaves_no_beat(store, working):
    process, beat = working()
    process.communicate()
    assert process.returncode == 0
    assert not store.exists(beat)


def test_the_same_run_in_another_process_is_another_one(store, working):
    async def look():
        with beating(store, "run-1") as own:
            while not store.exists(own):
                await asyncio.sleep(0)
            alone = await is_alive(store, "run-1", but=own)
            working()
            return alone, await is_alive(store, "run-1", but=own)

    assert asyncio.run(look()) == (False, True)


def test_a_process_in_another_container_is_on_another_machine(store, working):
    within = ("unshare", "-rpf", "--kill-child", "--mount-proc")
    if subprocess.run([*within, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody have processes of their own")
    _, beat = working(*within)
    sign = RunBeat.model_validate_json(store.get(beat))
    assert sign.machine.split()[0] == runs._machine().split()[0]
    assert sign.machine != runs._machine()
    assert sign.process.startswith("1@")


@pytest.mark.parametrize("beats_on", [True, False])
def test_a_run_on_another_machine_is_alive_if_its_beat_changes(store, quick, beats_on):
    sign = RunBeat(machine="elsewhere", process="1@1", beat=1)

    async def look():
        store.put("runs/run-1/there.json", sign.model_dump_json().encode())
        looking = asyncio.create_task(is_alive(store, "run-1"))
        await asyncio.sleep(0)
        while beats_on and not looking.done():
            sign_now = RunBeat.model_validate_json(store.get("runs/run-1/there.json"))
            later = sign_now.model_copy(update={"beat": sign_now.beat + 1})
            store.put("runs/run-1/there.json", later.model_dump_json().encode())
            await asyncio.sleep(0.01)
        return await looking

    assert asyncio.run(look()) is beats_on


def test_a_beat_that_was_taken_away_ends_the_watch(store, quick):
    sign = RunBeat(machine="elsewhere", process="1@1", beat=1)

    async def look():
        store.put("runs/run-1/there.json", sign.model_dump_json().encode())
        looking = asyncio.create_task(is_alive(store, "run-1"))
        store.delete("runs/run-1/there.json")
        return await looking

    assert asyncio.run(look()) is False

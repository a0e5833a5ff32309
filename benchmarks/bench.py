"""How near to the floor, how cheap and how small: this project beside fal's own client, on one sandbox in one session.

    floor        400 requests, 40 at a time at the server, median service 4 s, both clients in turn
    throughput   the same with no service time: pictures a second, with thumbnails and without
    memory       two sizes of batch, no service time, small pictures: peak memory

The *floor* is the time a server with 40 places needs for the very service times it drew if every request is queued at
the start. Every client runs in a process of its own, and so does the sandbox, which repeats its pictures
(`SANDBOX_DRAWING=plain`) so that drawing takes nothing from them. Wall time is from the process's start to its end.
"""

import argparse
import csv
import heapq
import json
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from ideogram_pipeline.gallery.pages import BATCH_SHEETS
from ideogram_pipeline.gallery.sheet import A_PAGE, printed_sheets, printed_tile
from ideogram_pipeline.memory import tune_heaps
from ideogram_pipeline.pictures import verify
from ideogram_pipeline.sandbox import RunningSandbox, SandboxSettings, environment
from ideogram_pipeline.sandbox.queue import MEAN_RUN_S

HERE = Path(__file__).parent
REFERENCE = HERE.parent / "data" / "astronaut.png"
SLOTS = 40
MEDIAN_SERVICE_S = 4.0
CLI = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()"]


@dataclass(frozen=True, slots=True)
class Contest:
    """What is asked of a client."""

    rows: int
    """Requests, of one picture each."""
    in_flight: int
    """Requests with the server at a time."""
    service_s: float
    """Median seconds of service."""
    image_size: str
    """Preset of the pictures' size."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a client did, as seen from outside. Times are seconds."""

    who: str
    pictures: int
    floor_s: float
    wall_s: float
    working_s: float
    """From the first submit to the last picture."""
    cpu_s: float
    decoding_s: float
    """Of the CPU time: decoding pictures and making thumbnails, as timed separately on some of them."""
    printing_s: float
    """Of the CPU time: drawing the batch's printed pages from its thumbnails, as timed separately."""
    calls: int
    peak_mb: float


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A sandbox in a process of its own."""

    running: RunningSandbox
    state: Path

    def requests(self) -> list[tuple[float, float]]:
        """When each request was submitted, and its seconds of service, in the order of submits."""
        with closing(sqlite3.connect(f"file:{self.state}?mode=ro", uri=True)) as db:
            return db.execute("SELECT submitted_at, run_s FROM requests ORDER BY ordinal").fetchall()

    def calls(self) -> int:
        """HTTP calls so far; an upload takes two."""
        stats = self.running.stats()
        queue = stats.submits + stats.status_calls + stats.result_calls + stats.cancels
        return queue + stats.downloads + 2 * stats.uploads


@contextmanager
def sandbox(folder: Path, service_s: float) -> Iterator[Sandbox]:
    """Serve a sandbox until the block is left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    state = folder / "sandbox.sqlite"
    settings = {
        "SANDBOX_CONCURRENCY": str(SLOTS),
        "SANDBOX_LATENCY_SCALE": str(service_s / MEAN_RUN_S["BALANCED"]),
        "SANDBOX_DRAWING": "plain",
        "SANDBOX_STATE": str(state),
    }
    process = subprocess.Popen(
        [*CLI, "sandbox", "--port", str(port)],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("Sandbox at"):
            raise SystemExit("The sandbox did not start; what it said stands above.")
        yield Sandbox(RunningSandbox(f"http://127.0.0.1:{port}"), state)
    finally:
        process.terminate()
        process.wait()


def prompts(rows: int) -> list[str]:
    """Return the prompts, each of them another."""
    return [f"The same woman, portrait number {number} of a long series" for number in range(rows)]


def floor(services: Sequence[float]) -> float:
    """Return the makespan of a queue that holds everything from the start."""
    places = [0.0] * SLOTS
    for service in services:
        heapq.heapreplace(places, places[0] + service)
    return max(places)


def official(server: Sandbox, contest: Contest, folder: Path) -> Told:  # noqa: ARG001 - as `ours`
    """Let fal's own client make the pictures."""
    asked = {
        "url": server.running.url,
        "reference": str(REFERENCE),
        "prompts": prompts(contest.rows),
        "in_flight": contest.in_flight,
    }
    ended = _run([sys.executable, str(HERE / "official.py")], {}, json.dumps(asked))
    last_picture_at = json.loads(ended.output)["last_picture_at"]
    return _told("fal-client", server, contest, ended, last_picture_at)


def ours(server: Sandbox, contest: Contest, folder: Path) -> Told:
    """Let this project make the pictures, through Dagster, into a new store."""
    _tables(contest, folder)
    ended = _run([*CLI, "run", "--json"], _settings(server, contest, folder))
    summary = json.loads(ended.output.splitlines()[-1])
    if summary["generated"] != contest.rows:
        raise SystemExit(f"Not every row was generated: {summary}")
    settled = (folder / "store" / "ledger").rglob("*-settled.json")
    told = _told("ours", server, contest, ended, max(path.stat().st_mtime for path in settled))
    pictures = sorted((folder / "store" / "images").rglob("*.png"))[:100]
    _decoding_s(pictures[0])  # what Pillow loads, it loads once
    return replace(
        told, decoding_s=contest.rows * mean(map(_decoding_s, pictures)), printing_s=_printing_s(folder)
    )


def without_thumbnails(server: Sandbox, contest: Contest, folder: Path) -> Told:
    """Let this project make the pictures and no small ones, so that no picture is decoded."""
    _tables(contest, folder)
    settings = _settings(server, contest, folder) | {
        "IDEOGRAM_STORE": str(folder / "bare"),
        "IDEOGRAM_THUMBNAILS": "false",
    }
    ended = _run([*CLI, "run", "--json"], settings)
    settled = (folder / "bare" / "ledger").rglob("*-settled.json")
    return _told("ours, no thumbnails", server, contest, ended, max(path.stat().st_mtime for path in settled))


def again(server: Sandbox, contest: Contest, folder: Path) -> Told:
    """Let this project find that all pictures are there: what a run costs that has nothing to do."""
    calls = server.calls()
    ended = _run([*CLI, "run", "--json"], _settings(server, contest, folder))
    return Told(
        who="ours, all there",
        pictures=contest.rows,
        floor_s=0,
        wall_s=ended.wall_s,
        working_s=0,
        cpu_s=ended.cpu_s,
        decoding_s=0,
        printing_s=0,
        calls=server.calls() - calls,
        peak_mb=ended.peak_mb,
    )


@dataclass(frozen=True, slots=True)
class _Ended:
    output: str
    wall_s: float
    cpu_s: float
    peak_mb: float


def _run(command: list[str], settings: dict[str, str], told: str = "") -> _Ended:
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as given:
        given.write(told)
        given.seek(0)
        process = subprocess.Popen(command, env=os.environ | settings, stdin=given, stdout=output)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - started
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}.")
        output.seek(0)
        return _Ended(output.read(), wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def _told(who: str, server: Sandbox, contest: Contest, ended: _Ended, last_picture_at: float) -> Told:
    requests = server.requests()
    return Told(
        who=who,
        pictures=contest.rows,
        floor_s=floor([service for _, service in requests]),
        wall_s=ended.wall_s,
        working_s=last_picture_at - requests[0][0],
        cpu_s=ended.cpu_s,
        decoding_s=0,
        printing_s=0,
        calls=server.calls(),
        peak_mb=ended.peak_mb,
    )


def _settings(server: Sandbox, contest: Contest, folder: Path) -> dict[str, str]:
    return {
        **environment(server.running.url, SandboxSettings()),
        "IDEOGRAM_STORE": str(folder / "store"),
        "IDEOGRAM_PROMPTS": str(folder / "prompts.csv"),
        "IDEOGRAM_REFERENCES": str(folder / "references.csv"),
        "IDEOGRAM_MAX_IN_FLIGHT": str(contest.in_flight),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DAGSTER_HOME": "",
    }


def _tables(contest: Contest, folder: Path) -> None:
    shutil.copy(REFERENCE, folder / "reference.png")
    (folder / "references.csv").write_text("reference_id,uri\nreference,reference.png\n")
    with (folder / "prompts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt_id", "batch", "prompt", "reference_id", "image_size"])
        for number, prompt in enumerate(prompts(contest.rows)):
            table.writerow([f"row-{number:05}", "bench", prompt, "reference", contest.image_size])


def _decoding_s(path: Path) -> float:
    content, started = path.read_bytes(), time.thread_time()
    verify(content, thumbnail_side=320)
    return time.thread_time() - started


def _printing_s(folder: Path) -> float:
    thumbnails = [path.read_bytes() for path in (folder / "store" / "gallery").glob("*/thumbnails/*")]
    pictures = ((printed_tile(content), "name\nThe words below a picture") for content in thumbnails)
    started = time.thread_time()
    for _ in printed_sheets("bench", pictures, count=min(len(thumbnails), BATCH_SHEETS * A_PAGE)):
        pass
    return time.thread_time() - started


def session(contest: Contest, clients: Sequence, rounds: int) -> list[Told]:
    """Let the clients work in turn on one sandbox."""
    told = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        sandbox(Path(name), contest.service_s) as server,
    ):
        for number in range(rounds):
            folder = Path(name) / str(number)
            folder.mkdir()
            for client in clients:
                if client is not again:
                    server.running.reset()
                told.append(client(server, contest, folder))
                print(f"  {told[-1].who}: {told[-1].wall_s:.1f} s", file=sys.stderr)
    return told


def table(told: Sequence[Told]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield (
        "| client | pictures | wall / floor | first submit to last picture / floor | calls a picture "
        "| CPU ms a picture | of these decoding | printed pages | pictures/s | floor s | wall s | peak MB |"
    )
    yield "|---" * 12 + "|"
    for one in told:
        in_floors = [
            f"{seconds / one.floor_s:.3f}" if one.floor_s > 1 and seconds else "-"
            for seconds in (one.wall_s, one.working_s)
        ]
        speed = f"{one.pictures / one.working_s:.1f}" if one.working_s else "-"
        yield (
            f"| {one.who} | {one.pictures} | {' | '.join(in_floors)} | {one.calls / one.pictures:.2f} "
            f"| {1000 * one.cpu_s / one.pictures:.1f} | {1000 * one.decoding_s / one.pictures:.1f} "
            f"| {1000 * one.printing_s / one.pictures:.1f} "
            f"| {speed} | {one.floor_s:.1f} | {one.wall_s:.1f} | {one.peak_mb:.0f} |"
        )


def machine() -> str:
    """Return what the figures hold for."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, Python {platform.python_version()}; "
        f"load {os.getloadavg()[0]:.1f} before the start"
    )


def main() -> None:
    """Run a mode and print its table."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--mode", choices=("floor", "throughput", "memory"), default="floor")
    arguments.add_argument("--rows", type=int, default=400, help="requests (memory: also 25 times as many)")
    arguments.add_argument("--rounds", type=int, default=2, help="turns of each client")
    arguments.add_argument(
        "--in-flight", type=int, default=80, help="requests with the server, of each client"
    )
    arguments.add_argument("--quick", action="store_true", help="a try: 40 rows, one round, 0.5 s of service")
    told = arguments.parse_args()
    tune_heaps()  # decoding is timed here as it goes on in a run
    rows, rounds = (40, 1) if told.quick else (told.rows, told.rounds)
    where = machine()
    contest = Contest(rows, told.in_flight, 0.5 if told.quick else MEDIAN_SERVICE_S, "square_hd")
    match told.mode:
        case "floor":
            lines = session(contest, (official, ours, without_thumbnails, again), rounds)
        case "throughput":
            lines = session(replace(contest, service_s=0), (official, ours, without_thumbnails), rounds)
        case _:
            small = replace(contest, service_s=0, image_size="square")
            lines = session(small, (ours,), 1) + session(replace(small, rows=25 * rows), (ours,), 1)
    print(f"{where}\n", *table(lines), sep="\n")


if __name__ == "__main__":
    main()

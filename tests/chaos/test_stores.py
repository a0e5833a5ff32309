"""Stores that fail at the worst moment: fal has taken a request, and its answer can't be written down."""

import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

ROWS = 12


@contextmanager
def gate(sandbox, before_answer):
    """Stand before the sandbox's queue; call `before_answer` when a submit is accepted and its client not yet told."""
    with httpx2.Client(timeout=60) as behind:

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                answer = behind.request(self.command, sandbox.url + self.path, content=body, headers=headers)
                if self.command == "POST" and answer.is_success:
                    before_answer()
                self.send_response(answer.status_code)
                for name, value in answer.headers.items():
                    if name not in ("content-length", "content-encoding", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PUT = pass_on

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class Disk:
    """A small disk that only processes started through it see, with the store on it."""

    def __init__(self, place):
        self.place = place
        place.mkdir()
        self.holder = subprocess.Popen(
            [
                "unshare",
                "-rm",
                "sh",
                "-c",
                f"mount -t tmpfs -o size=24m none {place} && echo ready && exec cat",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if self.holder.stdout.readline() != "ready\n":
            pytest.skip(f"this machine lets nobody mount a disk of their own: {self.holder.communicate()[1]}")
        self.within = ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(self.holder.pid))
        self.seen = Path(f"/proc/{self.holder.pid}/root{place}")
        self.store = self.seen / "store"
        self.store.mkdir()

    def do(self, command):
        subprocess.run([*self.within, "sh", "-c", command], check=True, cwd="/")

    def fill(self):
        with (self.seen / "ballast").open("ab", buffering=0) as ballast:
            for size in (2**20, 2**10, 1):
                try:
                    while ballast.write(b"\0" * size):
                        pass
                except OSError:
                    continue

    def drain(self):
        (self.seen / "ballast").unlink()

    def freeze(self):
        store = self.place / "store"
        self.do(f"mount --bind {store} {store} && mount -o remount,bind,ro {store}")

    def thaw(self):
        self.do(f"umount {self.place / 'store'}")

    def remove(self):
        self.holder.communicate()


@pytest.fixture
def disk(tmp_path):
    made = Disk(tmp_path / "disk")
    yield made
    made.remove()


class Fault:
    """A store that fails and is mended."""

    def __init__(self, kind, disk):
        self.kind, self.disk = kind, disk
        self.aside = disk.seen / "aside"

    def strike(self):
        match self.kind:
            case "full":
                self.disk.fill()
            case "read-only":
                self.disk.freeze()
            case "moved away":
                self.disk.store.rename(self.aside)
            case "replaced by a file":
                self.disk.store.rename(self.aside)
                self.disk.store.write_bytes(b"")
            case "replaced by an empty folder":
                self.disk.store.rename(self.aside)
                self.disk.store.mkdir()

    def mend(self):
        match self.kind:
            case "full":
                self.disk.drain()
            case "read-only":
                self.disk.thaw()
            case _:
                if self.disk.store.is_file():
                    self.disk.store.unlink()
                elif self.disk.store.exists():
                    shutil.rmtree(self.disk.store)
                self.aside.rename(self.disk.store)


@pytest.fixture
def on_disk(project, disk):
    made = project(rows=ROWS, latency_scale=0.3)
    made.within = disk.within
    made.store = disk.store
    return made


def settings(disk, queue=None):
    """Name the store as the process sees it."""
    return {"IDEOGRAM_STORE": str(disk.place / "store"), "IDEOGRAM_MAX_IN_FLIGHT": "4"} | (
        {"FAL_QUEUE_URL": queue} if queue else {}
    )


@contextmanager
def striking(project, fault, mended=None):
    """Let the fault strike when fal has accepted the third submit and its client doesn't know yet."""
    accepted = []

    def strike_at_the_third():
        accepted.append(1)
        if len(accepted) == 3:
            fault.strike()
            if mended is not None:
                mended.start()

    with gate(project.sandbox, strike_at_the_third) as queue:
        yield queue


@pytest.mark.parametrize("kind", ["full", "read-only", "moved away"])
def test_a_store_that_fails_for_good_ends_the_run_clearly_and_the_next_one_finds_what_was_paid(
    on_disk, disk, kind
):
    fault = Fault(kind, disk)
    with striking(on_disk, fault) as queue:
        code, _ = on_disk("run", "--json", **settings(disk, queue))
    said = on_disk.output[-1]
    fault.mend()
    last_line = said.strip().splitlines()[-1]
    assert (code, "Traceback" in said) == (2, False)
    # a record's file or a picture's, whichever is written first after the fault
    assert re.match(rf"error: Can't (create|write) '{disk.place / 'store'}/(ledger|images)/", last_line)
    assert CAUSES[kind] in last_line
    reserved, submitted = (len(on_disk.ledger_files(step)) for step in ("reserved", "submitted"))
    accepted = on_disk.sandbox.stats().accepted
    assert submitted <= accepted <= reserved < ROWS
    assert submitted < accepted or kind == "full"  # where no picture fits, a record may
    # a reservation may lie there that its run could not make sure of, so that nothing was sent: nobody can tell later
    unsent = reserved - accepted
    summary = on_disk.run(**settings(disk))
    assert (summary["images"], summary["unknown"]) == (ROWS - unsent, unsent)
    on_disk.check_that_every_row_was_paid_once(on_disk.settle(**settings(disk)))


CAUSES = {"full": "No space left", "read-only": "Read-only file system", "moved away": "is gone"}


@pytest.mark.parametrize(
    "kind", ["full", "read-only", "moved away", "replaced by a file", "replaced by an empty folder"]
)
def test_a_store_that_fails_for_a_moment_costs_a_run_nothing(on_disk, disk, kind):
    fault = Fault(kind, disk)
    mended = threading.Timer(3, fault.mend)
    with striking(on_disk, fault, mended) as queue:
        summary = on_disk.run(**settings(disk, queue))
    mended.join()
    on_disk.check_that_every_row_was_paid_once(summary)


def test_a_store_that_is_read_only_before_a_run_is_said_to_be_and_nothing_is_submitted(on_disk, disk):
    for used in (False, True):
        if used:
            on_disk.run(**settings(disk))
            with (on_disk.folder / "prompts.csv").open("a") as table:
                table.write("\nnew,default,one more scene,")
        submits = on_disk.sandbox.stats().submits
        disk.freeze()
        code, _ = on_disk("run", "--json", **settings(disk))
        disk.thaw()
        said = on_disk.output[-1]
        assert (code, "Traceback" in said) == (2, False)
        assert str(disk.place / "store") in said
        assert "Read-only file system" in said or "readonly" in said
        assert on_disk.sandbox.stats().submits == submits
    on_disk.rows += 1
    on_disk.check_that_every_row_was_paid_once(on_disk.run(**settings(disk)))

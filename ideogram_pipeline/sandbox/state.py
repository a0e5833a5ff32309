"""What a sandbox remembers, in SQLite.

What belongs here: the tables and the only SQL of this room. A state on disk outlives the process, and several
processes may share it: each operation is one short statement or runs in ``transaction``.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from ideogram_pipeline.sandbox.config import FaultKind

Counter = Literal[
    "submits", "status_calls", "result_calls", "cancels", "uploads", "downloads", "webhooks", "misplaced_keys"
]
"""What is counted besides the requests themselves."""


class Phase(StrEnum):
    """Where a request is on its way."""

    QUEUED = "queued"
    """Waits for a free slot."""
    RUNNING = "running"
    """Holds a slot."""
    DONE = "done"
    """Has ended, well or badly."""


class Rendered(BaseModel):
    """A request that ended with pictures."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["rendered"] = "rendered"
    images: int = Field(description="How many pictures.")
    seed: int = Field(description="The seed of the whole request.")
    usd: str | None = Field(description="Its list price in US dollars; null when there is none.")


class Failed(BaseModel):
    """A request that ended without."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["failed"] = "failed"
    status: int = Field(description="HTTP status of the result.")
    detail: JsonValue = Field(description="A list for errors of the model, a text for those of the platform.")
    error_type: str | None = Field(default=None, description="The platform's name for the error.")
    start_timeout: bool = Field(default=False, description="The caller's own deadline passed.")


Outcome = Rendered | Failed
_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


@dataclass(frozen=True, slots=True)
class Input:
    """What was posted to an endpoint."""

    endpoint_id: str
    """For example ``fal-ai/ideogram/character``."""
    arguments: Mapping[str, JsonValue]
    """The body."""
    digest: str
    """Names the two by what they say: addresses of uploaded files count as the files' bytes."""

    @property
    def prompt(self) -> str:
        """The prompt, or an empty text when there is none."""
        prompt = self.arguments.get("prompt")
        return prompt if isinstance(prompt, str) else ""


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted submit, and what the sandbox made up its mind to do with it."""

    id: str
    """The request id."""
    given: Input
    """What was asked for."""
    headers: Mapping[str, str]
    """Request headers without credentials, names in lower case."""
    fault: FaultKind | None
    """What will go wrong."""
    run_s: float | None
    """Seconds it will hold a slot; None is for ever."""
    submitted_at: float
    """Unix seconds."""
    start_by: float | None = None
    """Unix seconds after which it is not started any more."""
    webhook: str | None = None
    """Address to tell when it has ended."""
    base_url: str = ""
    """The sandbox's own address as the caller knew it."""

    @property
    def is_forgotten(self) -> bool:
        """Whether what was asked for was deleted; every endpoint's body holds something."""
        return not self.given.arguments


@dataclass(frozen=True, slots=True)
class Request:
    """A submission and how far it has come."""

    submission: Submission
    """What was asked for."""
    order: int
    """Grows with every accepted request."""
    phase: Phase
    """Where it is."""
    started_at: float | None
    """Unix seconds; None until it runs."""
    ends_at: float | None
    """Unix seconds at which it ends or has ended; None while unknown."""
    outcome: Outcome | None
    """How it ended; None until somebody looked."""

    @property
    def id(self) -> str:
        """The request id."""
        return self.submission.id


@dataclass(frozen=True, slots=True)
class Load:
    """What is in the queue when an input comes."""

    queued: int
    """Requests that wait."""
    running: int
    """Requests that hold a slot."""
    times_accepted: int
    """Requests, whatever became of them, that had the same input."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An uploaded file."""

    content: bytes
    """Its bytes."""
    content_type: str
    """Its MIME type as declared by the uploader."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that was announced."""

    id: str
    """Names it in its addresses."""
    file_name: str
    """The last part of the file's address."""
    content_type: str
    """MIME type to serve the file with."""

    @property
    def path(self) -> str:
        """Where the file can be fetched once it is complete."""
        return f"/files/b/{self.id}/{self.file_name}"


_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, endpoint_id TEXT NOT NULL,
    arguments TEXT NOT NULL, headers TEXT NOT NULL, digest TEXT NOT NULL, fault TEXT, run_s REAL,
    submitted_at REAL NOT NULL, start_by REAL, webhook TEXT, base_url TEXT NOT NULL,
    phase TEXT NOT NULL, started_at REAL, ends_at REAL, outcome TEXT,
    webhook_claimed INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS requests_by_phase ON requests (phase, ordinal);
CREATE INDEX IF NOT EXISTS requests_by_digest ON requests (digest);
CREATE INDEX IF NOT EXISTS requests_without_outcome ON requests (ordinal) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS requests_with_deadline ON requests (start_by)
    WHERE phase = 'queued' AND start_by IS NOT NULL;
CREATE INDEX IF NOT EXISTS requests_to_announce ON requests (ordinal)
    WHERE webhook IS NOT NULL AND webhook_claimed = 0;
CREATE TABLE IF NOT EXISTS uploads (id TEXT PRIMARY KEY, file_name TEXT NOT NULL, content_type TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS parts (
    upload TEXT NOT NULL, number INTEGER NOT NULL, content BLOB NOT NULL, PRIMARY KEY (upload, number));
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, content BLOB NOT NULL, content_type TEXT NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS remembered (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
_TABLES = ("requests", "uploads", "parts", "files", "counters", "remembered")


class State:
    """The tables, opened. To be used from one thread at a time."""

    def __init__(self, path: str | Path) -> None:
        """Open the file, or an empty state that is forgotten with this object when the path is ``:memory:``."""
        if path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(
            path,
            timeout=10.0,
            isolation_level=None,
            check_same_thread=False,  # made where the app is made, used where it is served
        )
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")  # a power cut may cost a rehearsal, nothing more
        self._db.execute("PRAGMA secure_delete = ON")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and no other process in between. Transactions inside one are part of it."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def reset(self) -> None:
        """Forget everything but the secrets."""
        with self.transaction():
            for table in _TABLES:
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names

    # requests

    def add(self, submission: Submission, started_at: float | None) -> Request:
        """Accept a request. It runs from ``started_at`` on, or is queued when that is None."""
        run_s = submission.run_s
        ends_at = None if started_at is None or run_s is None else started_at + run_s
        phase = Phase.QUEUED if started_at is None else Phase.DONE if run_s == 0 else Phase.RUNNING
        cursor = self._db.execute(
            "INSERT INTO requests (id, endpoint_id, arguments, headers, digest, fault, run_s, submitted_at, start_by,"
            " webhook, base_url, phase, started_at, ends_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                submission.id,
                submission.given.endpoint_id,
                json.dumps(submission.given.arguments),
                json.dumps(submission.headers),
                submission.given.digest,
                submission.fault,
                run_s,
                submission.submitted_at,
                submission.start_by,
                submission.webhook,
                submission.base_url,
                phase,
                started_at,
                ends_at,
            ),
        )
        return Request(submission, cursor.lastrowid or 0, phase, started_at, ends_at, outcome=None)

    def request(self, request_id: str) -> Request | None:
        """The request with this id."""
        row = self._db.execute("SELECT * FROM requests WHERE id = ?", (request_id,)).fetchone()
        return _request(row) if row else None

    def requests(self) -> list[Request]:
        """All requests, oldest first."""
        return [_request(row) for row in self._db.execute("SELECT * FROM requests ORDER BY ordinal")]

    def requests_of(self, endpoint_id: str, since: float, until: float) -> list[Request]:
        """Finished requests to this endpoint submitted in [since, until), latest end first."""
        rows = self._db.execute(
            "SELECT * FROM requests WHERE endpoint_id = ? AND phase = ? AND submitted_at >= ? AND submitted_at < ?"
            " ORDER BY ends_at DESC, ordinal DESC",
            (endpoint_id, Phase.DONE, since, until),
        )
        return [_request(row) for row in rows]

    def without_outcome(self) -> list[Request]:
        """Requests that have ended without anybody having looked how."""
        rows = self._db.execute(
            "SELECT * FROM requests WHERE outcome IS NULL AND phase = ? ORDER BY ordinal", (Phase.DONE,)
        )
        return [_request(row) for row in rows]

    def load(self, digest: str) -> Load:
        """How full the queue is, and how often this input was accepted."""
        row = self._db.execute(
            "SELECT (SELECT COUNT(*) FROM requests WHERE phase = 'queued') AS queued,"
            " (SELECT COUNT(*) FROM requests WHERE phase = 'running') AS running,"
            " (SELECT COUNT(*) FROM requests WHERE digest = ?) AS times_accepted",
            (digest,),
        ).fetchone()
        return Load(row["queued"], row["running"], row["times_accepted"])

    def running(self) -> int:
        """How many requests hold a slot."""
        return self._count("phase = ?", Phase.RUNNING)

    def queued(self) -> int:
        """How many requests wait."""
        return self._count("phase = ?", Phase.QUEUED)

    def ahead_of(self, request: Request) -> int:
        """How many requests wait that came before this one."""
        return self._count("phase = ? AND ordinal < ?", Phase.QUEUED, request.order)

    def _count(self, where: str, *values: str | float) -> int:
        (count,) = self._db.execute(
            f"SELECT COUNT(*) FROM requests WHERE {where}",  # noqa: S608 - our own conditions
            values,
        ).fetchone()
        return int(count)

    def due(self, now: float, slots: int) -> bool:
        """Whether a request should start or end now."""
        (due,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM requests WHERE phase = 'running' AND ends_at <= :now)"
            " OR EXISTS (SELECT 1 FROM requests WHERE phase = 'queued' AND start_by < :now)"
            " OR (EXISTS (SELECT 1 FROM requests WHERE phase = 'queued')"
            " AND (SELECT COUNT(*) FROM requests WHERE phase = 'running') < :slots)",
            {"now": now, "slots": slots},
        ).fetchone()
        return bool(due)

    def oldest_queued(self) -> Request | None:
        """The request whose turn it is."""
        row = self._db.execute(
            "SELECT * FROM requests WHERE phase = ? ORDER BY ordinal LIMIT 1", (Phase.QUEUED,)
        ).fetchone()
        return _request(row) if row else None

    def first_to_end(self) -> Request | None:
        """The running request that ends next."""
        row = self._db.execute(
            "SELECT * FROM requests WHERE phase = ? AND ends_at IS NOT NULL ORDER BY ends_at LIMIT 1",
            (Phase.RUNNING,),
        ).fetchone()
        return _request(row) if row else None

    def forget(self, request_id: str) -> bool:
        """Delete what was asked in a request, which can't be drawn again; say whether there is one with this id."""
        cursor = self._db.execute(
            "UPDATE requests SET arguments = '{}', headers = '{}', digest = id WHERE id = ?", (request_id,)
        )
        return cursor.rowcount == 1

    def late_starters(self, now: float) -> list[Request]:
        """Queued requests whose callers' deadline has passed."""
        rows = self._db.execute("SELECT * FROM requests WHERE phase = 'queued' AND start_by < ?", (now,))
        return [_request(row) for row in rows]

    def start(self, request: Request, at: float) -> None:
        """Give the request a slot."""
        run_s = request.submission.run_s
        self._db.execute(
            "UPDATE requests SET phase = ?, started_at = ?, ends_at = ? WHERE id = ?",
            (Phase.RUNNING, at, None if run_s is None else at + run_s, request.id),
        )

    def end(self, request: Request, at: float) -> None:
        """The request has left its slot, or the queue."""
        self._db.execute(
            "UPDATE requests SET phase = ?, ends_at = ? WHERE id = ?", (Phase.DONE, at, request.id)
        )

    def settle(self, request: Request, outcome: Outcome) -> None:
        """Write down how the request ended; the first to write is right."""
        self._db.execute(
            "UPDATE requests SET outcome = ? WHERE id = ? AND outcome IS NULL",
            (outcome.model_dump_json(), request.id),
        )

    def to_announce(self) -> list[Request]:
        """Requests that have ended and whose webhook nobody has taken on, oldest first."""
        rows = self._db.execute(
            "SELECT * FROM requests WHERE webhook IS NOT NULL AND webhook_claimed = 0 AND phase = 'done'"
            " ORDER BY ordinal"
        )
        return [_request(row) for row in rows]

    def webhooks_wanted(self) -> bool:
        """Whether there are webhooks that nobody has taken on, of requests that have ended or not."""
        return self._count("webhook IS NOT NULL AND webhook_claimed = 0") > 0

    def claim_webhook(self, request: Request) -> bool:
        """Take on the delivery; False when somebody else has."""
        cursor = self._db.execute(
            "UPDATE requests SET webhook_claimed = 1 WHERE id = ? AND webhook_claimed = 0", (request.id,)
        )
        return cursor.rowcount == 1

    def repeated_submissions(self) -> int:
        """How many accepted requests had an input that was accepted before."""
        (count,) = self._db.execute("SELECT COUNT(*) - COUNT(DISTINCT digest) FROM requests").fetchone()
        return int(count)

    # counters, one-time events and secrets

    def count(self, name: Counter) -> None:
        """Add one."""
        self._db.execute(
            "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET count = count + 1", (name,)
        )

    def counts(self) -> dict[str, int]:
        """All counters that are not zero."""
        return {row["name"]: row["count"] for row in self._db.execute("SELECT * FROM counters")}

    def first_time(self, name: str) -> bool:
        """True once for each name."""
        return self._db.execute("INSERT OR IGNORE INTO remembered VALUES (?)", (name,)).rowcount == 1

    def secret(self, name: str, fresh: bytes) -> bytes:
        """The secret with this name, which is ``fresh`` when there was none."""
        self._db.execute("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (name, fresh))
        (value,) = self._db.execute("SELECT value FROM secrets WHERE name = ?", (name,)).fetchone()
        return bytes(value)

    # files

    def announce(self, upload: Upload) -> None:
        """Expect an upload."""
        self._db.execute(
            "INSERT INTO uploads VALUES (?, ?, ?)", (upload.id, upload.file_name, upload.content_type)
        )

    def upload(self, upload_id: str) -> Upload | None:
        """The upload announced under this id."""
        row = self._db.execute("SELECT * FROM uploads WHERE id = ?", (upload_id,)).fetchone()
        return Upload(row["id"], row["file_name"], row["content_type"]) if row else None

    def add_part(self, upload: Upload, number: int, content: bytes) -> str:
        """Keep one part of an upload and answer its entity tag; a part sent again replaces the first."""
        self._db.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (upload.id, number, content))
        return hashlib.sha256(content).hexdigest()

    def parts(self, upload: Upload) -> dict[int, bytes]:
        """The parts received so far, by number."""
        rows = self._db.execute(
            "SELECT number, content FROM parts WHERE upload = ? ORDER BY number", (upload.id,)
        )
        return {row["number"]: row["content"] for row in rows}

    def complete(self, upload: Upload, content: bytes) -> None:
        """The upload is whole: serve it from now on."""
        with self.transaction():
            self._db.execute("DELETE FROM parts WHERE upload = ?", (upload.id,))
            self._db.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                (upload.path, content, upload.content_type, hashlib.sha256(content).hexdigest()),
            )

    def file(self, path: str) -> StoredFile | None:
        """The file served at this path."""
        row = self._db.execute("SELECT content, content_type FROM files WHERE path = ?", (path,)).fetchone()
        return StoredFile(row["content"], row["content_type"]) if row else None

    def sha256_of(self, path: str) -> str | None:
        """The digest of the file served at this path, in hexadecimal."""
        row = self._db.execute("SELECT sha256 FROM files WHERE path = ?", (path,)).fetchone()
        return str(row["sha256"]) if row else None


def forget_uploads(path: Path, sha256s: Iterable[str]) -> None:
    """Delete uploads from a sandbox's file by the digests of their bytes, and what is left in it of deleted things."""
    with closing(sqlite3.connect(path, timeout=10.0)) as db:
        db.execute("PRAGMA secure_delete = ON")
        with db:
            db.executemany("DELETE FROM files WHERE sha256 = ?", [(sha256,) for sha256 in sha256s])
            db.execute("DELETE FROM parts")
        db.execute("VACUUM")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _request(row: sqlite3.Row) -> Request:
    return Request(
        submission=Submission(
            id=row["id"],
            given=Input(row["endpoint_id"], json.loads(row["arguments"]), row["digest"]),
            headers=json.loads(row["headers"]),
            fault=FaultKind(row["fault"]) if row["fault"] else None,
            run_s=row["run_s"],
            submitted_at=row["submitted_at"],
            start_by=row["start_by"],
            webhook=row["webhook"],
            base_url=row["base_url"],
        ),
        order=row["ordinal"],
        phase=Phase(row["phase"]),
        started_at=row["started_at"],
        ends_at=row["ends_at"],
        outcome=_OUTCOME.validate_json(row["outcome"]) if row["outcome"] else None,
    )

"""The ledger: what is known of every request's money, in files that are each written once and never changed.

Under `ledger/batch=<batch>/<fingerprint>/` each attempt to submit a request leaves up to four files:

    1-reserved.json     before the POST: who is about to pay, when and how much
    1-released.json     the POST certainly never reached fal; the next attempt may follow
    1-submitted.json    fal's request id and URLs, before anything else is awaited
    1-settled.json      how it ended: generated, refused or failed, with files, hashes and cost
    1-billed.json       what fal says it charged, once somebody has asked; it overrides the cost of the settlement

`ledger_copies/batch=<batch>.gz` repeats them, so that a ledger is opened with few requests; it may be deleted.
Every file is created only if it isn't there, so each transition happens once, whoever tries; a fingerprint whose
attempt is reserved but neither released nor submitted has an unknown answer and is never submitted again by itself.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from gzip import GzipFile
from io import BytesIO
from itertools import chain, groupby
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.storage import Store, StoredObject

MAX_ATTEMPTS = 3
"""A request is submitted at most this often, over all runs, counting the times its POST may have reached fal."""
NOT_COPIED = 32
"""So many files are read one by one rather than copied."""

_GZIP = 31

CostSource = Literal["billing_event", "billable_units_header", "price_list", "unknown"]
"""Who says what something cost, the strongest proof first."""
EntryState = Literal["new", "reserved", "submitted", "retryable", "generated", "refused", "failed"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Reserved(_Record):
    """The intent to pay, durable before the POST."""

    request: GenerationRequest = Field(description="What is about to be sent.")
    sent_sha256: str = Field(
        description="Hex digest of the body as sent, by which fal's list of requests is searched."
    )
    attempt: int = Field(description="1 for the first submit of this fingerprint.")
    owner: str = Field(description="The run that reserved it.")
    reserved_at: datetime = Field(description="UTC.")
    backend: str = Field(description="`fal` or `sandbox`.")
    code_version: str = Field(description="Version of this package.")


class Released(_Record):
    """The proof that an attempt's POST was never accepted."""

    released_at: datetime = Field(description="UTC.")
    reason: str = Field(description="What fal or the network answered.")


class Submitted(_Record):
    """fal's answer to the POST, durable before anything else is awaited."""

    request_id: str = Field(description="fal's id of the request.")
    status_url: str = Field(description="As fal gave it.")
    response_url: str = Field(description="As fal gave it.")
    cancel_url: str = Field(description="As fal gave it.")
    submitted_at: datetime = Field(description="UTC, when the answer had arrived.")


class StoredImage(_Record):
    """One picture in the store."""

    index: int = Field(description="Position in fal's answer, from 0.")
    path: str = Field(description="Path in the store.")
    sha256: str = Field(description="Hex digest of the file.")
    bytes: int = Field(description="Length of the file.")
    width: int = Field(description="Pixels.")
    height: int = Field(description="Pixels.")
    format: str = Field(description="`png`, `jpeg` or `webp`, from the bytes.")


class Settled(_Record):
    """How an attempt ended."""

    state: Literal["generated", "refused", "failed"] = Field(description="The end.")
    reason: str = Field(default="", description="Why, for a refusal or failure.")
    retryable: bool = Field(
        default=False, description="The request ended without a result and a new one may succeed."
    )
    images: tuple[StoredImage, ...] = Field(default=(), description="The pictures, all in the store.")
    seed: int | None = Field(default=None, description="The seed fal says it used.")
    inference_s: float | None = Field(default=None, description="Seconds of work, as fal measured them.")
    completed_at: datetime = Field(description="UTC, when the end was seen.")
    cost_usd: Decimal | None = Field(description="US dollars for the request, or None if not known.")
    cost_source: CostSource = Field(description="Who says what it cost.")


class Billed(_Record):
    """What fal says it charged for a request (fal docs, billing events), in US dollars."""

    request_id: str = Field(description="fal's id of the request.")
    units: Decimal | None = Field(description="Units charged, such as pictures, where fal says how many.")
    unit_price_usd: Decimal | None = Field(
        description="Price of one unit before discounts, where fal says it."
    )
    usd: Decimal = Field(description="What was charged, after discounts.")
    billed_at: datetime = Field(description="When fal booked it.")
    read_at: datetime = Field(description="UTC, when it was read; what fal corrects later is not seen.")


@dataclass(frozen=True, slots=True)
class Cost:
    """What something cost, and who says so."""

    usd: Decimal | None
    """US dollars, or None if not known."""
    source: CostSource
    """`unknown` where the dollars are."""


_NOTHING = Cost(Decimal(0), "price_list")
_UNKNOWN = Cost(None, "unknown")


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to submit a request, as far as it got."""

    reserved: Reserved
    """Who tried."""
    released: Released | None = None
    """Proof that it cost nothing, if there is."""
    submitted: Submitted | None = None
    """fal's answer, if it came."""
    settled: Settled | None = None
    """The end, if it was seen."""
    billed: Billed | None = None
    """What fal says it charged, if that was read."""

    @property
    def expected(self) -> Cost:
        """What it cost as far as that can be told without fal's bill: nothing if it was never accepted."""
        if self.released:
            return _NOTHING
        return Cost(self.settled.cost_usd, self.settled.cost_source) if self.settled else _UNKNOWN

    @property
    def cost(self) -> Cost:
        """What it cost: what fal's bill says, else what was expected."""
        return Cost(self.billed.usd, "billing_event") if self.billed else self.expected


@dataclass(frozen=True, slots=True)
class Entry:
    """All attempts of one fingerprint, oldest first."""

    attempts: tuple[Attempt, ...] = field(default=())
    """Never empty in a ledger."""

    @property
    def last(self) -> Attempt:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def paid_attempts(self) -> int:
        """Attempts whose POST may have reached fal."""
        return sum(attempt.released is None for attempt in self.attempts)

    @property
    def cost(self) -> Cost:
        """What all attempts cost together, not known if one isn't; its source is the weakest of those that cost any."""
        costs = [attempt.cost for attempt in self.attempts if not attempt.released]
        known = [cost.usd for cost in costs if cost.usd is not None]
        if len(known) < len(costs):
            return _UNKNOWN
        paid = [cost for cost in costs if cost.usd] or costs or [_NOTHING]
        return Cost(
            sum(known, Decimal(0)), max((cost.source for cost in paid), key=get_args(CostSource).index)
        )

    @property
    def state(self) -> EntryState:
        """What may be done next: submit (`new`, `retryable`), fetch (`submitted`), wait (`reserved`), or nothing."""
        if not self.attempts or self.last.released:
            return "retryable" if self.paid_attempts else "new"
        if self.last.settled:
            again = self.last.settled.retryable and self.paid_attempts < MAX_ATTEMPTS
            return "retryable" if again else self.last.settled.state
        return "submitted" if self.last.submitted else "reserved"


class AlreadyWritten(Exception):
    """Another run made this transition first; the entry now says what that run wrote."""


_READ_AT_ONCE = 1_000
"""Files that are read side by side, which bounds what reading takes beside what is kept."""
_NAME = re.compile(
    r"(?P<fingerprint>[0-9a-f]{64})/(?P<attempt>\d+)-(?P<step>reserved|released|submitted|settled|billed)\.json"
)
_STEPS: Mapping[str, type[_Record]] = {
    "reserved": Reserved,
    "released": Released,
    "submitted": Submitted,
    "settled": Settled,
    "billed": Billed,
}


class Entries(Mapping[str, Entry]):
    """The entries of one batch by fingerprint, kept as the text of their files.

    As objects they take five times the memory, and a large batch holds thousands that nobody looks at before the end.
    So an entry is made when it is asked for, and kept only while its request is being worked on.
    """

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._at_work: dict[str, Entry] = {}

    def __getitem__(self, fingerprint: str) -> Entry:
        """Return what is known of a fingerprint."""
        at_work = self._at_work.get(fingerprint)
        return at_work or _entry(self._files[fingerprint])

    def __contains__(self, fingerprint: object) -> bool:
        """Say whether anything is known of a fingerprint."""
        return fingerprint in self._files

    def __iter__(self) -> Iterator[str]:
        """Yield the fingerprints."""
        return iter(self._files)

    def __len__(self) -> int:
        """Return how many fingerprints are known."""
        return len(self._files)

    def file(self, fingerprint: str, name: str) -> bytes:
        """Return the bytes of one file of a fingerprint, such as `1-reserved`; nothing where it isn't known."""
        for line in self._files.get(fingerprint, b"").split(b"\n"):
            if line.startswith(name.encode() + b" "):
                return line.partition(b" ")[2]
        return b""

    def found(self, fingerprint: str, files: bytes) -> None:
        """Take what the store has of a fingerprint, one file a line, in place of what was known."""
        self._at_work.pop(fingerprint, None)
        self._files[fingerprint] = files

    def wrote(self, fingerprint: str, line: bytes, entry: Entry) -> None:
        """Take a file that was just written, and the entry with it."""
        self._files[fingerprint] = self._files.get(fingerprint, b"") + line
        if entry.state in ("reserved", "submitted"):
            self._at_work[fingerprint] = entry
        else:
            self._at_work.pop(fingerprint, None)


class Ledger:
    """The ledger of one batch: read whole when opened, kept up to date with what this process writes.

    Each transition can be made once; the methods that make one raise `AlreadyWritten` where another run has made it.
    """

    def __init__(self, store: Store, batch: str) -> None:
        self.batch = batch
        """The partition."""
        self._store = store
        self._folder = f"ledger/batch={batch}"
        self.entries = Entries()
        """What is known, by fingerprint."""
        self._copy = f"ledger_copies/batch={batch}.gz"
        self._not_copied = 0
        self._read(self._folder)

    def look_again(self, fingerprints: Iterable[str]) -> None:
        """Read what the store has of some requests now: other runs may have gone on with them."""
        for fingerprint in fingerprints:
            self._read(f"{self._folder}/{fingerprint}")

    async def reserve(self, reserved: Reserved) -> None:
        """Claim an attempt."""
        fingerprint = reserved.request.fingerprint
        earlier = self.entries[fingerprint].attempts if fingerprint in self.entries else ()
        after = Entry((*earlier, Attempt(reserved)))
        await self._create(fingerprint, reserved.attempt, "reserved", reserved, after)

    async def release(self, fingerprint: str, released: Released) -> None:
        """Record that the last attempt was never accepted."""
        await self._advance(fingerprint, "released", released)

    async def submitted(self, fingerprint: str, submitted: Submitted) -> None:
        """Record fal's answer to the last attempt."""
        await self._advance(fingerprint, "submitted", submitted)

    async def settle(self, fingerprint: str, settled: Settled) -> None:
        """Record how the last attempt ended."""
        await self._advance(fingerprint, "settled", settled)

    async def billed(self, fingerprint: str, billed: Billed) -> None:
        """Record what fal charged for the attempt with the bill's request id, whether it is the last one or not."""
        entry = self.entries[fingerprint]
        [position] = [
            position
            for position, attempt in enumerate(entry.attempts)
            if attempt.submitted and attempt.submitted.request_id == billed.request_id
        ]
        await self._advance(fingerprint, "billed", billed, position)

    async def _advance(self, fingerprint: str, step: str, record: _Record, position: int = -1) -> None:
        attempts = list(self.entries[fingerprint].attempts)
        attempts[position] = replace(attempts[position], **{step: record})  # type: ignore[arg-type]  # step names a field of its record's type
        number = attempts[position].reserved.attempt
        await self._create(fingerprint, number, step, record, Entry(tuple(attempts)))

    async def _create(self, fingerprint: str, attempt: int, step: str, record: _Record, after: Entry) -> None:
        folder, content = f"{self._folder}/{fingerprint}", record.model_dump_json().encode()
        path = f"{folder}/{attempt}-{step}.json"
        if not await self._store.create_async(path, content):
            await asyncio.to_thread(self._read, folder)
            raise AlreadyWritten(path)
        self._not_copied += 1
        self.entries.wrote(fingerprint, _line(attempt, step, content), after)

    def keep_copy(self) -> None:
        """Keep all that is known in one object too, so that opening takes two requests instead of several a row.

        Every file stays what counts: the copy stands in for those that a listing shows as they were when it was made.
        """
        if self._not_copied <= NOT_COPIED:
            return
        packed = zlib.compressobj(1, wbits=_GZIP)
        parts = []
        for found in self._store.objects(self._folder):
            name = _NAME.search(found.path)
            content = (
                self.entries.file(name["fingerprint"], f"{name['attempt']}-{name['step']}") if name else b""
            )
            if content and len(content) == found.size:
                parts.append(packed.compress(b"%s %s\n" % (self._mark(found), content)))
        self._store.put(self._copy, b"".join([*parts, packed.flush()]))
        self._not_copied = 0

    def _copied(self, there: Sequence[StoredObject]) -> dict[str, bytes]:
        """Return the bytes that the copy has of files as they are there, by path."""
        if len(there) <= NOT_COPIED:
            return {}
        paths = {self._mark(found): found.path for found in there}
        copied = {}
        try:
            with GzipFile(fileobj=BytesIO(self._store.get(self._copy))) as lines:
                for line in lines:
                    mark, _, file = line.rstrip(b"\n").partition(b" ")
                    if mark in paths:
                        copied[paths[mark]] = file
        except (OSError, EOFError, zlib.error):  # there is none, or it is damaged
            return {}
        return copied

    def _mark(self, found: StoredObject) -> bytes:
        """Return a word that no other file has, nor the same one with another content."""
        name = found.path.removeprefix(f"{self._folder}/")
        return f"{name}:{found.size}:{found.etag}".replace(" ", "").encode()

    def _read(self, folder: str) -> None:
        there = [found for found in self._store.objects(folder) if _NAME.search(found.path)]
        copied = self._copied(there) if folder == self._folder else {}
        self._not_copied += len(there) - len(copied)
        paths = sorted(found.path for found in there)

        def read(path: str) -> bytes:
            return copied.pop(path, b"") or self._content(path)

        with ThreadPoolExecutor(max_workers=16) as threads:
            parts = (paths[start : start + _READ_AT_ONCE] for start in range(0, len(paths), _READ_AT_ONCE))
            contents = chain.from_iterable(threads.map(read, part) for part in parts)
            for fingerprint, files in groupby(zip(paths, contents, strict=True), key=_fingerprint):
                self._found(fingerprint, [file for file in files if file[1]])

    def _found(self, fingerprint: str, files: list[tuple[str, bytes]]) -> None:
        steps = {}
        for path, content in files:
            _, attempt, step = _named(path)
            steps[attempt, step] = content
        for attempt, _ in steps:
            if (attempt, "reserved") not in steps:
                raise StoreError(
                    f"The ledger of {fingerprint} has no reservation for its attempt {attempt}. "
                    "Restore the file from a backup; nothing of this batch is submitted meanwhile."
                )
        if steps:
            lines = [_line(*step, content) for step, content in sorted(steps.items())]
            self.entries.found(fingerprint, b"".join(lines))

    def _content(self, path: str) -> bytes:
        """Return a ledger file's bytes, which can be read; nothing of one that a power cut left empty."""
        content = self._store.get(path)
        if not content:
            # Whoever wrote it went on only once the bytes were on the disk. They aren't, so the power went first.
            self._store.delete(path)
            return content
        try:
            _STEPS[_named(path)[2]].model_validate_json(content)
        except ValueError as error:
            raise StoreError(f"The ledger file {self._store.where(path)!r} can't be read: {error}") from None
        return content


def batches(store: Store) -> list[str]:
    """Return the batches that have a ledger, sorted."""
    return [folder.removeprefix("batch=") for folder in store.folders("ledger")]


def _named(path: str) -> tuple[str, int, str]:
    """Return the fingerprint, attempt and step that a ledger file's path names."""
    name = _NAME.search(path)
    assert name is not None
    return name["fingerprint"], int(name["attempt"]), name["step"]


def _fingerprint(file: tuple[str, bytes]) -> str:
    return _named(file[0])[0]


def _line(attempt: int, step: str, content: bytes) -> bytes:
    return b"%d-%s %s\n" % (attempt, step.encode(), content.replace(b"\n", b" "))


def _entry(lines: bytes) -> Entry:
    attempts: dict[int, dict[str, _Record]] = defaultdict(dict)
    for line in lines.split(b"\n")[:-1]:
        name, _, content = line.partition(b" ")
        number, _, step = name.decode().partition("-")
        attempts[int(number)][step] = _STEPS[step].model_validate_json(content)
    return Entry(tuple(Attempt(**steps) for steps in attempts.values()))  # type: ignore[arg-type]  # each step was parsed as its own type

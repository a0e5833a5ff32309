"""Finding requests like ours in fal's list of what it was sent, whoever sent them.

The list holds the requests of an account for 30 days (fal docs, request payloads), those that ended, with the body that
was sent. A picture stands in it as a URL, under which its bytes are looked for: they were uploaded or signed by this
store, which remembers that, or they travelled in the request, or they are fetched. Everything else has to be the same
to the last digit; the seed is a row's own, so that hardly two rows ask for the same.

An absence proves nothing: what is still queued may be missing, and so is what is older.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from pydantic import JsonValue, ValidationError

from ideogram_pipeline.fal import FalClient, FalError
from ideogram_pipeline.fal.platform import PastRequest
from ideogram_pipeline.generation.fetching import MAX_PICTURE_BYTES
from ideogram_pipeline.generation.reconcile import MAX_LISTED, SKEWS, digest
from ideogram_pipeline.generation.requests import GenerationRequest, take_seed
from ideogram_pipeline.generation.uploads import Upload
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.inputs import PICTURE_COLUMNS
from ideogram_pipeline.tables.references import KEPT_COPY, upright_copies

LISTED_FOR = timedelta(days=31)
"""How far back fal is asked: a day more than it keeps what was sent."""
WINDOW = timedelta(days=1)
"""One question to fal covers so long; it is its default as well."""
SHORTEST = timedelta(minutes=15)
"""A window with too many requests is split, but not below this."""
MAX_TAKES = 50
"""A row's takes are looked for up to this one."""

_UPLOAD = re.compile(r"uploads/([0-9a-f]{64})\.json")


class Past(NamedTuple):
    """A request of fal's list that is like one of ours."""

    request_id: str
    """fal's id of it."""
    sent_at: datetime
    """When it was submitted; now, where fal doesn't say."""
    sent_sha256: str
    """Digest of the body as it was sent."""
    failed: bool
    """Whether fal lists it as ended without a result."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What fal's list holds of requests like ours, the best of several like one first."""

    problems: list[str] = field(default_factory=list)
    """Why the list may hold more than was seen; nothing where all of it was."""
    without_input: list[str] = field(default_factory=list)
    """Ids of requests that nobody can compare: what was sent isn't stored."""
    _alike: dict[str, list[Past]] = field(default_factory=lambda: defaultdict(list))
    _but_for_pictures: dict[str, list[Past]] = field(default_factory=lambda: defaultdict(list))

    def take(self, request: GenerationRequest) -> Past | None:
        """Return a request that was sent exactly so, once: each counts for one row."""
        found = self._alike.get(_key(request.endpoint_id, request.arguments))
        return found.pop(0) if found else None

    def holds(self, request: GenerationRequest) -> bool:
        """Say whether one that was sent exactly so is left."""
        return bool(self._alike.get(_key(request.endpoint_id, request.arguments)))

    def take_unreadable(self, request: GenerationRequest) -> Past | None:
        """Return a request that was sent so but for its pictures, of which one can't be read any more; likewise."""
        found = self._but_for_pictures.get(_key(request.endpoint_id, _without_pictures(request.arguments)))
        return found.pop(0) if found else None

    def sort(self) -> None:
        """Put the best first: what brought a result, then the oldest."""
        for found in (*self._alike.values(), *self._but_for_pictures.values()):
            found.sort(key=lambda past: (past.failed, past.sent_at, past.request_id))


class Matcher:
    """Looks for a store's requests in fal's list."""

    def __init__(
        self,
        fal: FalClient,
        store: Store,
        wanted: Collection[GenerationRequest],
        *,
        taken: Collection[str],
        told: Callable[[str], None],
    ) -> None:
        """Look for `wanted`, each with its takes; requests with an id among `taken` are somebody's already."""
        self._fal = fal
        self._store = store
        self._taken = set(taken)
        self._told = told
        self._listed = Listed()
        self._digests: dict[str, str | None] = {}
        self._originals = {
            use.sent_sha256: use.sha256
            for request in wanted
            for use in request.pictures
            if use.sent_sha256 is not None
        }
        self._seeds: dict[str, set[int]] = defaultdict(set)
        self._takes: dict[str, set[int]] = {}
        self._endpoints = sorted({request.endpoint_id for request in wanted})
        for request in wanted:
            self._seeds[_shape(request.endpoint_id, request.arguments)].add(request.seed)

    async def look(self) -> Listed:
        """Return what the list holds of them, as far back as it goes.

        Raises:
            StoreError: the records of uploads are out of reach.
        """
        if self._endpoints:
            self._digests.update(_uploaded(self._store))
            self._originals.update(upright_copies(self._store))
        now = datetime.now(UTC)
        for endpoint_id in self._endpoints:
            end, seen = now + SKEWS[-1], 0  # our clock may be slow by a day
            while end > now - LISTED_FOR:
                try:
                    seen += await self._window(endpoint_id, end - WINDOW, end)
                except FalError as error:
                    self._listed.problems.append(f"fal's list of {endpoint_id} can't be read: {error}")
                    break
                end -= WINDOW
                self._told(f"fal's list of {endpoint_id} back to {end:%Y-%m-%d}: {seen} requests")
        self._listed.sort()
        return self._listed

    async def _window(self, endpoint_id: str, start: datetime, end: datetime) -> int:
        listing = await self._fal.requests_by_endpoint(
            endpoint_id, start=start, end=end, with_payloads=True, max_items=MAX_LISTED
        )
        if listing.truncated and len(listing.items) >= MAX_LISTED and end - start > SHORTEST:
            middle = start + (end - start) / 2
            return await self._window(endpoint_id, middle, end) + await self._window(
                endpoint_id, start, middle
            )
        if listing.truncated:
            self._listed.problems.append(
                f"fal's list of {endpoint_id} from {start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC is cut short"
            )
        for past in listing.items:
            if past.request_id not in self._taken:
                self._taken.add(past.request_id)  # pages of a list that grows meanwhile overlap
                await self._take_up(past)
        return len(listing.items)

    async def _take_up(self, past: PastRequest) -> None:
        sent = past.json_input
        if not isinstance(sent, dict):
            self._listed.without_input.append(past.request_id)
            return
        if sent.get("seed") not in self._possible_seeds(_shape(past.endpoint_id, sent)):
            return
        failed = past.status_code is not None and past.status_code >= 400
        found = Past(past.request_id, past.sent_at or datetime.now(UTC), digest(sent), failed)
        by_digest = await self._by_digest(sent)
        if by_digest is None:
            self._listed._but_for_pictures[_key(past.endpoint_id, _without_pictures(sent))].append(found)
        else:
            self._listed._alike[_key(past.endpoint_id, by_digest)].append(found)

    def _possible_seeds(self, shape: str) -> set[int]:
        """Return the seeds of all takes of the rows of a shape; they are worked out when first asked for."""
        if shape not in self._takes and shape in self._seeds:
            self._takes[shape] = {seed for first in self._seeds[shape] for seed in _takes(first)}
        return self._takes.get(shape, set())

    async def _by_digest(self, sent: Mapping[str, JsonValue]) -> dict[str, JsonValue] | None:
        """Return a body with the digest of each picture in place of its URL; None where one can't be read."""
        urls = {url for name in sent.keys() & PICTURE_COLUMNS.keys() for url in _urls(sent[name])}
        digests = {url: await self._digest(url) for url in urls}
        if None in digests.values():
            return None

        def put_in(value: JsonValue) -> JsonValue:
            if isinstance(value, list):
                return [put_in(member) for member in value]
            return f"sha256:{digests[value]}" if isinstance(value, str) else value

        return {name: put_in(value) if name in PICTURE_COLUMNS else value for name, value in sent.items()}

    async def _digest(self, url: str) -> str | None:
        """Return the digest of the picture behind a URL, or None if it can't be had any more.

        A copy that was sent in the place of a picture counts as that.
        """
        if url not in self._digests:
            self._digests[url] = self._signed(url) or await self._fetched(url)
        return self._digests[url]

    def _signed(self, url: str) -> str | None:
        """Return the digest that a signed URL tells, which leads to the copy of a picture in this store."""
        endpoint = self._store.endpoint
        if endpoint is None or not url.startswith(f"{endpoint.rstrip('/')}/"):
            return None
        name = KEPT_COPY.search(url.partition("?")[0])
        return name[1] if name else None

    async def _fetched(self, url: str) -> str | None:
        try:
            found = await self._fal.download(url, max_bytes=MAX_PICTURE_BYTES)
        except FalError:
            return None
        sha256 = hashlib.sha256(found.content).hexdigest()
        return self._originals.get(sha256, sha256)


def _uploaded(store: Store) -> Iterator[tuple[str, str]]:
    """Yield the URLs under which this store has uploaded pictures, with their digests."""
    for name in [_UPLOAD.fullmatch(found.path) for found in store.objects("uploads")]:
        if name is None:
            continue
        try:
            upload = Upload.model_validate_json(store.get(name[0]))
        except (FileNotFoundError, ValidationError):
            continue
        yield upload.url, name[1]


def _takes(seed: int) -> Iterator[int]:
    """Yield the seeds of a row's takes, the first one's being `seed`."""
    yield seed
    yield from (take_seed(seed, take) for take in range(1, MAX_TAKES))


def _shape(endpoint_id: str, arguments: Mapping[str, JsonValue]) -> str:
    """Return what all takes of a row share, whatever its pictures show."""
    return _key(endpoint_id, {**_without_pictures(arguments), "seed": None})


def _key(endpoint_id: str, arguments: Mapping[str, JsonValue]) -> str:
    return f"{endpoint_id} {digest(arguments)}"


def _without_pictures(arguments: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {
        name: len(list(_urls(value))) if name in PICTURE_COLUMNS else value
        for name, value in arguments.items()
    }


def _urls(value: JsonValue) -> Iterator[str]:
    """Yield what stands in a picture field: one URL or several, or the tokens in their place."""
    if isinstance(value, list):
        yield from (member for member in value if isinstance(member, str))
    elif isinstance(value, str):
        yield value


def takes_of(first: GenerationRequest) -> Iterator[GenerationRequest]:
    """Yield a row's takes as far as they are looked for."""
    return islice(first.takes(), MAX_TAKES)

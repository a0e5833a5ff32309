"""The URLs under which fal finds the references: signed, or uploaded once per content and remembered.

Where the store lies in S3, fal gets a signed URL of the store's own copy, whatever the table's `uri` says. The copy
lies under the digest of its bytes and is written once, so that the bytes that were hashed are those that fal reads;
what the table names may change while a request waits. Only where the plan says so is fal given the table's address. A
signed URL serves the requests of some minutes, because it dies with the credentials that signed it, and is kept
nowhere.

A bucket may let in nobody but its own network, and a web server only some. Where fal could not read is remembered in
the store, and what lies there is uploaded from then on.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ideogram_pipeline.fal import FalClient, FalHosts, UnsafeUrl
from ideogram_pipeline.fal.urls import is_public, origin_of
from ideogram_pipeline.generation.ledger import Reserved
from ideogram_pipeline.generation.outcomes import LeftOpen, NotReached
from ideogram_pipeline.generation.requests import GenerationRequest, PictureUse
from ideogram_pipeline.storage import Store

LIFETIME = timedelta(days=7)
"""How long fal is asked to keep an upload: longer than any queue, and not for ever, for it may show a person."""
MARGIN = timedelta(days=1)
"""An upload this close to its end is made anew, for a request may wait in the queue."""
SIGN_AGAIN_S = 600.0
"""A signed URL is handed out for so many seconds."""

_log = logging.getLogger(__name__)


class Upload(BaseModel):
    """An upload as the store remembers it, under `uploads/<sha256>.json`; a copy's has both digests in its name."""

    model_config = ConfigDict(frozen=True)

    url: str = Field(description="Where fal finds the picture.")
    expires_at: datetime = Field(description="UTC, when fal deletes it.")


class Unreadable(BaseModel):
    """A place that fal could not read from, as the store remembers it. Delete the file to let fal try again."""

    model_config = ConfigDict(frozen=True)

    place: str = Field(description="The store with its server, or the origin of an address.")
    seen_at: datetime = Field(description="UTC, when fal said so.")


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent to fal."""

    arguments: dict[str, JsonValue]
    """The request's, with a URL in place of each picture's digest."""
    uploaded: bool
    """Whether fal is given the bytes of every picture: uploaded to it, or inside the request."""


@dataclass(frozen=True, slots=True)
class _Found:
    url: str
    uploaded: bool = True
    until: float = math.inf
    """When it is looked for again, by the event loop's clock."""
    found_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class ReferenceUrls:
    """Hands out a URL for each reference.

    `inline_bytes` is the size up to which a reference travels inside the request, as a data URI. What is signed lasts
    `wait_s` seconds, the time a request may take; where the credentials don't, or fal can't read from the store,
    references are uploaded.
    """

    def __init__(self, fal: FalClient, store: Store, *, inline_bytes: int, wait_s: float) -> None:
        self._fal = fal
        self._store = store
        self._inline_bytes = inline_bytes
        self._wait_s = wait_s
        self._urls: dict[str, asyncio.Task[_Found]] = {}
        self._unreadable: dict[str, bool] = {}
        self._given_anew: set[str] = set()

    async def filled_in(self, request: GenerationRequest) -> Body:
        """Return the arguments with a URL in place of each picture's digest.

        Raises:
            FalError: an upload failed.
            LeftOpen: the store no longer has a picture's bytes.
        """
        found = {use.token: await self._url(use) for use in request.pictures}

        def filled(value: JsonValue) -> JsonValue:
            if isinstance(value, list):
                return [filled(member) for member in value]
            return found[value].url if isinstance(value, str) and value in found else value

        fields = {use.field for use in request.pictures}
        arguments = {
            name: filled(value) if name in fields else value for name, value in request.arguments.items()
        }
        return Body(arguments, all(one.uploaded for one in found.values()))

    async def forget(self, reserved: Reserved) -> bool:
        """Give fal a request's pictures in another way next time: it could not fetch them.

        Return whether that may help: a request that has met this before in this run has been given fresh uploads.
        """
        for use in reserved.request.pictures:
            if not reserved.uploaded and (place := self._place(use)):
                await self._remember_unreadable(place)
            known = self._urls.get(use.sent[0])
            if known is None or not _is_later(known, reserved.reserved_at):
                self._urls.pop(use.sent[0], None)
                await self._store.delete_async([_path(use)])
        may_help = reserved.request.fingerprint not in self._given_anew
        self._given_anew.add(reserved.request.fingerprint)
        return may_help

    async def _url(self, use: PictureUse) -> _Found:
        found = self._urls.get(use.sent[0])
        if found is None or _is_over(found):
            found = self._urls[use.sent[0]] = asyncio.create_task(self._found(use))
            found.add_done_callback(_heard)
        return await asyncio.shield(found)

    async def _found(self, use: PictureUse) -> _Found:
        place = self._place(use)
        if place is None or not await self._is_within_reach(use, place):
            place = None
            if remembered := await self._remembered(use):
                return _Found(remembered.url)
        elif use.by_address:
            return _Found(use.uri, uploaded=False)
        content = await self._content(use)
        if len(content) <= self._inline_bytes:
            kind = use.path.rpartition(".")[2].replace("jpg", "jpeg")
            return _Found(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
        if place and (signed := await self._signed(use)):
            return signed
        if place and (remembered := await self._remembered(use)):
            return _Found(remembered.url)
        name = use.sent[1].rpartition("/")[2]
        uploaded = await self._fal.upload(content, file_name=name, lifetime_s=int(LIFETIME.total_seconds()))
        upload = Upload(url=uploaded.url, expires_at=uploaded.expires_at or datetime.now(UTC) + LIFETIME)
        await self._store.put_async(_path(use), upload.model_dump_json().encode())
        return _Found(upload.url)

    def _place(self, use: PictureUse) -> str | None:
        """Return where fal would read a picture; None where it can only be uploaded."""
        if use.by_address:
            scheme, host, port = origin_of(use.uri)
            return f"{scheme}://{host}:{port}"
        return f"{self._store.url} at {self._store.endpoint}" if self._store.endpoint else None

    async def _is_within_reach(self, use: PictureUse, place: str) -> bool:
        url = use.uri if use.by_address else self._store.endpoint
        assert url is not None
        if place not in self._unreadable:
            self._unreadable[place] = await self._is_remembered_unreadable(place)
        return not self._unreadable[place] and await is_within_reach(url, self._fal.hosts)

    async def _is_remembered_unreadable(self, place: str) -> bool:
        try:
            await self._store.get_async(_unreadable_path(place))
        except FileNotFoundError:
            return False
        return True

    async def _remember_unreadable(self, place: str) -> None:
        if self._unreadable.get(place):
            return
        self._unreadable[place] = True
        path, note = _unreadable_path(place), Unreadable(place=place, seen_at=datetime.now(UTC))
        await self._store.put_async(path, note.model_dump_json().encode())
        _log.warning(
            "fal can't read from %s: references are uploaded from now on. Delete %s to let it try again.",
            place,
            self._store.where(path),
        )

    async def _signed(self, use: PictureUse) -> _Found | None:
        """Return a signed URL of the store's copy, if the credentials last long enough."""
        url = await self._store.presigned(use.sent[1], lasting_s=self._wait_s + SIGN_AGAIN_S)
        until = asyncio.get_running_loop().time() + SIGN_AGAIN_S
        return _Found(url, uploaded=False, until=until) if url else None

    async def _content(self, use: PictureUse) -> bytes:
        """Return the bytes that were planned with: others would be paid for under a false fingerprint."""
        sha256, path = use.sent
        try:
            content = await self._store.get_async(path)
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise LeftOpen(
                NotReached,
                f"the store's copy of the reference {use.reference_id!r}, {path}, is "
                f"{'damaged' if content else 'missing'}; delete it and materialize `references` again",
            )
        return content

    async def _remembered(self, use: PictureUse) -> Upload | None:
        """Return the upload of an earlier run, if fal still has it and it was made to the fal of this run."""
        try:
            upload = Upload.model_validate_json(await self._store.get_async(_path(use)))
            self._fal.hosts.check_media(upload.url)
        except (FileNotFoundError, ValueError, UnsafeUrl):
            return None
        left = upload.expires_at - datetime.now(UTC)
        # one that seems to live longer than any can was noted while a clock was wrong, and says nothing
        return upload if MARGIN < left <= LIFETIME + MARGIN else None


async def is_within_reach(url: str, hosts: FalHosts) -> bool:
    """Say whether fal can fetch files from a server: from a public one, by https. A stand-in here reaches any."""
    if not hosts.queue.startswith("https://"):
        return True
    scheme, host, port = origin_of(url)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port)
    except OSError:
        return False
    return scheme == "https" and all(is_public(str(address[0])) for *_, address in found)


def _heard(found: asyncio.Task[_Found]) -> None:
    """Take note of how a search ended that a run left behind: no row waits for it any more."""
    if not found.cancelled():
        found.exception()


def _is_over(found: asyncio.Task[_Found]) -> bool:
    """Say whether what was found must be looked for again: it failed, or has been handed out for long enough."""
    if not found.done():
        return False
    failed = found.cancelled() or found.exception() is not None
    return failed or found.result().until <= asyncio.get_running_loop().time()


def _is_later(found: asyncio.Task[_Found], moment: datetime) -> bool:
    """Say whether what was found is being looked for, or was found after a moment: what was sent then was another."""
    if not found.done():
        return True
    return not found.cancelled() and found.exception() is None and found.result().found_at > moment


def _unreadable_path(place: str) -> str:
    return f"uploads/unreadable/{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"


def _path(use: PictureUse) -> str:
    """Return where the upload of a picture is noted: under the name of what was uploaded."""
    return f"uploads/{'.'.join(filter(None, (use.sha256, use.sent_sha256)))}.json"

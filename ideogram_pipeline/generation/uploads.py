"""The URLs under which fal finds the references: signed, uploaded once per content and remembered, or passed through.

Where the store lies in S3, fal gets a signed URL of the store's own copy, whatever the table's `uri` says. The copy
lies under the digest of its bytes and is written once, so that the bytes that were hashed are those that fal reads; the
object that the table names may change while a request waits. A signed URL serves the requests of some minutes, because
it dies with the credentials that signed it, and is kept nowhere.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ideogram_pipeline.fal import FalClient, FalHosts, UnsafeUrl
from ideogram_pipeline.fal.urls import is_public, origin_of
from ideogram_pipeline.generation.outcomes import LeftOpen, NotReached
from ideogram_pipeline.generation.requests import GenerationRequest, PictureUse
from ideogram_pipeline.storage import Store

LIFETIME = timedelta(days=7)
"""How long fal is asked to keep an upload: longer than any queue, and not for ever, for it may show a person."""
MARGIN = timedelta(days=1)
"""An upload this close to its end is made anew, for a request may wait in the queue."""
SIGN_AGAIN_S = 600.0
"""A signed URL is handed out for so many seconds."""


class Upload(BaseModel):
    """An upload as the store remembers it, under `uploads/<sha256>.json`."""

    model_config = ConfigDict(frozen=True)

    url: str = Field(description="Where fal finds the picture.")
    expires_at: datetime = Field(description="UTC, when fal deletes it.")


@dataclass(frozen=True, slots=True)
class _Found:
    url: str
    until: float = math.inf
    """When it is looked for again, by the event loop's clock."""


class ReferenceUrls:
    """Hands out a URL for each reference. `https://` references are passed on as they are.

    `inline_bytes` is the size up to which a reference travels inside the request, as a data URI. What is signed lasts
    `wait_s` seconds, the time a request may take; where the credentials don't, or fal can't reach the store, references
    are uploaded.
    """

    def __init__(self, fal: FalClient, store: Store, *, inline_bytes: int, wait_s: float) -> None:
        self._fal = fal
        self._store = store
        self._inline_bytes = inline_bytes
        self._wait_s = wait_s
        self._signs = store.endpoint is not None
        self._urls: dict[str, asyncio.Task[_Found]] = {}

    async def filled_in(self, request: GenerationRequest) -> dict[str, JsonValue]:
        """Return the arguments with a URL in place of each picture's digest.

        Raises:
            FalError: an upload failed.
            LeftOpen: the store no longer has a picture's bytes.
        """
        urls = {use.token: await self._url(use) for use in request.pictures}

        def filled(value: JsonValue) -> JsonValue:
            if isinstance(value, list):
                return [filled(member) for member in value]
            return urls.get(value, value) if isinstance(value, str) else value

        fields = {use.field for use in request.pictures}
        return {name: filled(value) if name in fields else value for name, value in request.arguments.items()}

    def forget(self, request: GenerationRequest) -> None:
        """Upload a request's pictures anew next time: fal could not fetch them."""
        for use in request.pictures:
            self._urls.pop(use.sha256, None)
            if not self._signs:
                self._store.delete(_path(use))
        self._signs = False  # a bucket may let in nobody but its own network

    async def _url(self, use: PictureUse) -> str:
        if use.uri.startswith("https://"):
            return use.uri
        found = self._urls.get(use.sha256)
        if found is None or _is_over(found):
            found = self._urls[use.sha256] = asyncio.create_task(self._found(use))
        return (await asyncio.shield(found)).url

    async def _found(self, use: PictureUse) -> _Found:
        if not self._signs and (remembered := await self._remembered(use)):
            return _Found(remembered.url)
        content = await self._content(use)
        if len(content) <= self._inline_bytes:
            kind = use.path.rpartition(".")[2].replace("jpg", "jpeg")
            return _Found(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
        if signed := await self._signed(use):
            return signed
        if self._signs and (remembered := await self._remembered(use)):
            return _Found(remembered.url)
        name = use.path.rpartition("/")[2]
        uploaded = await self._fal.upload(content, file_name=name, lifetime_s=int(LIFETIME.total_seconds()))
        upload = Upload(url=uploaded.url, expires_at=uploaded.expires_at or datetime.now(UTC) + LIFETIME)
        await self._store.put_async(_path(use), upload.model_dump_json().encode())
        return _Found(upload.url)

    async def _signed(self, use: PictureUse) -> _Found | None:
        """Return a signed URL of the store's copy, if fal can read it from there."""
        endpoint = self._store.endpoint
        if not self._signs or endpoint is None or not await is_within_reach(endpoint, self._fal.hosts):
            return None
        url = await self._store.presigned(use.path, lasting_s=self._wait_s + SIGN_AGAIN_S)
        return _Found(url, asyncio.get_running_loop().time() + SIGN_AGAIN_S) if url else None

    async def _content(self, use: PictureUse) -> bytes:
        """Return the bytes that were planned with: others would be paid for under a false fingerprint."""
        try:
            content = await self._store.get_async(use.path)
        except FileNotFoundError:
            content = b""
        if hashlib.sha256(content).hexdigest() != use.sha256:
            raise LeftOpen(
                NotReached,
                f"the store's copy of the reference {use.reference_id!r}, {use.path}, is "
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


def _is_over(found: asyncio.Task[_Found]) -> bool:
    """Say whether what was found must be looked for again: it failed, or has been handed out for long enough."""
    if not found.done():
        return False
    failed = found.cancelled() or found.exception() is not None
    return failed or found.result().until <= asyncio.get_running_loop().time()


def _path(use: PictureUse) -> str:
    return f"uploads/{use.sha256}.json"

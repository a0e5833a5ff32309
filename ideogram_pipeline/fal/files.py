"""Uploading input files, by either of the two routes of fal's official clients, in parts where they are large.

The key buys an upload URL or a token; the bytes go without it. Everything here may be repeated: it costs nothing.
"""

from __future__ import annotations

import asyncio
import io
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

from PIL import Image

from ideogram_pipeline.fal.answers import Answer, JsonObject, text
from ideogram_pipeline.fal.errors import InvalidCall, UnexpectedAnswer
from ideogram_pipeline.fal.http import Call, Http
from ideogram_pipeline.fal.media import decode_data_uri

MULTIPART_ABOVE_BYTES = 90 * 2**20
"""From which size files go up in parts (the JavaScript client's threshold)."""
PART_BYTES = 10 * 2**20
"""Size of a part, as in both official clients."""
PARTS_AT_A_TIME = 4
"""Parts of one file on their way at a time; each is held in memory."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that a model can fetch."""

    url: str
    """Where it is; public, unless the account's settings say otherwise."""
    expires_at: datetime | None
    """When fal deletes it, if a lifetime was asked for; otherwise the account's settings decide."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Something to upload, readable in pieces."""

    content: bytes | Path
    size: int
    content_type: str
    file_name: str

    async def read(self, start: int = 0, length: int = -1) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start : start + length] if length >= 0 else self.content[start:]
        path = self.content

        def piece() -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)

        try:
            return await asyncio.to_thread(piece)
        except OSError as error:
            raise _unreadable(path, error) from None


@dataclass(frozen=True, slots=True)
class _Token:
    """A bearer token for the CDN."""

    authorization: str
    base_url: str
    expires_at: datetime


class FileCalls:
    """Uploads."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._token: _Token | None = None
        self._token_lock = asyncio.Lock()

    async def upload(
        self,
        content: bytes | Path | str | Image.Image,
        *,
        content_type: str | None = None,
        file_name: str | None = None,
        lifetime_s: int | None = None,
        via: Literal["presigned", "cdn"] = "presigned",
    ) -> Uploaded:
        """Upload bytes, a file, a `data:` URI (the only strings taken) or a picture (as PNG).

        `lifetime_s` is at least 1, for fal takes 0 to mean for ever. Raises `InvalidCall` for what can't be read and
        `FalError` otherwise. A file must not change while it is uploaded.
        """
        source = await _source(content, content_type, file_name)
        if lifetime_s is not None and lifetime_s < 1:
            raise InvalidCall(message=f"lifetime_s is {lifetime_s}, and must be at least 1 second.")
        expires_at = None if lifetime_s is None else datetime.now(UTC) + timedelta(seconds=lifetime_s)
        lifecycle = {} if lifetime_s is None else {"expiration_duration_seconds": lifetime_s}
        # The official Python client sends the lifetime under both names.
        headers = dict.fromkeys(
            ("X-Fal-Object-Lifecycle", "X-Fal-Object-Lifecycle-Preference"), json.dumps(lifecycle)
        )
        send = self._presigned if via == "presigned" else self._cdn
        return Uploaded(await send(source, headers if lifecycle else {}), expires_at)

    async def _presigned(self, source: _Source, lifecycle: Mapping[str, str]) -> str:
        parts = source.size > MULTIPART_ABOVE_BYTES
        operation = "initiate-multipart" if parts else "initiate"
        begun = await self._post(
            f"{self._http.hosts.rest}/storage/upload/{operation}?storage_type=fal-cdn-v3",
            json.dumps({"content_type": source.content_type, "file_name": source.file_name}).encode(),
            lifecycle,
        )
        upload_url, file_url = text(begun.get("upload_url")), text(begun.get("file_url"))
        if not upload_url or not file_url:
            raise _incomplete("storage upload")
        if parts:
            path, mark, query = upload_url.partition("?")
            await self._parts(source, path, mark + query, {})
        else:
            await self._put(upload_url, await source.read(), {"Content-Type": source.content_type})
        return file_url

    async def _cdn(self, source: _Source, lifecycle: Mapping[str, str]) -> str:
        token = await self._cdn_token()
        headers = {
            "Authorization": token.authorization,
            "Content-Type": source.content_type,
            "X-Fal-File-Name": source.file_name,
            **lifecycle,
        }
        url, parts = f"{token.base_url}/files/upload", source.size > MULTIPART_ABOVE_BYTES
        if parts:
            answered = await self._post(f"{url}/multipart", headers=headers, keyed=False)
        else:
            answered = await self._post(url, await source.read(), headers, keyed=False)
        access_url, upload_id = text(answered.get("access_url")), text(answered.get("uploadId"))
        if not access_url or (parts and not upload_id):
            raise _incomplete("CDN")
        if parts:
            authorization = {"Authorization": token.authorization}
            await self._parts(source, f"{access_url}/multipart/{upload_id}", "", authorization)
        return access_url

    async def _cdn_token(self) -> _Token:
        async with self._token_lock:
            if self._token is None or self._token.expires_at < datetime.now(UTC) + timedelta(minutes=1):
                body = await self._post(
                    f"{self._http.hosts.rest}/storage/auth/token?storage_type=fal-cdn-v3", b"{}"
                )
                self._token = _read_token(body)
            return self._token

    async def _parts(self, source: _Source, base: str, query: str, headers: Mapping[str, str]) -> None:
        """Send all parts, each retried by itself, and then the list of them in their order."""
        gate = asyncio.Semaphore(PARTS_AT_A_TIME)

        async def send(part: int) -> JsonObject:
            async with gate:
                content = await source.read((part - 1) * PART_BYTES, PART_BYTES)
                part_headers = {"Content-Type": source.content_type, "Accept-Encoding": "identity", **headers}
                answer = await self._put(f"{base}/{part}{query}", content, part_headers)
            etag = text((answer.object() or {}).get("etag")) or answer.headers.get("etag")
            if not etag:
                raise _incomplete(f"upload of part {part}")
            return {"partNumber": part, "etag": etag}

        count = -(-source.size // PART_BYTES)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(send(part)) for part in range(1, count + 1)]
        except* Exception as failures:
            raise failures.exceptions[0] from None
        await self._post(
            f"{base}/complete{query}",
            json.dumps({"parts": [task.result() for task in tasks]}).encode(),
            headers,
            keyed=False,
        )

    async def _put(self, url: str, content: bytes, headers: Mapping[str, str]) -> Answer:
        return await self._http.fetch(
            Call("PUT", url, self._http.timeouts.transfer_s, headers, content, keyed=False)
        )

    async def _post(
        self, url: str, content: bytes = b"", headers: Mapping[str, str] | None = None, *, keyed: bool = True
    ) -> JsonObject:
        headers = {"Content-Type": "application/json", **(headers or {})}
        answer = await self._http.fetch(
            Call("POST", url, self._http.timeouts.transfer_s, headers, content, keyed)
        )
        return answer.object() or {}


def _read_token(body: JsonObject) -> _Token:
    kind, token, base_url, expires_at = (
        text(body.get(name)) for name in ("token_type", "token", "base_url", "expires_at")
    )
    authorization = f"{kind} {token}"
    try:
        if not (kind and token and base_url and authorization.isascii() and authorization.isprintable()):
            raise ValueError("a field is missing, or can't stand in a header")
        expiry = datetime.fromisoformat(expires_at or "")
    except ValueError:
        raise _incomplete("CDN token request") from None
    return _Token(
        authorization, base_url.rstrip("/"), expiry if expiry.tzinfo else expiry.replace(tzinfo=UTC)
    )


async def _source(
    content: bytes | Path | str | Image.Image, content_type: str | None, file_name: str | None
) -> _Source:
    if isinstance(content, str):
        decoded = decode_data_uri(content)
        content, content_type = decoded.content, content_type or decoded.content_type
    elif isinstance(content, Image.Image):
        content, content_type = await asyncio.to_thread(_png, content), "image/png"
    elif isinstance(content, Path):
        file_name = file_name or content.name
    content_type = content_type or mimetypes.guess_type(file_name or "")[0] or "application/octet-stream"
    file_name = file_name or f"upload{mimetypes.guess_extension(content_type) or '.bin'}"
    if not (content_type + file_name).isascii() or not (content_type + file_name).isprintable():
        raise InvalidCall(message=f"The media type or file name {file_name!r} can't stand in a header.")
    if isinstance(content, bytes):
        return _Source(content, len(content), content_type, file_name)
    try:
        return _Source(content, (await asyncio.to_thread(content.stat)).st_size, content_type, file_name)
    except OSError as error:
        raise _unreadable(content, error) from None


def _unreadable(path: Path, error: OSError) -> InvalidCall:
    return InvalidCall(message=f"{path} can't be read ({type(error).__name__}).")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _incomplete(what: str) -> UnexpectedAnswer:
    return UnexpectedAnswer(message=f"fal's answer to the {what} lacks a field.", may_be_billed=False)

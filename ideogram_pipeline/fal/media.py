"""Downloading the files that answers name: never with the key, never from a private network, never by halves."""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import httpx2

from ideogram_pipeline.fal.answers import Answer, file_refusal
from ideogram_pipeline.fal.errors import InvalidCall, MediaUnavailable, NoAnswer, UnsafeUrl
from ideogram_pipeline.fal.http import Call, Http, Timeouts, repeating
from ideogram_pipeline.fal.keys import FalKey
from ideogram_pipeline.fal.urls import FalHosts, shown

MAX_REDIRECTS = 5
"""Redirects followed for one download."""
_NO_KEY = FalKey("none:none")
"""Stands where a key has to be, and is sent nowhere."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A file, whole."""

    content: bytes
    """Its bytes."""
    content_type: str | None
    """Its media type without parameters, as the server says; it proves nothing."""


class MediaCalls:
    """Downloads."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def download(self, url: str, *, max_bytes: int) -> Downloaded:
        """The file at an https URL, at a URL of a configured host, or in a `data:` URI.

        Redirects are followed by hand, each under the same rules. Raises `UnsafeUrl`, `MediaUnavailable` where the
        file is gone, refused or larger than `max_bytes`, and `NoAnswer` where it keeps breaking off.
        """
        if url.startswith("data:"):
            found = decode_data_uri(url)
            if len(found.content) > max_bytes:
                raise _too_large("The data URI", max_bytes)
            return found
        return await repeating(lambda: self._follow(url, max_bytes))

    async def _follow(self, url: str, max_bytes: int) -> Downloaded:
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._fetch(url, max_bytes)
            if isinstance(found, Downloaded):
                return found
            url = found
        raise UnsafeUrl(
            message=f"More than {MAX_REDIRECTS} redirects, the last to {shown(url)}.", guidance=""
        )

    async def _fetch(self, url: str, max_bytes: int) -> Downloaded | str:
        """The file, or where it has gone to."""
        headers = {"Accept-Encoding": "identity"}
        call = Call("GET", url, self._http.timeouts.transfer_s, headers, keyed=False)
        async with self._http.stream(call) as response:
            if response.status_code in {301, 302, 303, 307, 308} and "location" in response.headers:
                return _joined(url, response.headers["location"])
            if response.status_code != 200:
                raise file_refusal(shown(url), response.status_code)
            # aiohttp holds the body to its Content-Length, so a short one ends in NoAnswer.
            chunks, length = [], 0
            async for chunk in response.aiter_raw():
                chunks.append(chunk)
                length += len(chunk)
                if length > max_bytes:
                    raise _too_large(shown(url), max_bytes)
            media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            return Downloaded(b"".join(chunks), media_type or None)


async def fetch_file(url: str, *, private: frozenset[str], deadline_s: float, max_bytes: int) -> Downloaded:
    """The file at a URL of anybody's, under the rules of `MediaCalls.download`, for those who have no client.

    It is asked for once, takes `deadline_s` seconds at most, and may also lie on a `private` host. Raises as `download`
    does, and `ConnectionFailed`.
    """
    try:
        async with (
            asyncio.timeout(deadline_s),
            Http(_NO_KEY, FalHosts(private=private), Timeouts(transfer_s=deadline_s), 1) as http,
        ):
            return await MediaCalls(http)._follow(url, max_bytes)
    except TimeoutError:
        raise NoAnswer(message=f"{shown(url)} did not come whole within {deadline_s:g} s.") from None


async def ask_anybody(method: str, url: str, *, deadline_s: float) -> Answer:
    """What a server anywhere answers to one request without a key, whatever its status. Raises as `Http.ask` does."""
    async with Http(_NO_KEY, FalHosts(media=(url,)), Timeouts(), 1) as http:
        return await http.ask(Call(method, url, deadline_s, keyed=False))


def _joined(url: str, location: str) -> str:
    try:
        return str(httpx2.URL(url).join(location))
    except (httpx2.InvalidURL, ValueError):
        raise UnsafeUrl(message=f"{shown(url)} redirects to what is no URL.", guidance="") from None


def _too_large(what: str, max_bytes: int) -> MediaUnavailable:
    return MediaUnavailable(
        message=f"{what} is larger than {max_bytes} bytes.", guidance="Raise the limit to take it."
    )


def decode_data_uri(uri: str) -> Downloaded:
    """What a `data:` URI (RFC 2397) holds. Raises `InvalidCall` for one that is malformed."""
    head, comma, payload = uri.removeprefix("data:").partition(",")
    media_type, *parameters = [part.strip() for part in head.split(";")]
    raw = unquote_to_bytes(payload)
    try:
        content = base64.b64decode(b"".join(raw.split()), validate=True) if "base64" in parameters else raw
    except binascii.Error:
        comma = ""
    if not comma:
        raise InvalidCall(message=f"A data URI is malformed: it begins {uri[:30]!r}.")
    return Downloaded(content, media_type.lower() or None)

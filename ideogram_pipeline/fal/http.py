"""The one place where HTTP requests are sent: deadlines, size limits, the key, and what transport failures mean.

Every request has a total deadline, so that a read that hangs can't wait for ever. Redirects are never followed here.
The key is added only for hosts that `FalHosts` names, and original exceptions, which may hold headers, end here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import aiohttp.abc
import httpx2
import stamina
from httpx_aiohttp.httpx2 import AiohttpTransport, Httpx2AiohttpClient

from ideogram_pipeline.fal.answers import Answer, refusal
from ideogram_pipeline.fal.errors import (
    ConnectionFailed,
    FalError,
    InvalidCall,
    NoAnswer,
    NotReady,
    UnsafeUrl,
)
from ideogram_pipeline.fal.keys import FalKey
from ideogram_pipeline.fal.urls import FalHosts, is_public, shown

T = TypeVar("T")

MAX_ANSWER_BYTES = 256 * 2**20
"""Largest answer read into memory; a `sync_mode` result carries its pictures inline."""
KEEPALIVE_S = 3.0
"""How long an idle connection is kept: shorter than servers do, so that a submit hardly ever meets a closed one."""

NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
"""The aiohttp errors after which no byte of the request can have left.

httpx2's own classes can't tell: the transport turns every `aiohttp.ClientConnectionError` into
`httpx2.ConnectTimeout`, also `ServerDisconnectedError`, where the request was sent and read.
"""
TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError)
"""What may escape while a request is sent and read. OSError includes TimeoutError."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds. Each but `connect_s` and `silence_s` bounds a whole call, to its last byte."""

    connect_s: float = 15.0
    """To make a connection."""
    call_s: float = 60.0
    """A status, result, cancel or platform call."""
    submit_s: float = 120.0
    """A submit."""
    transfer_s: float = 600.0
    """One download, or the upload of one file or part."""
    silence_s: float = 45.0
    """The longest silence in a status stream, in which fal sends a comment every 15 s."""


DEFAULT_TIMEOUTS = Timeouts()
"""What suits fal."""


@dataclass(slots=True)
class Http:
    """Two connection pools: one for fal, which may carry the key, and one for files, which never does."""

    key: FalKey
    """Sent to the hosts that take it."""
    hosts: FalHosts
    """Where fal is."""
    timeouts: Timeouts
    """How long to wait."""
    max_connections: int
    """Upper limit of each pool."""
    _fal: httpx2.AsyncClient | None = field(default=None, init=False)
    _files: httpx2.AsyncClient | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        self._fal = _Client(self.max_connections)
        self._files = _Client(self.max_connections, lambda: _PublicResolver(self.hosts.names))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clients, self._fal, self._files = (self._fal, self._files), None, None
        for client in clients:
            if client is not None:
                await client.aclose()

    async def ask(
        self,
        method: str,
        url: str,
        *,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        keyed: bool = True,
    ) -> Answer:
        """Send one request and read its whole answer, whatever its status.

        A request with the key goes to a host that takes it; one without goes where files may go. Raises
        `ConnectionFailed` where nothing was sent, `NoAnswer` where something was, and `UnsafeUrl`.
        """
        started_at = datetime.now(UTC)
        async with self.stream(
            method, url, deadline_s=deadline_s, headers=headers, content=content, keyed=keyed
        ) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise NoAnswer(
                        message=f"The answer of {shown(url)} is larger than {MAX_ANSWER_BYTES} bytes.",
                        guidance="",
                        may_repeat=False,
                    )
        status = response.status_code
        content_read = bytes(body) if status < 400 else self.key.redact(bytes(body))
        return Answer(shown(url), status, response.headers, content_read, started_at)

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        keyed: bool = True,
    ) -> Answer:
        """Ask for something that may be asked for repeatedly, and bring the 2xx answer or raise what `refusal` says."""

        async def once() -> Answer:
            answer = await self.ask(
                method, url, deadline_s=deadline_s, headers=headers, content=content, keyed=keyed
            )
            if not answer.is_success:
                raise refusal(answer)
            return answer

        return await repeating(once)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        deadline_s: float | None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        keyed: bool = True,
    ) -> AsyncIterator[httpx2.Response]:
        """Send one request and hand out the open response; failures inside the block are translated as in `ask`.

        Without a deadline, only the head of the answer has one, and whoever reads the body must mind the time.
        """
        client = self._fal if keyed else self._files
        if client is None:
            raise InvalidCall(
                message="The fal client is not open.", guidance="Use it as `async with FalClient(...)`."
            )
        if keyed and not self.hosts.takes_key(url):
            raise UnsafeUrl(message=f"{shown(url)} is not a host the fal key may be sent to.")
        if not keyed:
            self.hosts.check_media(url)
        authorization = {"Authorization": self.key.header()} if keyed else {}
        # Waiting for a free connection ends before the deadline does, so that a deadline means "sent".
        waiting_s = self.timeouts.connect_s if deadline_s is None else max(deadline_s / 2, 0.001)
        request = client.build_request(
            method,
            url,
            headers={"User-Agent": "ideogram-pipeline", **(headers or {}), **authorization},
            content=content,
            timeout=httpx2.Timeout(None, connect=min(self.timeouts.connect_s, waiting_s), pool=waiting_s),
        )
        try:
            async with asyncio.timeout(deadline_s or self.timeouts.call_s) as deadline:
                response = await client.send(request, stream=True, follow_redirects=False)
                if deadline_s is None:
                    deadline.reschedule(None)
                try:
                    yield response
                finally:
                    await response.aclose()
        except FalError:
            raise
        except TRANSPORT_ERRORS as error:
            # The original may hold the request with its headers, so it isn't chained.
            raise _failure(error, f"{method} {shown(url)}") from None


def _failure(error: Exception, what: str) -> FalError:
    cause = error.__cause__ if isinstance(error, httpx2.HTTPError) and error.__cause__ else error
    kind = type(cause).__name__
    if isinstance(cause, NEVER_SENT):
        return ConnectionFailed(message=f"{what}: no connection ({kind}).")
    return NoAnswer(message=f"{what}: the request was sent, but no whole answer came ({kind}).")


async def repeating(call: Callable[[], Awaitable[T]]) -> T:
    """Make a call that may safely be made again, up to 6 times while its errors say `may_repeat`."""
    async for attempt in stamina.retry_context(
        on=_worth_repeating, attempts=6, timeout=None, wait_initial=0.25, wait_max=15.0
    ):
        with attempt:
            return await call()
    raise AssertionError("stamina either returns or raises")


def _worth_repeating(error: Exception) -> bool:
    return isinstance(error, FalError) and error.may_repeat and not isinstance(error, NotReady)


async def pause(seconds: float) -> None:
    """Wait, unless `no_waiting()` is in force."""
    await asyncio.sleep(0 if stamina.is_testing() else seconds)


@cache
def _tls() -> ssl.SSLContext:
    """What every connection trusts; reading the certificates costs more than many calls, so they are read once."""
    return httpx2.create_ssl_context()


class _PublicResolver(aiohttp.abc.AbstractResolver):
    """Resolves names to public addresses only, so that no URL leads a download into a private network."""

    def __init__(self, trusted: frozenset[str]) -> None:
        self._trusted = trusted
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[aiohttp.abc.ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if host not in self._trusted and not all(is_public(one["host"]) for one in found):
            raise UnsafeUrl(message=f"{host} has a private address.")
        return found

    async def close(self) -> None:
        await self._resolver.close()


class _Client(Httpx2AiohttpClient):
    """An httpx2 client over aiohttp that keeps no cookies; where it connects by itself, it may use its own resolver."""

    def __init__(
        self, max_connections: int, resolver: Callable[[], aiohttp.abc.AbstractResolver] | None = None
    ) -> None:
        self._max_connections = max_connections
        self._resolver = resolver
        super().__init__(cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])))

    # The hooks by which httpx_aiohttp sets its transports. Passing a transport instead would turn the proxies of the
    # environment off; a proxy resolves names by itself.
    def _init_transport(self, *_: Any, **__: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(
            verify=_tls(), client=lambda: self._session(self._resolver and self._resolver())
        )

    def _init_proxy_transport(self, proxy: httpx2.Proxy, *_: Any, **__: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(verify=_tls(), client=self._session, proxy=proxy)

    def _session(self, resolver: aiohttp.abc.AbstractResolver | None = None) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._max_connections, keepalive_timeout=KEEPALIVE_S, resolver=resolver, ssl=_tls()
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

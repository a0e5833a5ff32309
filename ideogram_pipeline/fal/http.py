"""The one place where HTTP requests are sent: deadlines, size limits, the key, and what transport failures mean.

Every request has a total deadline, so that a read that hangs can't wait for ever. Redirects are never followed here.
The key is added only for hosts that `FalHosts` names, and original exceptions, which may hold headers, end here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import aiohttp.abc
import httpx2
import stamina
from httpx_aiohttp.httpx2 import AiohttpTransport, Httpx2AiohttpClient
from httpx_aiohttp.httpx2.transport import AiohttpResponseStream

from ideogram_pipeline import network
from ideogram_pipeline.fal.answers import Answer, file_refusal, refusal
from ideogram_pipeline.fal.errors import (
    ConnectionFailed,
    FalError,
    InvalidCall,
    NoAnswer,
    NotReady,
    UnsafeUrl,
)
from ideogram_pipeline.fal.keys import FalKey
from ideogram_pipeline.fal.urls import FalHosts, is_public, origin_of, parsed, shown

T = TypeVar("T")

MAX_ANSWER_BYTES = 256 * 2**20
"""Largest answer read into memory; a `sync_mode` result carries its pictures inline."""
KEEPALIVE_S = 3.0
"""How long an idle connection is kept: shorter than servers do, so that a submit hardly ever meets a closed one."""

PROXY_WANTS_LOGIN = 407
"""No server but a proxy may answer so (RFC 9110, 15.5.8)."""

FIRST_PAUSE_S = 0.25
"""How long to wait before a call is made a second time, in seconds; then twice as long, and so on."""

NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
"""The aiohttp errors after which no byte of the request can have left.

httpx2's own classes can't tell: the transport turns every `aiohttp.ClientConnectionError` into
`httpx2.ConnectTimeout`, also `ServerDisconnectedError`, where the request was sent and read.
"""
TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.StreamError, aiohttp.ClientError, OSError)
"""What may escape while a request is sent and read. OSError includes TimeoutError."""


AiohttpResponseStream.CHUNK_SIZE = 2**20
"""The transport hands bodies on in so many bytes; with its own 16 KiB a picture takes three times the CPU time."""


def _without_query(record: logging.LogRecord) -> bool:
    """Show a URL in httpx2's own log, where that is on, without its query: a signed one's is as good as a key."""
    if isinstance(record.args, tuple):
        record.args = tuple(shown(str(one)) if isinstance(one, httpx2.URL) else one for one in record.args)
    return True


logging.getLogger("httpx2").addFilter(_without_query)


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


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request to make."""

    method: str
    """Its verb."""
    url: str
    """Where to: with the key, a host that takes it; without, wherever files may be."""
    deadline_s: float | None
    """Seconds for all of it. With None the head of the answer has the usual ones, and the reader minds the rest."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers besides the key's."""
    content: bytes | None = None
    """Its body."""
    keyed: bool = True
    """Whether it carries the key."""


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
    transport: httpx2.AsyncBaseTransport | None = None
    """What carries the requests of both pools in place of the network, for tests; it resolves no names."""
    _fal: httpx2.AsyncClient | None = field(default=None, init=False)
    _files: httpx2.AsyncClient | None = field(default=None, init=False)

    async def __aenter__(self) -> Self:
        if self.transport is None:
            try:
                network.check()
            except ValueError as error:
                raise InvalidCall(message=str(error)) from None
            self._fal = _Client(self.max_connections)
            self._files = _Client(self.max_connections, lambda: _PublicResolver(self.hosts.names))
        else:
            self._fal = httpx2.AsyncClient(transport=self.transport)
            self._files = httpx2.AsyncClient(transport=self.transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        clients, self._fal, self._files = (self._fal, self._files), None, None
        for client in clients:
            if client is not None:
                await client.aclose()

    async def ask(self, call: Call) -> Answer:
        """Make one call and read its whole answer, whatever its status.

        Raises `ConnectionFailed` where nothing was sent, `NoAnswer` where something was, and `UnsafeUrl`.
        """
        async with self.stream(call) as response:
            return await self.read(response)

    async def read(self, response: httpx2.Response) -> Answer:
        """The whole answer of an open response, with the key blacked out should it be echoed."""
        url, body = shown(str(response.url)), bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise NoAnswer(
                    message=f"The answer of {url} is larger than {MAX_ANSWER_BYTES} bytes.",
                    guidance="",
                    may_repeat=False,
                )
        return Answer(url, response.status_code, response.headers, self.key.redact(bytes(body)))

    async def fetch(self, call: Call) -> Answer:
        """Make a call that may safely be repeated, and bring its 2xx answer or raise what the refusal means."""

        async def once() -> Answer:
            answer = await self.ask(call)
            if not answer.is_success:
                raise refusal(answer) if call.keyed else file_refusal(answer.url, answer.status)
            return answer

        return await repeating(once)

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[httpx2.Response]:
        """Make one call and hand out the open response; failures inside the block are translated as in `ask`."""
        client = self._fal if call.keyed else self._files
        if client is None:
            raise InvalidCall(
                message="The fal client is not open.", guidance="Use it as `async with FalClient(...)`."
            )
        if not call.keyed:
            self.hosts.check_media(call.url)
        elif not self.hosts.takes_key(call.url):
            raise UnsafeUrl(message=f"{shown(call.url)} is not a host the fal key may be sent to.")
        authorization = {"Authorization": self.key.header()} if call.keyed else {}
        deadline_s = call.deadline_s or self.timeouts.call_s
        # Waiting for a free connection ends before the deadline does, so that a deadline means "sent".
        waiting = httpx2.Timeout(
            None, connect=min(self.timeouts.connect_s, deadline_s / 2), pool=deadline_s / 2
        )
        request = client.build_request(
            call.method,
            parsed(call.url),
            headers={"User-Agent": "ideogram-pipeline", **call.headers, **authorization},
            content=call.content,
            timeout=waiting,
        )
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                response = await client.send(request, stream=True, follow_redirects=False)
                if call.deadline_s is None:
                    deadline.reschedule(None)
                try:
                    if response.status_code == PROXY_WANTS_LOGIN:
                        raise _held_up(call, refused_status=PROXY_WANTS_LOGIN)
                    yield response
                finally:
                    await response.aclose()
        except TRANSPORT_ERRORS as error:
            # The original may hold the request with its headers, so it isn't chained.
            raise _failure(error, call) from None


def _failure(error: Exception, call: Call) -> FalError:
    cause = error.__cause__ if isinstance(error, httpx2.HTTPError) and error.__cause__ else error
    what, kind = f"{call.method} {shown(call.url)}", type(cause).__name__
    host = origin_of(call.url)[1]
    if isinstance(cause, aiohttp.ClientConnectorCertificateError):
        reason = getattr(cause.certificate_error, "verify_message", "") or kind
        return _no_way(call, network.distrusted(host, reason))
    if isinstance(cause, aiohttp.ClientHttpProxyError):
        return _held_up(call, refused_status=cause.status)
    if isinstance(cause, aiohttp.ClientProxyConnectionError):
        proxy = network.proxy_for(call.url) or "the environment"
        return _no_way(call, f"the proxy of {proxy} can't be reached. Check its address", may_pass=True)
    if isinstance(cause, NEVER_SENT):
        return ConnectionFailed(message=f"{what}: no connection ({kind}).")
    return NoAnswer(message=f"{what}: the request was sent, but no whole answer came ({kind}).")


def _held_up(call: Call, refused_status: int) -> ConnectionFailed:
    """What a proxy's refusal to let a request through means; it never reached its host."""
    host, through = origin_of(call.url)[1], network.proxy_for(call.url)
    what = network.refused_by_proxy(host, refused_status, through)
    return _no_way(call, what, may_pass=refused_status >= 500)


def _no_way(call: Call, why: str, *, may_pass: bool = False) -> ConnectionFailed:
    """The error where nothing was sent, and nothing can be until somebody mends what stands in the way."""
    what, _, guidance = why.partition(". ")
    return ConnectionFailed(
        message=f"{call.method} {shown(call.url)}: {what}.",
        guidance=f"{guidance}." if guidance else "",
        may_repeat=may_pass,
        may_resubmit=may_pass,
    )


def worth_repeating(error: Exception) -> bool:
    """Say whether the same call may bring another answer if it is made again in a moment."""
    return isinstance(error, FalError) and error.may_repeat and not isinstance(error, NotReady)


async def repeating(call: Callable[[], Awaitable[T]], on: Callable[[Exception], bool] = worth_repeating) -> T:
    """Make a call that may safely be made again after errors that `on` names, up to 6 times."""
    try:
        return await call()  # nearly every call, for which stamina would be the dearest part
    except FalError as error:
        if not on(error):
            raise
    await pause(FIRST_PAUSE_S)
    async for attempt in stamina.retry_context(
        on=on, attempts=5, timeout=None, wait_initial=2 * FIRST_PAUSE_S, wait_max=15.0
    ):
        with attempt:
            return await call()
    raise AssertionError("stamina either returns or raises")


async def pause(seconds: float) -> None:
    """Wait, unless `no_waiting()` is in force."""
    await asyncio.sleep(0 if stamina.is_testing() else seconds)


class _PublicResolver(aiohttp.abc.AbstractResolver):
    """Resolves names to public addresses only, so that no URL leads a download into a private network."""

    def __init__(self, trusted: frozenset[str]) -> None:
        self._trusted = trusted
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[aiohttp.abc.ResolveResult]:
        try:
            found = await self._resolver.resolve(host, port, family)
        except UnicodeError as error:  # a label is empty or longer than any can be
            raise OSError(f"{host[:80]!r} is no host name") from error
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
        super().__init__(cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])), mounts=network.DIRECT)

    # The hooks by which httpx_aiohttp sets its transports. Passing a transport instead would turn the proxies of the
    # environment off; a proxy resolves names by itself.
    def _init_transport(self, *_: Any, **__: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(
            verify=network.trust(), client=lambda: self._session(self._resolver and self._resolver())
        )

    def _init_proxy_transport(self, proxy: httpx2.Proxy, *_: Any, **__: Any) -> httpx2.AsyncBaseTransport:
        return AiohttpTransport(verify=network.trust(), client=self._session, proxy=proxy)

    def _session(self, resolver: aiohttp.abc.AbstractResolver | None = None) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._max_connections, keepalive_timeout=KEEPALIVE_S, resolver=resolver, ssl=network.trust()
        )
        return aiohttp.ClientSession(
            read_bufsize=2**20, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
        )

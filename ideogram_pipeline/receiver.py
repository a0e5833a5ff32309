"""The webhook receiver: takes what fal delivers and puts it into the store's inbox, for whichever run waits for it.

    POST /<batch>/<fingerprint>/<attempt>/<token>   a delivery; runs make these addresses (see `generation.inbox`)
    GET  /health                                    200 while the process lives
    GET  /ready                                     200 if the store can be written and fal's keys could be read

It keeps nothing itself, so any number may stand behind one address, and one may be stopped at any time: a delivery is
answered with 200 only once it is in the store for good, and what isn't answered so, fal delivers again.

    200     it is in the inbox, now or already
    401     the address is not one of this store's, or fal didn't sign it, or more than five minutes ago
    413     it is larger than any answer of Ideogram's
    503     the store or fal's keys can't be had, or it took too long

It needs the store and no key: what is fal's is proven by fal's published keys. Whoever has an account at fal can have
fal sign and deliver something to any address, so the address must carry a token that only this store's runs can make;
a body is not even read without. What a letter says is believed only of the request that the ledger, or fal asked with
our key, says is ours.

`ideogram-pipeline webhooks` serves it. As an app for a server of your own:

    uvicorn --factory ideogram_pipeline.receiver:build_app
    app = build_app(); Starlette(routes=[Mount("/ideogram", app)], lifespan=app.router.lifespan_context)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import time
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ideogram_pipeline.errors import ConfigurationError, StoreError
from ideogram_pipeline.fal import FalClient, FalError, FalHosts, UnsafeUrl, WebhookRejected
from ideogram_pipeline.generation.inbox import Address, Letter, Secret, put_letter
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store

MAX_BODY_BYTES = 64 * 2**20
"""No delivery is read beyond this. Eight pictures that travel inside an answer (`sync_mode`) are about 25 MB."""
ANSWER_WITHIN_S = 12.0
"""fal gives up a first delivery after 15 s (fal docs, webhooks page)."""
READY_FOR_S = 60.0
"""The store is written for `/ready` at most so often."""
GRACE_S = 20
"""So many seconds are given to what is being delivered when the receiver is told to stop."""

NOT_SIGNED = "fal did not sign this, or not lately"
"""What the answer says where the address is right and the signature is not."""

_NOBODY = "receiver:receiver"
_ATTEMPT = re.compile(r"[1-9]\d{0,3}")

_log = logging.getLogger(__name__)


class Receiver:
    """Takes deliveries. Its connection to fal is opened when it is first needed, in the loop that serves it."""

    def __init__(self, store: Store, hosts: FalHosts) -> None:
        """Put into this store what these hosts sign."""
        self._store = store
        self._fal = FalClient(_NOBODY, hosts)
        self._open = contextlib.AsyncExitStack()
        self._is_open = False
        self._secret: Secret | None = None
        self._written_at = -float("inf")

    async def deliver(self, request: Request) -> Response:
        """Take one delivery."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await self._deliver(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except (StoreError, FalError, TimeoutError) as error:
            _log.error(
                "a delivery could not be taken, fal will try again: %s", str(error) or "it took too long"
            )
            return PlainTextResponse("not now", 503)

    async def _deliver(self, request: Request) -> Response:
        address = await self._address(request)
        if address is None:
            _log.warning("a delivery to an address that is not ours was refused")
            return PlainTextResponse("no such address", 401)
        body = await _body(request)
        if body is None:
            _log.warning("a delivery to %s was refused: it is larger than %s bytes", address, MAX_BODY_BYTES)
            return PlainTextResponse("too large", 413)
        try:
            delivery = await (await self._client()).accept_webhook(request.headers, body)
        except WebhookRejected as error:
            _log.warning("a delivery to %s was refused: %s", address, error.message)
            return PlainTextResponse(NOT_SIGNED, 401)
        await put_letter(self._store, address, Letter.of(delivery))
        return PlainTextResponse("taken")

    async def ready(self, _: Request) -> Response:
        """Say whether deliveries can be taken now."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                await self._own_secret()
                await (await self._client()).webhook_keys()
                if time.monotonic() - self._written_at > READY_FOR_S:
                    await self._store.put_async("inbox/ready", b"a receiver was ready")
                    self._written_at = time.monotonic()
        except (StoreError, FalError, TimeoutError) as error:
            _log.error("not ready: %s", str(error) or "it took too long")
            return PlainTextResponse("not ready; the log says why", 503)
        return PlainTextResponse("ready")

    async def health(self, _: Request) -> Response:
        """Say that the process lives."""
        return PlainTextResponse("alive")

    async def close(self) -> None:
        """Close the connection to fal."""
        await self._open.aclose()

    async def _address(self, request: Request) -> Address | None:
        """Return whose end is delivered to this address, if this store made it."""
        given = request.path_params
        if not _ATTEMPT.fullmatch(given["attempt"]):
            return None
        address = Address(given["batch"], given["fingerprint"], int(given["attempt"]))
        return address if address.is_ours(given["token"], await self._own_secret()) else None

    async def _own_secret(self) -> Secret:
        if self._secret is None:
            self._secret = await asyncio.to_thread(Secret.of, self._store)
        return self._secret

    async def _client(self) -> FalClient:
        if not self._is_open:
            self._is_open = True
            await self._open.enter_async_context(self._fal)
        return self._fal


async def _body(request: Request) -> bytes | None:
    """Return the body, or None where it is too large."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def build_app(settings: Settings | None = None) -> Starlette:
    """Return the receiver as an ASGI app, with the settings of the environment unless others are given.

    Raises:
        ConfigurationError: nobody can say whose signatures to believe.
        StoreError: the store can't be opened.
    """
    settings = settings or Settings.without_key()
    receiver = Receiver(Store.open(settings.store), _hosts(settings))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await receiver.close()

    routes = [
        Route("/health", receiver.health, methods=["GET"]),
        Route("/ready", receiver.ready, methods=["GET"]),
        Route("/{batch}/{fingerprint}/{attempt}/{token}", receiver.deliver, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _hosts(settings: Settings) -> FalHosts:
    """Return where the keys are published of whom the settings name: fal, or a sandbox."""
    if settings.backend == "fal":
        rest = settings.fal_rest_url or FalHosts().rest
    else:
        rest = settings.fal_rest_url or settings.fal_queue_url or ""
    try:
        return FalHosts.at(rest)
    except UnsafeUrl as error:
        raise ConfigurationError(
            "FAL_QUEUE_URL does not say where the sandbox is whose deliveries are to be taken. Set it, or "
            f"IDEOGRAM_BACKEND=fal. ({error.message})"
        ) from None


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve the receiver until the process is told to stop (SIGTERM, SIGINT); what is being delivered is finished.

    Raises:
        ConfigurationError, StoreError: as `build_app`.
        OSError: the port is taken.
    """
    app = build_app(settings)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=2048) as listener:
        shown = f"[{host}]" if ":" in host else host
        print(f"Receiver at http://{shown}:{listener.getsockname()[1]}, for {settings.store}", flush=True)  # noqa: T201
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S, server_header=False
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])

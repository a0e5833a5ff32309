"""Tells callers that a request has ended, signed as fal signs.

What belongs here: the deliveries, the sandbox's own Ed25519 key, and the address where the public half is fetched.
Unlike fal, which drops private targets, the sandbox delivers to loopback addresses: it is there to try receivers.
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import JsonValue
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ideogram_pipeline.sandbox.config import FaultKind
from ideogram_pipeline.sandbox.http import outward_client
from ideogram_pipeline.sandbox.pictures import PictureProblem
from ideogram_pipeline.sandbox.queue import Queue
from ideogram_pipeline.sandbox.results import output
from ideogram_pipeline.sandbox.state import Rendered, Request, State
from ideogram_pipeline.sandbox.studio import Studio

ATTEMPTS = 32
"""Deliveries tried while the result is kept: a first one and 31 more (fal docs, webhooks page)."""
LATE_S = 2.0
"""How much later a late delivery comes."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 60.0
_LOOK_S = 0.05
_FIRST_TIMEOUT_S, _TIMEOUT_S = 15.0, 120.0
_USER_ID = "sandbox"


class Courier:
    """Delivers webhooks while it is on duty."""

    def __init__(self, queue: Queue, state: State, studio: Studio) -> None:
        """Announce this queue's requests."""
        self._queue = queue
        self._state = state
        self._studio = studio
        self._called = asyncio.Event()
        fresh = Ed25519PrivateKey.generate().private_bytes_raw()
        self._key = Ed25519PrivateKey.from_private_bytes(state.secret("webhook-key", fresh))

    def routes(self) -> list[Route]:
        """Where receivers fetch the key."""
        return [Route("/.well-known/jwks.json", self.jwks, methods=["GET"])]

    async def jwks(self, request: HttpRequest) -> Response:  # noqa: ARG002 - a handler's signature
        """The public key as a JSON Web Key Set."""
        x = base64.urlsafe_b64encode(self._key.public_key().public_bytes_raw()).rstrip(b"=").decode()
        return JSONResponse(
            {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x, "kid": "sandbox", "use": "sig"}]}
        )

    def wake(self) -> None:
        """There is, or will be, something to deliver."""
        self._called.set()

    @contextlib.asynccontextmanager
    async def on_duty(self) -> AsyncIterator[None]:
        """Deliver until the block is left; what is under way then is given up."""
        self.wake()
        async with outward_client(follow_redirects=False, timeout_s=_FIRST_TIMEOUT_S) as http:
            round_ = asyncio.create_task(self._rounds(http))
            try:
                yield
            finally:
                round_.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await round_

    async def _rounds(self, http: httpx2.AsyncClient) -> None:
        async with asyncio.TaskGroup() as deliveries:
            while True:
                await self._called.wait()
                self._queue.catch_up()
                for request in self._state.to_announce():
                    if self._state.claim_webhook(request):
                        deliveries.create_task(self._deliver(http, request))
                if self._state.webhooks_wanted():
                    await asyncio.sleep(_LOOK_S)
                else:
                    self._called.clear()

    async def _deliver(self, http: httpx2.AsyncClient, request: Request) -> None:
        if not _is_this_machine(request.submission.webhook or ""):
            return
        if self._struck(FaultKind.WEBHOOK_LOST, request):
            return
        body = json.dumps(await self._letter(request)).encode()
        if self._struck(FaultKind.WEBHOOK_LATE, request):
            await asyncio.sleep(LATE_S)
        await self._deliver_until_taken(http, request, body)
        if self._struck(FaultKind.WEBHOOK_TWICE, request):
            await self._deliver_until_taken(http, request, body)

    def _struck(self, kind: FaultKind, request: Request) -> bool:
        given = request.submission.given
        return self._queue.fault((kind,), given.digest, given.prompt) is not None

    async def _deliver_until_taken(self, http: httpx2.AsyncClient, request: Request, body: bytes) -> None:
        timeout_s, pause_s = _FIRST_TIMEOUT_S, _FIRST_PAUSE_S
        for _ in range(ATTEMPTS):
            self._state.count("webhooks")
            with contextlib.suppress(httpx2.HTTPError, httpx2.InvalidURL):
                headers = self._headers(request.id, body)
                answer = await http.post(
                    request.submission.webhook or "", content=body, headers=headers, timeout=timeout_s
                )
                if answer.is_success or answer.is_redirect:
                    return
            await asyncio.sleep(pause_s)
            timeout_s, pause_s = _TIMEOUT_S, min(2 * pause_s, _LONGEST_PAUSE_S)
            if self._state.request(request.id) is None or self._queue.expired(request):
                return

    async def _letter(self, request: Request) -> dict[str, JsonValue]:
        submission, outcome = request.submission, await self._queue.outcome(request)
        letter: dict[str, JsonValue] = {"request_id": request.id, "gateway_request_id": request.id}
        if isinstance(outcome, Rendered):
            try:
                payload = await output(submission, outcome, submission.base_url, self._studio)
            except PictureProblem as problem:
                return {**letter, "status": "ERROR", "payload": None, "payload_error": str(problem)}
            return {**letter, "status": "OK", "payload": payload}
        return {
            **letter,
            "status": "ERROR",
            "error": f"Invalid status code: {outcome.status}",
            "payload": {"detail": outcome.detail},
        }

    def _headers(self, request_id: str, body: bytes) -> dict[str, str]:
        stamp = str(int(time.time()))
        message = "\n".join((request_id, _USER_ID, stamp, hashlib.sha256(body).hexdigest()))
        return {
            "Content-Type": "application/json",
            "X-Fal-Webhook-Request-Id": request_id,
            "X-Fal-Webhook-User-Id": _USER_ID,
            "X-Fal-Webhook-Timestamp": stamp,
            "X-Fal-Webhook-Signature": self._key.sign(message.encode()).hex(),
        }


def _is_this_machine(url: str) -> bool:
    """Whether a receiver is on this machine: a rehearsal does not call the outside world."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False

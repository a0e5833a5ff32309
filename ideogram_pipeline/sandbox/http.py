"""What all of the sandbox's hosts share in how they speak HTTP.

What belongs here: the key check, the sandbox's own address, hanging up on a caller, and the client for calls out.
"""

import secrets
from collections.abc import Awaitable, Callable

import httpx2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ideogram_pipeline import network
from ideogram_pipeline.sandbox.config import SandboxSettings

HANG_UP = "ideogram_pipeline.sandbox.hang_up"
"""Name of the ASGI extension that closes the connection; ``server`` provides it."""

Handler = Callable[[Request], Awaitable[Response]]
"""Answers a request."""


def base_url(request: Request) -> str:
    """The sandbox's address as the caller knows it."""
    return f"{request.url.scheme}://{request.headers.get('host', request.url.netloc)}"


def key_problem(request: Request, settings: SandboxSettings) -> str | None:
    """What is wrong with the caller's key, in fal's words; None when it is accepted."""
    sent = request.headers.get("authorization")
    if sent is None:
        return "Authorization header is required"
    scheme, _, key = sent.partition(" ")
    if scheme.lower() == "bearer":
        return "bearer: unable to decode issuer"
    wanted = settings.key.get_secret_value() if settings.key else key
    accepted = scheme.lower() == "key" and key and secrets.compare_digest(key.encode(), wanted.encode())
    return None if accepted else "invalid key credentials"


def detail(status: int, message: str) -> JSONResponse:
    """An error as queue.fal.run and rest.fal.ai word it."""
    return JSONResponse({"detail": message}, status)


def outward_client(*, follow_redirects: bool, timeout_s: float) -> httpx2.AsyncClient:
    """A client for pictures and webhook receivers elsewhere."""
    return httpx2.AsyncClient(
        verify=network.trust(), mounts=network.DIRECT, follow_redirects=follow_redirects, timeout=timeout_s
    )


class HangUp(Response):
    """Closes the connection, after the beginning of an answer or without any."""

    def __init__(self, beginning: bytes = b"", promised: int = 0) -> None:
        """Announce ``promised`` bytes and send ``beginning``, or say nothing at all."""
        super().__init__()
        self._beginning = beginning
        self._promised = promised

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what is to be sent and close."""
        if self._promised:
            length = str(self._promised).encode()
            headers = [(b"content-type", b"image/png"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": self._beginning, "more_body": True})
        scope["extensions"][HANG_UP]()
        while (await receive())["type"] != "http.disconnect":
            pass

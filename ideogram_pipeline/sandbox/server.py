"""Serves the sandbox: in the foreground, or in a thread for as long as a ``with`` block lasts.

What belongs here: uvicorn, the socket and the thread.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx2
import uvicorn
from pydantic import TypeAdapter
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from ideogram_pipeline import network
from ideogram_pipeline.sandbox.app import create_app
from ideogram_pipeline.sandbox.config import DEFAULT_PORT, SandboxSettings
from ideogram_pipeline.sandbox.control import Change, RecordedRequest, Stats
from ideogram_pipeline.sandbox.http import HANG_UP

_BACKLOG = 2048
_GRACE_S = 3
_REQUESTS = TypeAdapter(list[RecordedRequest])


@dataclass(frozen=True, slots=True)
class RunningSandbox:
    """A sandbox that is being served."""

    url: str
    """Its address, which stands for all of fal's hosts."""

    def stats(self) -> Stats:
        """What it has been asked so far."""
        return Stats.model_validate_json(self._call("GET", "stats"))

    def requests(self) -> list[RecordedRequest]:
        """The submits it has accepted, oldest first."""
        return _REQUESTS.validate_json(self._call("GET", "requests"))

    def change(self, change: Change) -> None:
        """Change its settings for what comes from now on."""
        self._call("POST", "settings", change.model_dump_json(exclude_none=True))

    def reset(self) -> None:
        """Make it forget everything."""
        self._call("POST", "reset")

    def _call(self, method: str, path: str, body: str = "") -> bytes:
        url = f"{self.url}/sandbox/{path}"
        answer = httpx2.request(
            method, url, content=body, timeout=30.0, trust_env=False, verify=network.trust()
        )
        answer.raise_for_status()
        return answer.content


def environment(url: str, settings: SandboxSettings) -> Mapping[str, str]:
    """The variables that point the pipeline at a sandbox with this address."""
    return {
        "IDEOGRAM_BACKEND": "sandbox",
        "FAL_KEY": settings.key.get_secret_value() if settings.key else "sandbox:sandbox",
        "FAL_QUEUE_URL": url,
        "FAL_REST_URL": url,
        "FAL_API_URL": url,
    }


@contextmanager
def running_sandbox(settings: SandboxSettings | None = None) -> Iterator[RunningSandbox]:
    """Serve a sandbox in a thread until the block is left. Raises OSError when the port is taken."""
    settings = settings or SandboxSettings()
    with _listen(settings.host, settings.port) as listener:
        server = _Server(settings)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="sandbox", daemon=True
        )
        thread.start()
        # connections wait in the listener's backlog until the server takes them, so there is nothing to wait for
        try:
            yield RunningSandbox(_url(listener))
        finally:
            server.should_exit = True
            thread.join()


def serve(settings: SandboxSettings | None = None) -> None:
    """Serve a sandbox in the foreground until it is interrupted. Raises OSError when the port is taken."""
    settings = settings or SandboxSettings()
    with _listen(settings.host, settings.port or DEFAULT_PORT) as listener:
        url = _url(listener)
        variables = "\n".join(
            f"  export {name}={value}" for name, value in environment(url, settings).items()
        )
        print(f"Sandbox at {url}, remembering in {settings.state}. To use it:\n{variables}", flush=True)  # noqa: T201
        with suppress(KeyboardInterrupt):
            _Server(settings).run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, settings: SandboxSettings) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(settings),
                http=_Protocol,
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )


class _Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]  # of httptools or h11, as installed
    """Lets the app close the connection it answers on."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        app: ASGIApp = self.config.loaded_app

        async def with_hang_up(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "extensions": {HANG_UP: transport.close}}, receive, send)

        self.app = with_hang_up


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

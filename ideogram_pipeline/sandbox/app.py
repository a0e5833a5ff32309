"""queue.fal.run's addresses, and the app that serves all of fal's hosts on one port.

What belongs here: from HTTP to the queue and back, and the assembly. The addresses of fal's other hosts are in
``storage`` (rest.fal.ai, v3.fal.media) and ``platform`` (api.fal.ai), those that only a sandbox has in ``control``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from pydantic import JsonValue, TypeAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ideogram_pipeline.ideogram.endpoints import ENDPOINTS_BY_ID
from ideogram_pipeline.sandbox import queue, state
from ideogram_pipeline.sandbox.config import FaultKind, SandboxSettings
from ideogram_pipeline.sandbox.control import Control
from ideogram_pipeline.sandbox.http import HangUp, base_url, detail, key_problem
from ideogram_pipeline.sandbox.pictures import PictureProblem, PictureShelf
from ideogram_pipeline.sandbox.platform import PlatformApi
from ideogram_pipeline.sandbox.results import output
from ideogram_pipeline.sandbox.storage import StorageApi
from ideogram_pipeline.sandbox.studio import Studio
from ideogram_pipeline.sandbox.webhooks import Courier

_SUBMIT_FAULTS: Mapping[FaultKind, Response] = {
    FaultKind.LOCKED_BALANCE: detail(
        403, "User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing."
    ),
    FaultKind.SUBMIT_429: detail(429, "Too many requests"),
    FaultKind.SUBMIT_503: HTMLResponse(
        "<html><head><title>503 Service Temporarily Unavailable</title></head>"
        "<body><center><h1>503 Service Temporarily Unavailable</h1></center><hr>nginx</body></html>",
        503,
    ),
    FaultKind.SUBMIT_500: detail(500, "Internal server error"),
    FaultKind.DROP_BEFORE_ACCEPT: HangUp(),
}
_ARGUMENTS = TypeAdapter(dict[str, JsonValue])
_KEEPALIVE_S = 15.0
_STREAM_STEP_S = 0.05


def create_app(settings: SandboxSettings | None = None) -> Starlette:
    """The sandbox as an ASGI app. Faults that hang up need ``server`` to run it."""
    settings = settings or SandboxSettings()
    memory = state.State(settings.state)
    shelf = PictureShelf(memory)
    studio = Studio(shelf, settings.mask_repaints, settings.drawing)
    requests = queue.Queue(settings, memory, studio)
    courier = Courier(requests, memory, studio)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with courier.on_duty():
            yield
        await shelf.close()
        memory.close()

    routes = [
        *Control(requests, memory, shelf).routes(),
        *PlatformApi(requests, memory, studio).routes(),
        *StorageApi(requests, memory, studio).routes(),
        *courier.routes(),
        *QueueApi(requests, memory, studio, courier).routes(),
    ]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={PictureProblem: _gone})


async def _gone(request: Request, problem: Exception) -> Response:  # noqa: ARG001 - a handler's signature
    return detail(410, f"A picture this one is painted from has gone. {problem}")


class QueueApi:
    """queue.fal.run."""

    def __init__(self, requests: queue.Queue, memory: state.State, studio: Studio, courier: Courier) -> None:
        """Put requests into this queue."""
        self._queue = requests
        self._state = memory
        self._studio = studio
        self._courier = courier

    def routes(self) -> list[Route]:
        """Submit takes the whole endpoint id; everything after it only the owner and the app."""
        request = "/{owner}/{app}/requests/{request_id}"
        return [
            Route(f"{request}/status", self.status, methods=["GET"]),
            Route(f"{request}/status/stream", self.stream, methods=["GET"]),
            Route(f"{request}/cancel", self.cancel, methods=["PUT"]),
            Route(request, self.result, methods=["GET"]),
            Route("/{endpoint_id:path}", self.submit, methods=["POST"]),
        ]

    async def submit(self, request: Request) -> Response:
        """Accept an input unseen: what is wrong with it is told by its result."""
        self._state.count("submits")
        given = await self._given(request)
        if isinstance(given, Response):
            return given
        try:
            envelope = _envelope(request)
        except ValueError:
            return detail(400, "X-Fal-Request-Start-Timeout is not a number")
        if struck := self._queue.fault(tuple(_SUBMIT_FAULTS), given.digest, given.prompt):
            return _SUBMIT_FAULTS[struck]
        accepted = self._queue.accept(given, envelope)
        if envelope.webhook:
            self._courier.wake()
        if self._queue.fault((FaultKind.DROP_AFTER_ACCEPT,), given.digest, given.prompt):
            return HangUp()
        body = {
            "status": "IN_QUEUE",
            "request_id": accepted.id,
            **_addresses(accepted, base_url(request)),
            "logs": None,
            "metrics": {},
            "queue_position": self._state.ahead_of(accepted) if accepted.phase is state.Phase.QUEUED else 0,
        }
        return JSONResponse(body, headers={"x-fal-request-id": accepted.id})

    async def _given(self, request: Request) -> state.Input | Response:
        endpoint_id = request.path_params["endpoint_id"]
        if problem := key_problem(request, self._queue.settings):
            return detail(401, problem)
        if endpoint_id not in ENDPOINTS_BY_ID:
            return detail(404, f"Application {endpoint_id!r} not found")
        longest = request.query_params.get("fal_max_queue_length", "")
        if longest.isdecimal() and self._state.queued() > int(longest):
            return detail(429, "Queue is full")
        try:
            return self._queue.read(endpoint_id, _ARGUMENTS.validate_json(await request.body()))
        except ValueError:
            return detail(400, "The body is not a JSON object")

    def _find(self, request: Request) -> state.Request | None:
        found = self._queue.find(request.path_params["request_id"])
        if found is None:
            return None
        owner, app = found.submission.given.endpoint_id.split("/")[:2]
        return found if (owner, app) == (request.path_params["owner"], request.path_params["app"]) else None

    async def status(self, request: Request) -> Response:
        """How far a request has come: 202 until it is completed, then 200."""
        self._state.count("status_calls")
        if refusal := self._unknown_key(request):
            return refusal
        found = self._find(request)
        if found is None:
            return JSONResponse({"status": "NOT_FOUND"}, 404)
        body = await self._status(found, base_url(request), logs=_wants_logs(request))
        done = found.phase is state.Phase.DONE
        return JSONResponse(body, 200 if done else 202, headers={"x-fal-request-id": found.id})

    def _unknown_key(self, request: Request) -> Response | None:
        # seen on the real queue: without a header an id nobody knows is 404, with a wrong key 401
        if "authorization" not in request.headers and self._find(request) is None:
            return None
        problem = key_problem(request, self._queue.settings)
        return detail(401, problem) if problem else None

    async def _status(self, found: state.Request, base: str, *, logs: bool) -> dict[str, JsonValue]:
        body: dict[str, JsonValue] = {
            "status": _STATUS[found.phase],
            "request_id": found.id,
            **_addresses(found, base),
            "logs": _logs(found) if logs else None,
            "metrics": {},
        }
        if found.phase is state.Phase.QUEUED:
            body["queue_position"] = self._state.ahead_of(found)
        if found.phase is state.Phase.DONE:
            outcome = await self._queue.outcome(found)
            if isinstance(outcome, state.Rendered):
                body["metrics"] = {"inference_time": round((found.ends_at or 0) - (found.started_at or 0), 3)}
            elif outcome.error_type:
                body["error"], body["error_type"] = outcome.detail, outcome.error_type
        return body

    async def stream(self, request: Request) -> Response:
        """The status as server-sent events, one for each change, until it is completed."""
        if refusal := self._unknown_key(request):
            return refusal
        found = self._find(request)
        if found is None:
            return JSONResponse({"status": "NOT_FOUND"}, 404)
        events = self._events(found.id, base_url(request), logs=_wants_logs(request))
        return StreamingResponse(events, media_type="text/event-stream")

    async def _events(self, request_id: str, base: str, *, logs: bool) -> AsyncIterator[str]:
        told, silent_s = "", 0.0
        while found := self._queue.find(request_id):
            event = json.dumps(await self._status(found, base, logs=logs))
            if event != told:
                told, silent_s = event, 0.0
                yield f"data: {event}\n\n"
            if found.phase is state.Phase.DONE:
                return
            if silent_s >= _KEEPALIVE_S:
                silent_s = 0.0
                yield ": ping\n\n"
            await asyncio.sleep(_STREAM_STEP_S)
            silent_s += _STREAM_STEP_S

    async def result(self, request: Request) -> Response:
        """What the model answered, with the model's own HTTP status."""
        self._state.count("result_calls")
        if refusal := self._unknown_key(request):
            return refusal
        found = self._find(request)
        if found is None or found.submission.is_forgotten:
            return detail(404, "Request not found")
        if found.phase is not state.Phase.DONE:
            return detail(400, "Request is still in progress")
        outcome = await self._queue.outcome(found)
        if self._queue.expired(found):
            return detail(404, "Request not found")
        headers = {"x-fal-request-id": found.id}
        if isinstance(outcome, state.Rendered):
            headers["X-Fal-Billable-Units"] = str(outcome.images)
            return JSONResponse(
                await output(found.submission, outcome, base_url(request), self._studio), headers=headers
            )
        headers["X-Fal-Billable-Units"] = "0"
        headers["X-Fal-Needs-Retry"] = "1" if outcome.error_type == "runner_disconnected" else "0"
        if outcome.start_timeout:
            headers["X-Fal-Request-Timeout-Type"] = "user"
        body: dict[str, JsonValue] = {"detail": outcome.detail}
        if outcome.error_type:
            headers["X-Fal-Error-Type"] = body["error_type"] = outcome.error_type
        return JSONResponse(body, outcome.status, headers=headers)

    async def cancel(self, request: Request) -> Response:
        """Take a queued request out of the queue, or ask a running one to stop."""
        self._state.count("cancels")
        if refusal := self._unknown_key(request):
            return refusal
        found = self._find(request)
        if found is None:
            return JSONResponse({"status": "NOT_FOUND"}, 404)
        answer = self._queue.cancel(found)
        self._courier.wake()
        return JSONResponse({"status": answer}, _CANCEL_STATUS[answer])


_STATUS: Mapping[state.Phase, str] = {
    state.Phase.QUEUED: "IN_QUEUE",
    state.Phase.RUNNING: "IN_PROGRESS",
    state.Phase.DONE: "COMPLETED",
}
_CANCEL_STATUS: Mapping[queue.CancelAnswer, int] = {
    queue.CancelAnswer.OK: 200,
    queue.CancelAnswer.CANCELLATION_REQUESTED: 202,
    queue.CancelAnswer.ALREADY_COMPLETED: 400,
}


def _envelope(request: Request) -> queue.Envelope:
    headers = request.headers
    timeout = headers.get("x-fal-request-start-timeout") or headers.get("x-fal-request-timeout")
    return queue.Envelope(
        headers={name: value for name, value in headers.items() if name not in ("authorization", "cookie")},
        base_url=base_url(request),
        webhook=request.query_params.get("fal_webhook"),
        start_timeout_s=float(timeout) if timeout else None,
    )


def _addresses(request: state.Request, base: str) -> dict[str, JsonValue]:
    owner, app = request.submission.given.endpoint_id.split("/")[:2]
    address = f"{base}/{owner}/{app}/requests/{request.id}"
    return {
        "response_url": address,
        "status_url": f"{address}/status",
        "cancel_url": f"{address}/cancel",
    }


def _wants_logs(request: Request) -> bool:
    return request.query_params.get("logs", "").lower() in ("1", "true")


def _logs(request: state.Request) -> list[JsonValue]:
    lines: list[JsonValue] = []

    def say(at: float, message: str) -> None:
        stamp = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines.append({"message": message, "timestamp": stamp, "level": "INFO", "source": "USER"})

    if request.started_at is not None:
        speed = request.submission.given.arguments.get("rendering_speed", "BALANCED")
        say(request.started_at, f"Rendering at {speed}")
        if request.phase is state.Phase.DONE and request.ends_at is not None:
            say(request.ends_at, "Done")
    return lines

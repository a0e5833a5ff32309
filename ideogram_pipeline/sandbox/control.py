"""What only a sandbox has: a look at what it was asked, and its controls.

What belongs here: the addresses below ``/sandbox`` and the shapes of what they answer. They need no key.
"""

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ideogram_pipeline.ideogram.endpoints import ENDPOINTS_BY_ID
from ideogram_pipeline.sandbox.config import Fault, SandboxSettings, parse_faults
from ideogram_pipeline.sandbox.http import detail
from ideogram_pipeline.sandbox.pictures import PictureShelf
from ideogram_pipeline.sandbox.queue import Queue
from ideogram_pipeline.sandbox.state import Rendered, Request, State


class Stats(BaseModel):
    """What a sandbox has been asked and what it would have billed."""

    model_config = ConfigDict(frozen=True)

    submits: int = Field(default=0, description="Submits received, refused ones and dropped ones included.")
    accepted: int = Field(default=0, description="Submits accepted: what fal would bill if all end well.")
    duplicates: int = Field(default=0, description="Accepted submits of an input accepted before.")
    completed: int = Field(default=0, description="Requests that ended with pictures.")
    failed: int = Field(default=0, description="Requests that ended without.")
    images: int = Field(default=0, description="Pictures of the completed requests.")
    usd: Decimal = Field(default=Decimal(0), description="List price of the completed requests.")
    status_calls: int = Field(default=0, description="Status calls received.")
    result_calls: int = Field(default=0, description="Result calls received.")
    cancels: int = Field(default=0, description="Cancel calls received.")
    uploads: int = Field(default=0, description="Files uploaded.")
    downloads: int = Field(default=0, description="Files asked for.")
    webhooks: int = Field(default=0, description="Webhook deliveries tried.")
    misplaced_keys: int = Field(
        default=0, description="Calls that carried credentials to an address that needs none."
    )
    surplus_fields: dict[str, dict[str, int]] = Field(
        default_factory=dict,
        description="Fields sent that an endpoint does not have: how often, by endpoint id and field.",
    )


class RecordedRequest(BaseModel):
    """An accepted submit as it came."""

    model_config = ConfigDict(frozen=True)

    request_id: str = Field(description="The id it was given.")
    endpoint_id: str = Field(description="The endpoint it was posted to.")
    arguments: dict[str, JsonValue] = Field(description="The body.")
    headers: dict[str, str] = Field(description="Headers without credentials, names in lower case.")


class Change(BaseModel):
    """Settings to change while the sandbox runs; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    faults: str | tuple[Fault, ...] | None = Field(default=None, description="The new rules, all of them.")
    concurrency: int | None = Field(default=None, ge=1, description="Requests in progress at once.")
    latency_scale: float | None = Field(default=None, ge=0, description="Factor on rendering times.")
    result_ttl: float | None = Field(default=None, gt=0, description="Seconds a result can be fetched.")

    def applied_to(self, settings: SandboxSettings) -> SandboxSettings:
        """The settings after the change. Raises ValueError when the text of faults is not understood."""
        update = {
            name: value for name in type(self).model_fields if (value := getattr(self, name)) is not None
        }
        if isinstance(self.faults, str):
            update["faults"] = parse_faults(self.faults)
        return settings.model_copy(update=update)


class Control:
    """The addresses below ``/sandbox``."""

    def __init__(self, queue: Queue, state: State, shelf: PictureShelf) -> None:
        """Tell about this queue, and control it."""
        self._queue = queue
        self._state = state
        self._shelf = shelf

    def routes(self) -> list[Route]:
        """Look and change."""
        return [
            Route("/sandbox/stats", self.stats, methods=["GET"]),
            Route("/sandbox/requests", self.requests, methods=["GET"]),
            Route("/sandbox/settings", self.change, methods=["POST"]),
            Route("/sandbox/reset", self.reset, methods=["POST"]),
        ]

    async def stats(self, request: HttpRequest) -> Response:  # noqa: ARG002 - a handler's signature
        """Everything counted so far."""
        await self._queue.settle_all()
        requests = self._state.requests()
        rendered = [one.outcome for one in requests if isinstance(one.outcome, Rendered)]
        stats = Stats.model_validate(
            {
                **self._state.counts(),
                "accepted": len(requests),
                "duplicates": self._state.repeated_submissions(),
                "completed": len(rendered),
                "failed": sum(one.outcome is not None for one in requests) - len(rendered),
                "images": sum(outcome.images for outcome in rendered),
                "usd": sum((Decimal(outcome.usd or 0) for outcome in rendered), Decimal(0)),
                "surplus_fields": _surplus(requests),
            }
        )
        return JSONResponse(stats.model_dump(mode="json"))

    async def requests(self, request: HttpRequest) -> Response:  # noqa: ARG002 - a handler's signature
        """Every accepted submit, oldest first."""
        recorded = [
            RecordedRequest(
                request_id=one.id,
                endpoint_id=one.submission.given.endpoint_id,
                arguments=dict(one.submission.given.arguments),
                headers=dict(one.submission.headers),
            )
            for one in self._state.requests()
        ]
        return JSONResponse([one.model_dump(mode="json") for one in recorded])

    async def change(self, request: HttpRequest) -> Response:
        """Change settings for what comes from now on."""
        try:
            change = Change.model_validate_json(await request.body())
            self._queue.settings = change.applied_to(self._queue.settings)
        except ValueError as error:
            return detail(422, str(error))
        return Response(change.model_dump_json(exclude_none=True), media_type="application/json")

    async def reset(self, request: HttpRequest) -> Response:  # noqa: ARG002 - a handler's signature
        """Forget all requests, files and counts."""
        self._state.reset()
        self._shelf.clear()
        return JSONResponse({"status": "OK"})


def _surplus(requests: Iterable[Request]) -> dict[str, dict[str, int]]:
    seen: dict[str, Counter[str]] = {}
    for one in requests:
        given = one.submission.given
        known = ENDPOINTS_BY_ID[given.endpoint_id].input_model.model_fields
        if surplus := given.arguments.keys() - known.keys():
            seen.setdefault(given.endpoint_id, Counter()).update(surplus)
    return {endpoint_id: dict(fields) for endpoint_id, fields in seen.items()}

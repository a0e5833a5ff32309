"""api.fal.ai: prices, past requests and what they cost.

What belongs here: the part of fal's Platform API that a pipeline needs to know its prices, to find a request whose
submit was never answered, and to have what was asked deleted.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal, TypeVar

from pydantic import BaseModel, Field, JsonValue, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ideogram_pipeline.ideogram.endpoints import ENDPOINTS_BY_ID
from ideogram_pipeline.ideogram.prices import price
from ideogram_pipeline.sandbox.http import Handler, base_url, key_problem
from ideogram_pipeline.sandbox.queue import Queue
from ideogram_pipeline.sandbox.results import output
from ideogram_pipeline.sandbox.state import Rendered, Request, State
from ideogram_pipeline.sandbox.studio import Studio

T = TypeVar("T")

_DEFAULT_SPAN = timedelta(days=1)
_LONGEST_SPAN = timedelta(days=90)
_MAX_PAGE = 100
_MAX_EVENTS = 10_000
_MAX_IDS = 50


class Quantity(BaseModel):
    """How much of an endpoint is wanted."""

    call_quantity: float = Field(default=0, ge=0, description="Calls, each with one picture.")
    unit_quantity: float = Field(default=0, ge=0, description="Billed units: pictures.")


class EstimateRequest(BaseModel):
    """What an estimate is wanted for."""

    estimate_type: Literal["historical_api_price", "unit_price"] = Field(description="What is counted.")
    endpoints: dict[str, Quantity] = Field(description="Quantities by endpoint id.")


class PlatformApi:
    """api.fal.ai/v1."""

    def __init__(self, queue: Queue, state: State, studio: Studio) -> None:
        """Tell about this queue's requests."""
        self._queue = queue
        self._state = state
        self._studio = studio

    def routes(self) -> list[Route]:
        """Everything but ``meta`` needs a key."""
        return [
            Route("/v1/meta", self.meta, methods=["GET"]),
            Route("/v1/models/pricing", self._keyed(self.pricing), methods=["GET"]),
            Route("/v1/models/pricing/estimate", self._keyed(self.estimate), methods=["POST"]),
            Route("/v1/models/requests/by-endpoint", self._keyed(self.by_endpoint), methods=["GET"]),
            Route("/v1/models/billing-events", self._keyed(self.billing_events), methods=["GET"]),
            Route(
                "/v1/models/requests/{request_id}/payloads",
                self._keyed(self.delete_payloads),
                methods=["DELETE"],
            ),
        ]

    def _keyed(self, handler: Handler) -> Handler:
        async def checked(request: HttpRequest) -> Response:
            if key_problem(request, self._queue.settings):
                return _error(401, "authorization_error", "API key authentication required")
            try:
                return await handler(request)
            except ValueError as error:
                return _error(400, "validation_error", str(error))

        return checked

    async def meta(self, request: HttpRequest) -> Response:  # noqa: ARG002 - a handler's signature
        """Where webhooks come from."""
        return JSONResponse({"webhook_ip_ranges": ["127.0.0.1/32"]})

    async def pricing(self, request: HttpRequest) -> Response:
        """One base price for each endpoint: that of BALANCED, the default speed."""
        wanted = _endpoint_ids(request)
        if any(endpoint_id not in ENDPOINTS_BY_ID for endpoint_id in wanted):
            return _error(404, "not_found", "Endpoint(s) not found")
        prices: list[JsonValue] = [
            {
                "endpoint_id": endpoint_id,
                "unit_price": float(_base_price(endpoint_id)),
                "unit": "images",
                "currency": "USD",
            }
            for endpoint_id in wanted
        ]
        return JSONResponse({"prices": prices, "next_cursor": None, "has_more": False})

    async def estimate(self, request: HttpRequest) -> Response:
        """What so many calls or pictures would cost."""
        try:
            asked = EstimateRequest.model_validate_json(await request.body())
        except ValidationError:
            return _error(400, "validation_error", "estimate_type and endpoints are expected")
        if any(endpoint_id not in ENDPOINTS_BY_ID for endpoint_id in asked.endpoints):
            return _error(404, "not_found", "Endpoint(s) not found")
        by_call = asked.estimate_type == "historical_api_price"
        total = sum(
            _base_price(endpoint_id)
            * Decimal(str(quantity.call_quantity if by_call else quantity.unit_quantity))
            for endpoint_id, quantity in asked.endpoints.items()
        )
        return JSONResponse(
            {"estimate_type": asked.estimate_type, "total_cost": float(total), "currency": "USD"}
        )

    async def by_endpoint(self, request: HttpRequest) -> Response:
        """Past requests, latest end first, a page at a time. Queued and running ones are not among them."""
        await self._queue.settle_all()
        found = [one for one in self._ended(request) if _has_status(one, request.query_params.get("status"))]
        if request.query_params.get("sort_by") == "duration":
            found.sort(key=_duration, reverse=True)
        page, cursor = _page(request, found, default=50, most=_MAX_PAGE)
        payloads = "payloads" in request.query_params.getlist("expand")
        return JSONResponse(
            {
                "items": [await self._item(one, base_url(request), payloads=payloads) for one in page],
                "next_cursor": cursor,
                "has_more": cursor is not None,
            }
        )

    async def _item(self, one: Request, base: str, *, payloads: bool) -> dict[str, JsonValue]:
        outcome = await self._queue.outcome(one)
        item: dict[str, JsonValue] = {
            "request_id": one.id,
            "endpoint_id": one.submission.given.endpoint_id,
            "sent_at": _iso(one.submission.submitted_at),
            "started_at": _iso(one.started_at or one.submission.submitted_at),
            "ended_at": _iso(one.ends_at or one.submission.submitted_at),
            "status_code": 200 if isinstance(outcome, Rendered) else outcome.status,
            "duration": _duration(one),
        }
        if (
            payloads
            and not one.submission.is_forgotten
            and one.submission.headers.get("x-fal-store-io") != "0"
        ):
            item["json_input"] = dict(one.submission.given.arguments)
            # sync mode keeps the result out of the history
            if one.submission.given.arguments.get("sync_mode") is not True:
                item["json_output"] = (
                    await output(one.submission, outcome, base, self._studio)
                    if isinstance(outcome, Rendered)
                    else {"detail": outcome.detail}
                )
        return item

    async def billing_events(self, request: HttpRequest) -> Response:
        """What each request that ended well cost, latest end first, a page at a time. Others cost nothing."""
        query = request.query_params
        if len(_listed(request, "request_id")) > _MAX_IDS:
            raise ValueError(f"at most {_MAX_IDS} request_id are taken")
        if (
            "start" in query
            and "end" in query
            and _moment(query["end"]) - _moment(query["start"]) > _LONGEST_SPAN
        ):
            raise ValueError(f"start and end are at most {_LONGEST_SPAN.days} days apart")
        await self._queue.settle_all()
        events: list[JsonValue] = [
            {
                "request_id": one.id,
                "endpoint_id": one.submission.given.endpoint_id,
                "timestamp": _iso(one.ends_at or one.submission.submitted_at),
                "output_units": one.outcome.images,
                "unit_price": float(Decimal(one.outcome.usd) / one.outcome.images),
                "cost_total": float(one.outcome.usd),
                "cost_estimate_nano_usd": int(Decimal(one.outcome.usd) * 10**9),
            }
            for one in self._ended(request)
            if isinstance(one.outcome, Rendered) and one.outcome.usd is not None
        ]
        page, cursor = _page(request, events, default=_MAX_EVENTS, most=_MAX_EVENTS)
        return JSONResponse({"billing_events": page, "next_cursor": cursor, "has_more": cursor is not None})

    async def delete_payloads(self, request: HttpRequest) -> Response:
        """Delete what was asked in a request and what came of it, for good; uploads that it used stay."""
        if not self._state.forget(request.path_params["request_id"]):
            return _error(404, "not_found", "Request not found")
        return JSONResponse({"cdn_delete_results": []})

    def _ended(self, request: HttpRequest) -> list[Request]:
        query = request.query_params
        ids = _listed(request, "request_id")
        now = datetime.now(UTC)
        span = _LONGEST_SPAN if ids else _DEFAULT_SPAN
        since = _moment(query["start"]) if "start" in query else now - span
        until = _moment(query["end"]) if "end" in query else now + timedelta(seconds=1)
        endpoint_ids = _listed(request, "endpoint_id") or list(ENDPOINTS_BY_ID)
        found = [
            one
            for endpoint_id in endpoint_ids
            for one in self._state.requests_of(endpoint_id, since.timestamp(), until.timestamp())
            if not ids or one.id in ids
        ]
        return sorted(found, key=lambda one: one.ends_at or 0, reverse=True)


def _error(status: int, error_type: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"type": error_type, "message": message}}, status)


def _listed(request: HttpRequest, name: str) -> list[str]:
    values: Sequence[str] = request.query_params.getlist(name)
    return [item for value in values for item in value.split(",") if item]


def _endpoint_ids(request: HttpRequest) -> list[str]:
    wanted = _listed(request, "endpoint_id")
    if not wanted:
        raise ValueError("endpoint_id is required")
    return wanted


def _page(request: HttpRequest, found: list[T], *, default: int, most: int) -> tuple[list[T], str | None]:
    first = int(request.query_params.get("cursor") or 0)
    after = first + _limit(request, default=default, most=most)
    return found[first:after], str(after) if after < len(found) else None


def _limit(request: HttpRequest, *, default: int, most: int) -> int:
    limit = int(request.query_params.get("limit") or default)
    if not 1 <= limit <= most:
        raise ValueError(f"limit is 1 to {most}")
    return limit


def _base_price(endpoint_id: str) -> Decimal:
    return price(ENDPOINTS_BY_ID[endpoint_id].name, "BALANCED") or Decimal(0)


def _has_status(one: Request, wanted: str | None) -> bool:
    code = 200 if one.outcome is None or isinstance(one.outcome, Rendered) else one.outcome.status
    name = "success" if code < 400 else "user_error" if code < 500 else "error"
    return wanted is None or name == wanted


def _duration(one: Request) -> float:
    return round((one.ends_at or 0) - (one.started_at or one.ends_at or 0), 3)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

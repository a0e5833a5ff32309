"""The Platform API: what is needed to find lost requests and to know prices and bills."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

import httpx2
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from ideogram_pipeline.fal.answers import Answer, JsonObject, ending, text
from ideogram_pipeline.fal.errors import (
    Cancelled,
    EndpointNotFound,
    FalError,
    RequestEnded,
    RequestFailed,
    RequestNotFound,
    UnexpectedAnswer,
)
from ideogram_pipeline.fal.http import Call, Http

LISTED_FOR = timedelta(days=30)
"""fal keeps payloads so long (fal docs, request payloads)."""
_MAX_CLOCK_SKEW = timedelta(days=1)
_MAX_USD = 10**6


def _or_none(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """Read a value; one that is odd counts as absent."""
    try:
        return read(value)
    except ValidationError:
        return None


_Lenient = WrapValidator(_or_none)
_Amount = Annotated[Decimal | None, Field(ge=-_MAX_USD, le=_MAX_USD), _Lenient]

M = TypeVar("M", bound=BaseModel)


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True)


class PastRequest(_Told):
    """One request as fal's history lists it."""

    request_id: str = Field(description="fal's id of the request.")
    endpoint_id: str = Field(description="The endpoint it was submitted to.")
    sent_at: Annotated[datetime | None, _Lenient] = Field(default=None, description="When it was submitted.")
    started_at: Annotated[datetime | None, _Lenient] = Field(
        default=None, description="When a runner took it."
    )
    ended_at: Annotated[datetime | None, _Lenient] = Field(default=None, description="When it ended.")
    status_code: Annotated[int | None, _Lenient] = Field(
        default=None, description="HTTP status of its result."
    )
    json_input: JsonValue = Field(
        default=None, description="Its arguments, where payloads are stored and asked for."
    )
    json_output: JsonValue = Field(default=None, description="Its result, likewise.")

    @property
    def ending(self) -> RequestEnded | None:
        """The error in which it ended, if the list says that it ended in one."""
        if self.ended_at is None or self.status_code is None or self.status_code < 400:
            return None
        body = json.dumps(self.json_output).encode()
        told = Answer("fal's list of requests", self.status_code, httpx2.Headers(), body)
        if typed := ending(told, endpoint_id=self.endpoint_id, request_id=self.request_id):
            return typed
        kind = Cancelled if self.status_code == 499 else RequestFailed
        return kind(
            message=f"fal lists the request to {self.endpoint_id} as ended with {self.status_code}.",
            error_type=f"listed as {self.status_code}",
            may_resubmit=self.status_code >= 500,
            may_be_billed=self.status_code < 500,
            endpoint_id=self.endpoint_id,
            request_id=self.request_id,
            status=self.status_code,
        )


class Price(_Told):
    """The base price of one endpoint; prices of variants (such as rendering speeds) are not in it."""

    endpoint_id: str = Field(description="The endpoint.")
    unit_price: Decimal = Field(description="Price of one unit.")
    unit: str = Field(description="What a unit is, such as `image`.")
    currency: str = Field(description="Currency code.")


class Estimate(_Told):
    """What a number of calls or units would cost."""

    total_cost: Decimal = Field(description="The sum.")
    currency: str = Field(description="Currency code.")


class BillingEvent(_Told):
    """What one request was charged."""

    request_id: str = Field(description="fal's id of the request.")
    endpoint_id: str = Field(description="The endpoint it was submitted to.")
    timestamp: datetime = Field(description="When it was booked.")
    output_units: _Amount = Field(default=None, description="Units charged.")
    unit_price: _Amount = Field(default=None, description="US dollars for one unit, before discounts.")
    cost_total: _Amount = Field(default=None, description="US dollars charged, after discounts.")
    cost_estimate_nano_usd: Annotated[
        int | None, Field(ge=-_MAX_USD * 10**9, le=_MAX_USD * 10**9), _Lenient
    ] = Field(default=None, description="The same in billionths of a dollar; older answers have it alone.")

    @property
    def usd(self) -> Decimal | None:
        """US dollars charged, if fal says so in either way."""
        if self.cost_total is not None or self.cost_estimate_nano_usd is None:
            return self.cost_total
        return Decimal(self.cost_estimate_nano_usd) / 10**9


@dataclass(frozen=True, slots=True)
class Listing(Generic[M]):
    """Entries of a list that fal gives in pages."""

    items: tuple[M, ...]
    """What was listed."""
    truncated: bool
    """Whether fal has more. An absence from a truncated list proves nothing."""


class PlatformCalls:
    """Calls to the Platform API. All raise `FalError`; `Forbidden` where the key's scope does not reach."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def requests_by_endpoint(
        self,
        endpoint_id: str,
        *,
        start: datetime,
        end: datetime,
        request_ids: Sequence[str] = (),
        with_payloads: bool = False,
        max_items: int = 1000,
    ) -> Listing[PastRequest]:
        """The account's requests to an endpoint, sent from `start` until before `end` (API scope).

        With payloads, it is how a submit whose answer was lost is found again: match `json_input`. A request still
        queued may be missing, the index lags by an unknown time, and payloads are there only where they are stored.
        Raises `EndpointNotFound` where no such list is at the address of the Platform API.
        """
        query = {
            "endpoint_id": endpoint_id,
            "start": _instant(start),
            "end": _instant(end),
            "request_id": list(request_ids),
            "expand": ["payloads"] if with_payloads else [],
            "limit": 100,
        }
        try:
            return await self._list("models/requests/by-endpoint", query, "items", PastRequest, max_items)
        except FalError as error:
            if error.status != 404:
                raise
            raise EndpointNotFound(
                message=f"There is no list of requests at {self._http.hosts.api} (404), so unanswered submits stay "
                "unknown.",
                guidance="Check the address of fal's Platform API.",
                endpoint_id=endpoint_id,
                status=error.status,
            ) from None

    async def past_request(self, endpoint_id: str, request_id: str) -> PastRequest | None:
        """What the list says of one request, with payloads; None where it holds it no longer, or not yet."""
        now = datetime.now(UTC)
        listing = await self.requests_by_endpoint(
            endpoint_id,
            start=now - LISTED_FOR - _MAX_CLOCK_SKEW,
            end=now + _MAX_CLOCK_SKEW,
            request_ids=[request_id],
            with_payloads=True,
        )
        return next((one for one in listing.items if one.request_id == request_id), None)

    async def billing_events(
        self,
        *,
        start: datetime,
        end: datetime,
        endpoint_id: str | None = None,
        request_ids: Sequence[str] = (),
        max_items: int = 10_000,
    ) -> Listing[BillingEvent]:
        """What was charged from `start` until before `end`, at most 90 days and 50 request ids (ADMIN scope)."""
        query = {
            "start": _instant(start),
            "end": _instant(end),
            "endpoint_id": [endpoint_id] if endpoint_id else [],
            "request_id": list(request_ids),
            "limit": 1000,
        }
        return await self._list("models/billing-events", query, "billing_events", BillingEvent, max_items)

    async def delete_payloads(self, request_id: str) -> None:
        """Delete for good what was asked in a request and the files that came of it (ADMIN scope).

        Files that it was given are not deleted; uploads end with their lifetime. `RequestNotFound` where fal knows no
        such request, or has deleted it before.
        """
        try:
            await self._json("DELETE", f"models/requests/{quote(request_id, safe='')}/payloads")
        except EndpointNotFound as error:
            raise RequestNotFound(
                message=f"fal knows no request {request_id}.", status=error.status
            ) from None

    async def pricing(self, endpoint_ids: Sequence[str]) -> tuple[Price, ...]:
        """The base prices of 1 to 50 endpoints (API scope). An unknown endpoint raises `EndpointNotFound`."""
        listing = await self._list(
            "models/pricing", {"endpoint_id": list(endpoint_ids)}, "prices", Price, 1000
        )
        return listing.items

    async def estimate(
        self, quantities: Mapping[str, int], by: Literal["unit_price", "historical_api_price"] = "unit_price"
    ) -> Estimate:
        """What quantities per endpoint would cost: of units at list price, or of calls as the account's past ones."""
        quantity = "unit_quantity" if by == "unit_price" else "call_quantity"
        endpoints = {endpoint_id: {quantity: number} for endpoint_id, number in quantities.items()}
        body = json.dumps({"estimate_type": by, "endpoints": endpoints}).encode()
        return _read(Estimate, await self._json("POST", "models/pricing/estimate", body))

    async def _list(
        self, path: str, query: Mapping[str, object], name: str, model: type[M], max_items: int
    ) -> Listing[M]:
        items: list[M] = []
        cursor: str | None = None
        while True:
            page_query = {**query, "cursor": cursor} if cursor else query
            page = await self._json("GET", f"{path}?{urlencode(page_query, doseq=True)}")
            entries = page.get(name)
            if not isinstance(entries, list):
                raise UnexpectedAnswer(
                    message=f"fal's answer to {path} has no list {name!r}.", may_be_billed=False
                )
            items += [_read(model, entry) for entry in entries]
            before, cursor = cursor, text(page.get("next_cursor"))
            if not page.get("has_more"):
                return Listing(tuple(items), truncated=False)
            if len(items) >= max_items or cursor in {None, before} or not entries:
                return Listing(tuple(items), truncated=True)

    async def _json(self, method: str, path: str, content: bytes | None = None) -> JsonObject:
        url, headers = (
            f"{self._http.hosts.api}/v1/{path}",
            {"Content-Type": "application/json"} if content else {},
        )
        answer = await self._http.fetch(Call(method, url, self._http.timeouts.call_s, headers, content))
        return answer.object() or {}


def _read(model: type[M], value: object) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        # The error's own text may quote the payload.
        fields = ", ".join(
            sorted({".".join(map(str, one["loc"])) for one in error.errors(include_input=False)})
        )
        raise UnexpectedAnswer(
            message=f"fal's Platform API gives a {model.__name__} without readable {fields}.",
            may_be_billed=False,
        ) from None


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")

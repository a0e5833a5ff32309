"""Reading fal's answers: their headers, their JSON, and which error a refusal means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeAlias

import httpx2
from pydantic import JsonValue
from pydantic_core import from_json

from ideogram_pipeline import network
from ideogram_pipeline.fal.errors import (
    AccessRefused,
    AccountLocked,
    Cancelled,
    EndpointNotFound,
    ErrorDetail,
    FalError,
    Forbidden,
    IngressError,
    MediaUnavailable,
    ModelFailed,
    ModelRefused,
    NoAnswer,
    NotReady,
    RequestEnded,
    RequestFailed,
    RequestNotFound,
    StartTimeout,
    TooManyRequests,
    Unauthorized,
    UnexpectedAnswer,
    without_access,
)

JsonObject: TypeAlias = dict[str, JsonValue]

RESUBMITTABLE = frozenset(
    {
        "request_timeout",
        "startup_timeout",
        "runner_scheduling_failure",
        "runner_connection_timeout",
        "runner_disconnected",
        "runner_connection_refused",
        "runner_connection_error",
        "runner_incomplete_response",
        "runner_server_error",
        "internal_error",
    }
)
"""The request errors after which a new submit may help (fal docs, request errors page)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole HTTP answer."""

    url: str
    """What was asked, as messages may show it."""
    status: int
    """HTTP status."""
    headers: httpx2.Headers
    """HTTP headers."""
    body: bytes
    """The body, decompressed."""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def json(self) -> JsonValue:
        """The body as JSON; None where it is not JSON."""
        try:
            value: JsonValue = from_json(self.body, cache_strings="keys")
        except ValueError:
            return None
        return value

    def object(self) -> JsonObject | None:
        """The body as a JSON object; None where it is anything else."""
        value = self.json()
        return value if isinstance(value, dict) else None

    @property
    def request_id(self) -> str | None:
        """fal's id of this request; an answer of the load balancer has none."""
        return self.headers.get("x-fal-request-id")

    @property
    def from_ingress(self) -> bool:
        """Whether the load balancer answered in fal's place: a 5xx with no request id and no JSON."""
        return self.status >= 500 and self.request_id is None and self.json() is None

    @property
    def billable_units(self) -> float | None:
        """Units charged, where fal says so."""
        units = number(self.headers.get("x-fal-billable-units"))
        return units if units is None or units >= 0 else None

    @property
    def advises_retry(self) -> bool | None:
        """fal's advice whether to try again, under its newer or its older name; None where there is none."""
        advice = self.headers.get("x-fal-needs-retry") or self.headers.get("x-fal-retryable") or ""
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            advice.strip().lower()
        )

    @property
    def answered_at(self) -> datetime | None:
        """When it was given, by the server's clock, in whole seconds; None where it does not say."""
        try:
            found = parsedate_to_datetime(self.headers.get("date") or "")
        except ValueError:
            return None
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    @property
    def excerpt(self) -> str:
        """The beginning of the body for an error message: one line, without data URIs, queries and echoed input."""
        text = re.sub(r"\s+", " ", self.body[:2000].decode("utf-8", "replace"))
        text = re.sub(r"data:[^\s\"',]*,[^\s\"'<]*", "data:…", text)
        text = re.sub(r"(https?://[^\s\"'?]*)\?[^\s\"']*", r"\1?…", text)
        return re.sub(r"\"input\": ?.*", '"input": …', text)[:200]


def text(value: object) -> str | None:
    """The value if it is a string with something in it."""
    return value if isinstance(value, str) and value else None


def number(value: object) -> float | None:
    """The value as a finite number, if it is one or spells one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < float("inf") else None


def refusal(answer: Answer, *, endpoint_id: str | None = None, request_id: str | None = None) -> FalError:
    """The error that fal's refusal of a call means; `ending` is asked first where the model itself may be speaking."""
    body = answer.object() or {}
    reason = _reason(body)
    what = f"{answer.url} answered {answer.status}"
    said = f"{what}: {reason}" if reason else f"{what}."
    error: FalError
    if "request is still in progress" in reason.lower():
        error = NotReady(message=said)
    elif answer.status == 401:
        error = Unauthorized(message=said)
    elif answer.status == 403:
        error = (
            AccountLocked(message=said)
            if re.search(r"\b(locked|balance)\b", reason, re.I)
            else Forbidden(message=said)
        )
    elif answer.status == 404 and (
        "request not found" in reason.lower() or body.get("status") == "NOT_FOUND"
    ):
        error = RequestNotFound(message=said, answered_at=answer.answered_at)
    elif answer.status == 404 and body:
        error = EndpointNotFound(message=said)
    elif answer.status == 429:
        error = TooManyRequests(message=said)
    elif answer.from_ingress or answer.status == 408:
        error = IngressError(message=what + " without being fal's own answer.")
    else:
        error = UnexpectedAnswer(
            message=f"{what}, which the protocol does not describe: {answer.excerpt!r}.",
            may_repeat=answer.status >= 500,
        )
    if isinstance(error, AccessRefused) and not body and (through := network.proxy_for(answer.url)):
        error.guidance = f"It is no answer of fal's own: the proxy of {through} may have given it."
    return _with_facts(error, answer, endpoint_id, request_id)


def ending(answer: Answer, *, endpoint_id: str, request_id: str | None = None) -> RequestEnded | None:
    """The typed error in which a request ended, if that is what this answer tells; None if it tells nothing of an end.

    Bodies come in two families (fal docs, errors pages): a *list* under `detail` is the model speaking, a *string* is
    fal's infrastructure with an `error_type` beside it. What names no type tells nothing: a load balancer, a gateway or
    a model's crash may be speaking, and the request may still be there. 5xx are never charged.

    One such answer proves nothing either: see `QueueCalls.result`.
    """
    if answer.status < 400:
        return None
    body = answer.object() or {}
    reason = _reason(body)
    details = _details(body.get("detail"))
    status, advice = answer.status, answer.advises_retry
    error_type = text(body.get("error_type")) or text(answer.headers.get("x-fal-error-type"))
    error: RequestEnded
    if status in {408, 429} or "request is still in progress" in reason.lower():
        return None
    if details and status == 422:
        error = ModelRefused(
            message=f"{endpoint_id} refuses the input: {_told(details)}.",
            details=details,
            may_resubmit=bool(advice),
            may_be_billed=True,
        )
    elif details:
        error = ModelFailed(
            message=f"{endpoint_id} failed with {status}: {_told(details)}.",
            details=details,
            may_resubmit=status >= 500 if advice is None else advice,
            may_be_billed=status < 500,
        )
    elif status == 504 and answer.headers.get("x-fal-request-timeout-type") == "user":
        error = StartTimeout(message=f"The request to {endpoint_id} did not start within its start timeout.")
    elif error_type and status == 499:
        error = Cancelled(message=f"The request to {endpoint_id} was cancelled.", error_type=error_type)
    elif error_type:
        error = RequestFailed(
            message=f"The request to {endpoint_id} failed with {status} {error_type}: {reason}",
            error_type=error_type,
            may_resubmit=error_type in RESUBMITTABLE if advice is None else advice,
            may_be_billed=status < 500,
        )
    else:
        return None
    error.billable_units = answer.billable_units
    if error.billable_units is not None:
        error.may_be_billed = error.billable_units > 0
    _with_facts(error, answer, endpoint_id, request_id)
    return error


def file_refusal(url: str, status: int) -> FalError:
    """The error that a file server's answer other than 200 means; it says nothing about the key or the account."""
    if status in {408, 425, 429} or status >= 500:
        return NoAnswer(message=f"{url} answered {status}.", status=status)
    return MediaUnavailable(
        message=f"{url} answered {status}.", guidance="The URL has expired, or needs a login.", status=status
    )


def _with_facts(error: FalError, answer: Answer, endpoint_id: str | None, request_id: str | None) -> FalError:
    error.endpoint_id, error.request_id, error.status = (
        endpoint_id,
        request_id or answer.request_id,
        answer.status,
    )
    return error


def _reason(body: JsonObject) -> str:
    """The sentence a refusal gives, shortened, from any of the shapes of fal's queue, storage and Platform API."""
    error = body.get("error")
    inner = error.get("message") if isinstance(error, dict) else error
    return without_access(text(body.get("detail")) or text(body.get("message")) or text(inner) or "")[:300]


def _details(detail: JsonValue) -> tuple[ErrorDetail, ...]:
    """The model's reasons, without the echoes of the input."""
    found = []
    for entry in detail if isinstance(detail, list) else []:
        if isinstance(entry, dict) and (kind := text(entry.get("type"))):
            location, context = entry.get("loc"), entry.get("ctx")
            found.append(
                ErrorDetail(
                    type=kind,
                    message=without_access(text(entry.get("msg")) or "")[:300],
                    location=tuple(map(str, location)) if isinstance(location, list) else (),
                    context=context if isinstance(context, dict) else {},
                )
            )
    return tuple(found)


def _told(details: tuple[ErrorDetail, ...]) -> str:
    return "; ".join(f"{'.'.join(one.location)} {one.type} ({one.message})".lstrip() for one in details[:3])

"""Everything that can go wrong with a fal call, as one tree. A call gives its result or raises one of these.

FalError
├── InvalidCall          the call itself is wrong; nothing was sent
├── ConnectionFailed     no connection could be made; nothing was sent
├── NoAnswer             sent, but no whole answer came back
├── SubmitUnknown        a submit may or may not have been accepted: the one error that needs reconciling
├── AccessRefused
│   ├── Unauthorized     401: the key is wrong
│   ├── Forbidden        403: the key may not do this
│   └── AccountLocked    403: the account is out of credit; every further call will fail the same way
├── EndpointNotFound     404: no such model endpoint
├── TooManyRequests      429
├── IngressError         the load balancer answered in fal's place
├── NotReady             the result was asked for before the request completed
├── RequestNotFound      404: fal knows no such request (any more)
│   └── ResultExpired    the request completed, and its result is gone
├── RequestEnded         the request reached its end without a result
│   ├── ModelRefused     422: the model refuses this input, with reasons
│   ├── ModelFailed      the model gives reasons of another kind (downstream failure, generation timeout)
│   ├── RequestFailed    the infrastructure failed (runner lost, request timeout)
│   ├── Cancelled        499: it was cancelled
│   └── StartTimeout     504: the caller's own start deadline passed in the queue
├── DeadlineExceeded     the caller's own patience in `subscribe` ended; carries the request
├── UnsafeUrl            a URL this client won't talk to
├── MediaUnavailable     a file server refuses, or the file does not fit the caller's limit
├── WebhookRejected      a delivery isn't fal's, or not fresh
└── UnexpectedAnswer     anything else

Each error answers three questions, as attributes: `may_repeat` (may the same HTTP request be sent again?),
`may_resubmit` (may a new submit of the same arguments bring a result?) and `may_be_billed` (may fal charge for what
was asked?). No error carries the key, the arguments, or an original exception that might; nor a URL's query, which may
be a signature that opens somebody's file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import JsonValue

if TYPE_CHECKING:
    from ideogram_pipeline.fal.queue import CancelAnswer, QueuedRequest


_ACCESS = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/?#@'\"]+@")
_QUERY = re.compile(r"(?P<address>\b[a-zA-Z][a-zA-Z0-9+.-]*://[^\s?#'\"<>]+)[?#][^\s'\"<>]+")


def without_access(text: str) -> str:
    """Return a text without the parts of its URLs that may grant access: user, password and query."""
    return _QUERY.sub(r"\g<address>?…", _ACCESS.sub(r"\g<scheme>…@", text))


@dataclass(eq=False, kw_only=True)
class FalError(Exception):
    """A call to fal did not give its result."""

    message: str
    """What happened, and to which thing."""
    guidance: str = ""
    """What to do next."""
    may_repeat: bool = False
    """Whether the very same HTTP request may be sent again, with a hope that it helps."""
    may_resubmit: bool = False
    """Whether a new submit of the same arguments may bring a result, at the price of a second bill."""
    may_be_billed: bool = False
    """Whether fal may charge for the request; True where nobody can tell."""
    endpoint_id: str | None = None
    """The model endpoint asked, where there is one."""
    request_id: str | None = None
    """The queue request asked about, where there is one."""
    status: int | None = None
    """HTTP status of the answer, where there was one."""

    def __post_init__(self) -> None:
        self.message = without_access(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.guidance}".rstrip()


@dataclass(eq=False, kw_only=True)
class InvalidCall(FalError, ValueError):
    """The call itself is wrong: an endpoint id, option, argument or key that can't be sent. Nothing was."""


@dataclass(eq=False, kw_only=True)
class ConnectionFailed(FalError):
    """No connection could be made (refused, DNS, certificate, proxy, connect timeout), so nothing was sent."""

    may_repeat: bool = True
    may_resubmit: bool = True
    guidance: str = "Check the network and the host; trying again is safe."


@dataclass(eq=False, kw_only=True)
class NoAnswer(FalError):
    """The request was sent and no whole answer came: connection dropped, timed out, or unreadable HTTP."""

    may_repeat: bool = True
    guidance: str = "Ask again."


@dataclass(eq=False, kw_only=True)
class SubmitUnknown(FalError):
    """A submit left this machine and nobody can say whether fal accepted it. Never submit it again unreconciled."""

    may_be_billed: bool = True
    guidance: str = (
        "Reconcile it (webhook, or the requests listed by endpoint around `sent_at`) before submitting again."
    )
    arguments_digest: str
    """SHA-256 of the JSON body as sent, in hex."""
    sent_at: datetime
    """When the POST began, UTC."""
    cause: str
    """What ended it."""


@dataclass(eq=False, kw_only=True)
class AccessRefused(FalError):
    """fal refuses this key."""


@dataclass(eq=False, kw_only=True)
class Unauthorized(AccessRefused):
    """The key is missing, malformed or unknown to fal (401)."""

    guidance: str = "Check FAL_KEY: it reads <key id>:<key secret>, from fal.ai/dashboard/keys."


@dataclass(eq=False, kw_only=True)
class Forbidden(AccessRefused):
    """The key is known and may not do this (403)."""

    guidance: str = "Use a key with the scope this call needs (API for models, ADMIN for usage and billing)."


@dataclass(eq=False, kw_only=True)
class AccountLocked(AccessRefused):
    """The account is locked, in practice for lack of credit (403). Stop the batch."""

    guidance: str = (
        "Stop here: every further submit fails alike. Top up at fal.ai/dashboard/billing, then run again."
    )


@dataclass(eq=False, kw_only=True)
class EndpointNotFound(FalError):
    """There is no such model endpoint, or no such path in it (404, charged with 0 units)."""

    guidance: str = "Check the endpoint id."


@dataclass(eq=False, kw_only=True)
class TooManyRequests(FalError):
    """fal refuses the call for now (429); a submit answered so was not accepted."""

    may_repeat: bool = True
    may_resubmit: bool = True
    guidance: str = "Try again later, with fewer calls at a time or a larger max_queue_length."


@dataclass(eq=False, kw_only=True)
class IngressError(FalError):
    """The load balancer answered in fal's place (5xx with no fal request id and no JSON)."""

    may_repeat: bool = True
    guidance: str = "Ask again in a moment."


@dataclass(eq=False, kw_only=True)
class NotReady(FalError):
    """The result was asked for while the request is still in progress."""

    may_repeat: bool = True
    may_be_billed: bool = True
    guidance: str = "Wait until its status is Completed."


@dataclass(eq=False, kw_only=True)
class RequestNotFound(FalError):
    """fal knows no such request: never accepted, of another account, or too old."""

    may_be_billed: bool = True
    answered_at: datetime | None = None
    """When fal said so, by its own clock."""
    guidance: str = (
        "Check that endpoint and key are the ones of the submit; old requests are listed by endpoint."
    )


@dataclass(eq=False, kw_only=True)
class ResultExpired(RequestNotFound):
    """The request completed and its result is no longer kept (about 1 hour, 6 minutes from 10 KB)."""

    guidance: str = (
        "Look the result up in the requests listed by endpoint, with payloads; it was probably charged."
    )


@dataclass(eq=False, kw_only=True)
class RequestEnded(FalError):
    """The request reached its end without a result, and fal names the type of error in which it did."""

    billable_units: float | None = None
    """Units fal says it charges for this request, where it says so."""

    @property
    def kind(self) -> str:
        """What two answers have in common that tell of the same end."""
        return type(self).__name__


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """One reason a model gives (fal docs, errors page). The echo of the input is dropped, so it can't be logged."""

    type: str
    """Machine-readable kind, such as `content_policy_violation` or `image_too_small`. Decide on this."""
    message: str
    """Text for people, shortened."""
    location: tuple[str, ...] = ()
    """Path to the offending value, such as `("body", "image_url")`."""
    context: dict[str, JsonValue] = field(default_factory=dict)
    """Limits belonging to the type, such as `{"min_width": 512}`."""


@dataclass(eq=False, kw_only=True)
class ModelRefused(RequestEnded):
    """The model refuses this input (422). It may be billed if a runner spent time on it, unless fal says 0 units."""

    guidance: str = "Change what the reasons name; the same input will be refused again."
    details: tuple[ErrorDetail, ...] = ()
    """The reasons, at least one."""

    @property
    def kind(self) -> str:
        """Its class and the types of its reasons."""
        return _kind(self, self.details)

    @property
    def is_policy(self) -> bool:
        """Whether a content checker refused it, rather than a rule about the input's form."""
        return self.names("content_policy_violation")

    def names(self, reason: str) -> bool:
        """Whether one of the reasons is of this machine-readable kind."""
        return any(detail.type == reason for detail in self.details)


@dataclass(eq=False, kw_only=True)
class ModelFailed(RequestEnded):
    """The model failed and gives reasons; fal's advice decides `may_resubmit`. 5xx are not billed."""

    details: tuple[ErrorDetail, ...] = ()
    """The reasons, at least one."""

    @property
    def kind(self) -> str:
        """Its class and the types of its reasons."""
        return _kind(self, self.details)


def _kind(error: FalError, details: tuple[ErrorDetail, ...]) -> str:
    return " ".join([type(error).__name__, *sorted({detail.type for detail in details})])


@dataclass(eq=False, kw_only=True)
class RequestFailed(RequestEnded):
    """fal's infrastructure failed the request."""

    error_type: str
    """Value of fal's request error catalogue, such as `runner_disconnected`."""

    @property
    def kind(self) -> str:
        """Its class and type."""
        return f"{type(self).__name__} {self.error_type}"


@dataclass(eq=False, kw_only=True)
class Cancelled(RequestEnded):
    """The request was cancelled (499)."""

    may_be_billed: bool = True
    error_type: str
    """Value of fal's request error catalogue, such as `client_cancelled`."""


@dataclass(eq=False, kw_only=True)
class StartTimeout(RequestEnded):
    """The request's own start deadline passed while it waited (504, timeout type `user`). Nothing ran."""

    may_resubmit: bool = True
    guidance: str = "Submit again with a longer start_timeout_s, or when the queue is shorter."


@dataclass(eq=False, kw_only=True)
class DeadlineExceeded(FalError):
    """`subscribe` waited as long as it was told to; cancelling was tried."""

    may_be_billed: bool = True
    guidance: str = "Attach to the request to wait longer; a new submit would be a new bill."
    request: QueuedRequest
    """The request, to attach to or to look up."""
    cancel_answer: CancelAnswer | None
    """What fal said to the cancellation; None where it did not say."""


@dataclass(eq=False, kw_only=True)
class UnsafeUrl(FalError):
    """A URL that is not public https, nor on a configured host, is not talked to."""

    guidance: str = "If this host is meant, add it to FalHosts.media."


@dataclass(eq=False, kw_only=True)
class MediaUnavailable(FalError):
    """A file server refuses a download or an upload, or the file is larger than the caller's limit."""


@dataclass(eq=False, kw_only=True)
class WebhookRejected(FalError):
    """A webhook delivery is not fal's, not fresh, or not readable. Answer it with 4xx and do nothing."""


@dataclass(eq=False, kw_only=True)
class UnexpectedAnswer(FalError):
    """fal answered something the protocol does not describe."""

    may_be_billed: bool = True
    guidance: str = "If it persists, ask fal's support with the request id."

"""The queue: submit, status, stream, result and cancel.

A submit is the one call here that costs money, and fal has no idempotency key for it (neither the docs nor the
official clients know one). So its POST is sent again only where the first can't have been accepted. All other calls
may be repeated, and are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, TypeAlias
from urllib.parse import quote

from pydantic import JsonValue
from pydantic_core import from_json

from ideogram_pipeline.fal.answers import Answer, JsonObject, ending, number, refusal, text
from ideogram_pipeline.fal.errors import (
    AccessRefused,
    ConnectionFailed,
    FalError,
    InvalidCall,
    NoAnswer,
    NotReady,
    RequestEnded,
    RequestNotFound,
    ResultExpired,
    SubmitUnknown,
    UnexpectedAnswer,
    UnsafeUrl,
)
from ideogram_pipeline.fal.http import Call, Http, pause, repeating
from ideogram_pipeline.fal.options import NO_OPTIONS, SubmitOptions
from ideogram_pipeline.fal.urls import FalHosts, app_path, normal_endpoint

ASK_AGAIN_AFTER_S = (2.0, 4.0)
"""A result that can't be had is asked for again after so many seconds, and again: what is said once proves nothing."""
REFUSED_WITHOUT_A_WORD = frozenset({405, 413, 414, 429})
"""By these a load balancer refuses a submit before fal sees it. Any other 4xx is fal's own only with a JSON body."""
MAX_ID_LENGTH = 200
"""Characters; fal's request ids are UUIDs of 36."""
_MAX_URL_LENGTH = 2000
_MAX_POSITION = 10**9
_MAX_INFERENCE_S = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that fal has accepted. Endpoint id and request id are enough to attach to it again, from anywhere."""

    endpoint_id: str
    """The endpoint it was submitted to, whole."""
    request_id: str
    """fal's id for it; opaque."""
    status_url: str
    """Where its status is."""
    result_url: str
    """Where its result is."""
    cancel_url: str
    """Where it is cancelled."""
    accepted_at: datetime | None = None
    """When fal accepted it, by its own clock; None where it did not say, or the request was attached to."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a model logged."""

    message: str
    """The text."""
    timestamp: str | None = None
    """When, ISO 8601 as fal gives it."""
    level: str | None = None
    """STDERR, STDOUT, ERROR, INFO, WARN or DEBUG."""


@dataclass(frozen=True, slots=True)
class InQueue:
    """It waits: for capacity, or for the account's own concurrency. fal may also put a started request back here."""

    position: int | None
    """Requests ahead of it in the endpoint's shared queue; None where fal does not say."""
    logs: tuple[LogLine, ...] = ()
    """Its log so far, if asked for."""


@dataclass(frozen=True, slots=True)
class InProgress:
    """It runs."""

    logs: tuple[LogLine, ...] = ()
    """Its log so far, if asked for."""


@dataclass(frozen=True, slots=True)
class Completed:
    """It ended, well or not: fal's only final status, also for failed and cancelled requests. `result` tells which."""

    logs: tuple[LogLine, ...] = ()
    """Its log, if asked for."""
    inference_s: float | None = None
    """Seconds the model ran, where fal says so."""
    error: str | None = None
    """fal's word on a failure. Its absence does not mean success."""
    error_type: str | None = None
    """The failure's kind, as in `RequestFailed.error_type`."""


QueueStatus: TypeAlias = InQueue | InProgress | Completed


@dataclass(frozen=True, slots=True)
class Result:
    """What a request brought."""

    payload: JsonObject
    """The model's own output."""
    billable_units: float | None
    """Units charged; None where fal does not say, which is not the same as 0."""
    request_id: str
    """The request it belongs to."""
    answered_id: str | None = None
    """The id that fal's answer named; another one after a retry on fal's side, or where fal mixed answers up."""


class CancelAnswer(StrEnum):
    """What fal says to a cancellation."""

    OK = "OK"
    """It was still queued and is removed."""
    CANCELLATION_REQUESTED = "CANCELLATION_REQUESTED"
    """It runs and was told to stop; it may still complete, and be charged."""
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    """Too late: it has ended."""
    NOT_FOUND = "NOT_FOUND"
    """fal knows no such request."""


class QueueCalls:
    """The calls to fal's queue."""

    def __init__(self, http: Http) -> None:
        self._http = http

    async def submit(
        self,
        endpoint_id: str,
        arguments: Mapping[str, JsonValue],
        options: SubmitOptions = NO_OPTIONS,
    ) -> QueuedRequest:
        """Put a request into the queue. From here on it costs money, so keep the ids before doing anything else.

        The POST is repeated only where no connection could be made (then also on the backup host). A 429 raises
        `TooManyRequests` at once: whoever submits many knows best how to slow down. Any doubt raises `SubmitUnknown`,
        also a load balancer's 503, behind which an answer of fal's may have been lost. Cancelling the task that awaits
        this call raises that doubt as well, without an error to carry it: shield it, or note the intent first.

        fal accepts arguments the model will refuse: such a refusal comes with the result. Raises `InvalidCall`,
        `AccessRefused`, `EndpointNotFound` and others of `FalError`.
        """
        path = f"/{normal_endpoint(endpoint_id)}{options.query()}"
        try:
            body = json.dumps(dict(arguments), allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidCall(
                message=f"The arguments for {endpoint_id} can't be written as JSON ({type(error).__name__}).",
                endpoint_id=endpoint_id,
            ) from None
        return await repeating(
            lambda: self._submit_once(endpoint_id, path, body, options),
            on=lambda error: isinstance(error, ConnectionFailed) and error.may_repeat,
        )

    async def _submit_once(
        self, endpoint_id: str, path: str, body: bytes, options: SubmitOptions
    ) -> QueuedRequest:
        sent_at = datetime.now(UTC)

        def unknown(cause: str, answer: Answer | None = None) -> SubmitUnknown:
            return SubmitUnknown(
                message=f"Nobody knows whether fal accepted a submit to {endpoint_id}: {cause}",
                arguments_digest=hashlib.sha256(body).hexdigest(),
                sent_at=sent_at,
                cause=cause,
                endpoint_id=endpoint_id,
                request_id=answer.request_id if answer else None,
                status=answer.status if answer else None,
            )

        try:
            answer = await self._post_to_a_host(path, body, options)
        except (ConnectionFailed, InvalidCall):
            raise
        except NoAnswer as error:
            raise unknown(error.message) from None
        except Exception as error:
            # A fault nobody foresaw does not tell that nothing was sent.
            raise unknown(f"{type(error).__name__}.") from None
        found = answer.object() or {}
        request_id = text(found.get("request_id"))
        if answer.is_success and request_id and _can_be_id(request_id):
            queued = _queued(self._http.hosts, endpoint_id, request_id, found)
            return replace(queued, accepted_at=answer.answered_at)
        if _says_not_accepted(answer):
            raise ending(answer, endpoint_id=endpoint_id) or refusal(answer, endpoint_id=endpoint_id)
        raise unknown(f"the answer was {answer.status} {answer.excerpt!r}.", answer)

    async def _post_to_a_host(self, path: str, body: bytes, options: SubmitOptions) -> Answer:
        """The submit's POST, on the backup host if the first could not be connected to."""
        headers = {"Content-Type": "application/json", **options.headers()}
        hosts, deadline_s = self._http.hosts, self._http.timeouts.submit_s
        try:
            return await self._http.ask(Call("POST", hosts.queue + path, deadline_s, headers, body))
        except ConnectionFailed:
            if hosts.backup_queue is None:
                raise
        return await self._http.ask(Call("POST", hosts.backup_queue + path, deadline_s, headers, body))

    def attach(self, endpoint_id: str, request_id: str) -> QueuedRequest:
        """A request submitted earlier, from its two ids. Asks nothing; raises `InvalidCall` for ids that can't be."""
        if not _can_be_id(request_id):
            raise InvalidCall(message=f"{request_id!r} is not a request id.", endpoint_id=endpoint_id)
        return _queued(self._http.hosts, endpoint_id, request_id, {})

    async def status(self, request: QueuedRequest, *, logs: bool = False) -> QueueStatus:
        """Where the request is. Raises `RequestNotFound`, `Unauthorized` and others of `FalError`."""

        async def once() -> QueueStatus:
            answer = await self._call("GET", _with_logs(request.status_url, logs), request)
            if not answer.is_success:
                raise _about(refusal(answer), request)
            return _status(answer.object(), request)

        return await repeating(once)

    async def stream(self, request: QueuedRequest, *, logs: bool = False) -> AsyncIterator[QueueStatus]:
        """The request's status at every change, up to and with `Completed`, over one server-sent-event connection.

        Raises `NoAnswer` where the connection falls silent, breaks or ends early (ask for the `status` then), and what
        `status` raises.
        """
        url = _with_logs(f"{request.status_url}/stream", logs)
        async with self._http.stream(Call("GET", url, None, {"Accept": "text/event-stream"})) as response:
            media_type = response.headers.get("content-type", "")
            if response.status_code != 200 or "text/event-stream" not in media_type:
                async with asyncio.timeout(self._http.timeouts.call_s):
                    raise _about(refusal(await self._http.read(response)), request)
            lines = aiter(response.aiter_lines())
            while True:
                async with asyncio.timeout(self._http.timeouts.silence_s):
                    line = await anext(lines, None)
                if line is None:
                    told = f"The status stream of {request.request_id} ended before the request did."
                    raise _about(NoAnswer(message=told), request)
                if line.startswith("data:"):
                    status = _status(_object(line.removeprefix("data:")), request)
                    yield status
                    if isinstance(status, Completed):
                        return

    async def result(
        self, request: QueuedRequest, *, is_readable: Callable[[Result], bool] = lambda _: True
    ) -> Result:
        """What the request brought, once it is `Completed`.

        Fetch it promptly: fal keeps it about an hour, or six minutes from 10 KB. What can't be had, or isn't
        `is_readable`, is asked for three times in all, some seconds apart, because one answer proves nothing: a gateway
        may have given it. So `RequestEnded` is raised only where fal names the same type of error each time and calls
        the request completed. Raises `NotReady` if it still runs, `ResultExpired` or `RequestNotFound` if it isn't
        there (which may pass), and others of `FalError` for answers that tell neither.
        """
        ends: list[RequestEnded] = []

        async def once() -> Result:
            try:
                return await self._result_once(request, is_readable)
            except RequestEnded:
                raise
            except FalError:
                ends.clear()  # what is told in between takes from the proof
                raise

        for wait_s in (*ASK_AGAIN_AFTER_S, None):
            try:
                return await repeating(once)
            except (AccessRefused, InvalidCall, NotReady, UnsafeUrl):
                raise
            except RequestEnded as error:
                ends.append(error)
                last: FalError = error
            except FalError as error:
                last = error
            if wait_s is not None:
                await pause(wait_s)
        if ends and (len(ends) <= len(ASK_AGAIN_AFTER_S) or len({end.kind for end in ends}) > 1):
            told = f"fal reports different ends of {request.request_id}; one of them: {ends[0].message}"
            raise _about(UnexpectedAnswer(message=told), request)
        if not isinstance(last, RequestEnded | RequestNotFound):
            raise last
        completed = isinstance(await self.status(request), Completed)
        if isinstance(last, RequestEnded) and not completed:
            told = f"fal reports an error of {request.request_id}, and that it still runs: {last.message}"
            raise _about(UnexpectedAnswer(message=told), request)
        if isinstance(last, RequestNotFound) and completed:
            raise ResultExpired(
                message=f"Request {request.request_id} completed, and its result is no longer kept.",
                endpoint_id=request.endpoint_id,
                request_id=request.request_id,
                status=last.status,
                answered_at=last.answered_at,
            )
        raise last

    async def _result_once(self, request: QueuedRequest, is_readable: Callable[[Result], bool]) -> Result:
        """One answer to the question for a result."""
        answer = await self._call("GET", request.result_url, request)
        if ended := ending(answer, endpoint_id=request.endpoint_id, request_id=request.request_id):
            if answer.request_id in (None, request.request_id):
                raise ended
            told = f"Asked for the result of {request.request_id}, fal gave that of {answer.request_id!r}."
            raise _about(UnexpectedAnswer(message=told), request)
        payload = answer.object()
        in_progress = payload is not None and payload.get("detail") == "Request is still in progress"
        if payload is None or not answer.is_success or in_progress:
            raise _about(refusal(answer), request)
        result = Result(payload, answer.billable_units, request.request_id, answer.request_id)
        if not is_readable(result):
            told = f"fal's answer for {request.request_id} is not one of the model's: {answer.excerpt!r}."
            raise _about(UnexpectedAnswer(message=told), request)
        return result

    async def cancel(self, request: QueuedRequest) -> CancelAnswer:
        """Ask fal to drop the request. A running one may complete all the same.

        `OK` is only what says so in its body: it proves that the request was dropped before any work.
        """

        async def once() -> CancelAnswer:
            answer = await self._call("PUT", request.cancel_url, request)
            body = answer.object()
            word = text((body or {}).get("status"))
            if answer.status == 200 and (word == CancelAnswer.OK or (body or {}).get("success") is True):
                return CancelAnswer.OK
            if answer.is_success:
                return CancelAnswer.CANCELLATION_REQUESTED
            if answer.status == 400 and word == CancelAnswer.ALREADY_COMPLETED:
                return CancelAnswer.ALREADY_COMPLETED
            if answer.status == 404 and body is not None:
                return CancelAnswer.NOT_FOUND
            raise _about(refusal(answer), request)

        return await repeating(once)

    async def _call(self, method: Literal["GET", "PUT"], url: str, request: QueuedRequest) -> Answer:
        try:
            return await self._http.ask(Call(method, url, self._http.timeouts.call_s))
        except FalError as error:
            raise _about(error, request) from None


def _can_be_id(request_id: str) -> bool:
    """Whether it can stand in a URL as one segment, and in a ledger; otherwise an id is opaque."""
    return request_id not in {"", ".", ".."} and len(request_id) <= MAX_ID_LENGTH and request_id.isprintable()


def _says_not_accepted(answer: Answer) -> bool:
    """Whether an answer to a submit says that the request was not accepted.

    A page in fal's place says nothing: a proxy may have put it over an answer that it didn't let through.
    """
    if not 400 <= answer.status < 500 or answer.status in {408, 499}:
        return False
    return answer.object() is not None or answer.status in REFUSED_WITHOUT_A_WORD


def _queued(hosts: FalHosts, endpoint_id: str, request_id: str, given: JsonObject) -> QueuedRequest:
    """The request with the URLs fal gave, or with those of its documented rule where fal gave none to trust."""
    base = f"{hosts.queue}/{app_path(endpoint_id)}/requests/{quote(request_id, safe='')}"

    def url(name: str, rule: str) -> str:
        found = text(given.get(name))
        return found if found and len(found) <= _MAX_URL_LENGTH and hosts.takes_key(found) else rule

    return QueuedRequest(
        endpoint_id=endpoint_id,
        request_id=request_id,
        status_url=url("status_url", f"{base}/status"),
        result_url=url("response_url", base),
        cancel_url=url("cancel_url", f"{base}/cancel"),
    )


def _about(error: FalError, request: QueuedRequest) -> FalError:
    """The error, as one about a request that fal has accepted."""
    error.endpoint_id, error.request_id, error.may_be_billed = request.endpoint_id, request.request_id, True
    return error


def _with_logs(url: str, logs: bool) -> str:
    return f"{url}{'&' if '?' in url else '?'}logs=1" if logs else url


def _object(line: str) -> JsonObject | None:
    try:
        value: JsonValue = from_json(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _status(body: JsonObject | None, request: QueuedRequest) -> QueueStatus:
    body = body or {}
    logs = _logs(body.get("logs"))
    if (of := text(body.get("request_id"))) and of != request.request_id:
        told = f"Asked for the status of {request.request_id}, fal gave that of {of[:MAX_ID_LENGTH]!r}."
        raise _about(UnexpectedAnswer(message=told, may_repeat=True), request)
    match body.get("status"):
        case "IN_QUEUE":
            position = _within(number(body.get("queue_position")), _MAX_POSITION)
            return InQueue(None if position is None else int(position), logs)
        case "IN_PROGRESS":
            return InProgress(logs)
        case "COMPLETED":
            metrics = body.get("metrics")
            seconds = number(metrics.get("inference_time")) if isinstance(metrics, dict) else None
            seconds = _within(seconds, _MAX_INFERENCE_S)
            return Completed(logs, seconds, text(body.get("error")), text(body.get("error_type")))
        case other:
            told = f"The status of {request.request_id} is {str(other)[:50]!r}, which the protocol does not know."
            raise _about(UnexpectedAnswer(message=told, may_repeat=True), request)


def _within(value: float | None, most: float) -> float | None:
    """The value, if it can be what it is said to be: not below zero, nor beyond all reason."""
    return value if value is not None and 0 <= value <= most else None


def _logs(value: JsonValue) -> tuple[LogLine, ...]:
    """The log lines that can be read: a malformed line must not cost a paid request."""
    return tuple(
        LogLine(message, text(entry.get("timestamp")), text(entry.get("level")))
        for entry in (value if isinstance(value, list) else [])
        if isinstance(entry, dict) and (message := text(entry.get("message")))
    )

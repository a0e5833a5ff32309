"""fal, from memory: a queue with a truth for every request, a bill, and answers that may say anything for a while.

A request's truth is decided when it is accepted: it will bring a picture, end with a typed error that costs nothing,
or never end. `Fal.lies` holds, for each kind of call, what is answered next instead of the truth. A lie may be
anything, but

- the answer to a submit is another's only if that one is known: its result was asked for;
- the same typed error is never told three times in a row of a request that did not end so: that is how fal proves it;
- nothing but the truth says `{"status": "OK"}` to a cancel, or that a request ended, in the list of requests;
- a delivery that says OK of a request has the pictures that it brought, or none;
- a 4xx with a JSON body to a submit is true: that submit was not accepted.
"""

import asyncio
import hashlib
import io
import json
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, urlsplit

import aiohttp
import httpx2
from PIL import Image

from tests.adversary.virtual_time import EPOCH

KEPT_S = 30 * 24 * 3600.0
"""For so many seconds fal keeps what a request brought."""

LATEST_ANSWER_S = 5.0
"""By then fal's answer to a submit has been heard, so that the same one to another submit shows."""

BODIES = {
    "nothing": b"",
    "html": b"<html><center>nginx</center></html>",
    "cut": b'{"status": "COMPL',
    "null": b"null",
    "[]": b"[]",
    "{}": b"{}",
    "text": b'{"detail": "Something went wrong"}',
    "policy": b'{"detail": [{"loc": ["body", "prompt"], "msg": "flagged", "type": "content_policy_violation"}]}',
    "downstream": b'{"detail": [{"loc": ["body"], "msg": "failed", "type": "downstream_service_error"}]}',
    "runner": b'{"detail": "Runner disconnected", "error_type": "runner_disconnected"}',
    "internal": b'{"detail": "Internal error", "error_type": "internal_error"}',
    "no status": b'{"status": "NOT_FOUND"}',
    "no request": b'{"detail": "Request not found"}',
    "not yet": b'{"detail": "Request is still in progress"}',
    "queued": b'{"status": "IN_QUEUE", "queue_position": 3}',
    "done": b'{"status": "COMPLETED", "metrics": {}}',
    "failed": b'{"status": "FAILED"}',
    "error": b'{"status": "COMPLETED", "error": "Runner gone", "error_type": "runner_disconnected"}',
    "requested": b'{"status": "CANCELLATION_REQUESTED"}',
    "too late": b'{"status": "ALREADY_COMPLETED"}',
    "no images": b'{"images": [], "seed": 1}',
    "null images": b'{"images": null, "seed": 1}',
    "odd images": b'{"images": [{"address": "somewhere"}], "seed": 1}',
    "no items": b'{"items": [], "next_cursor": null, "has_more": false}',
    "more items": b'{"items": [], "next_cursor": null, "has_more": true}',
    "wrong items": b'{"items": [{"request_id": 7}], "has_more": false}',
}
TYPED = {"policy": (422,), "downstream": (500,), "runner": (503,), "internal": (500,)}
"""The typed errors a request may end with, and their status."""
ODD = {
    "seed null": lambda result: {**result, "seed": None},
    "no seed": lambda result: {"images": result["images"]},
    "huge seed": lambda result: {**result, "seed": 10**30},
    "odd size": lambda result: {
        **result,
        "images": [{**image, "file_size": "huge"} for image in result["images"]],
    },
    "more fields": lambda result: {**result, "seeds": [1, 2], "timings": {"inference": 1e300}},
}
"""True results in an odd form: a picture in them is one that fal gave."""
INFERENCE_S = {"": 0.5, "long": 1e300, "negative": -1e12, "text": "1e15"}


@dataclass(frozen=True)
class Say:
    """A lie: this status and body. Of a submit it may be that the request was accepted all the same."""

    status: int
    body: str = "nothing"
    with_id: bool = True
    accepted: bool = True

    def __repr__(self):
        parts = [str(self.status), repr(self.body)]
        parts += [] if self.with_id else ["with_id=False"]
        return f"Say({', '.join(parts)}{'' if self.accepted else ', accepted=False'})"


@dataclass(frozen=True)
class Drop:
    """The call arrives and its answer doesn't; after a silence, or at once."""

    hangs: bool = False


@dataclass(frozen=True)
class Refuse:
    """No connection can be made."""


@dataclass(frozen=True)
class OtherRows:
    """The answer that another request of the account should get, with that one's id in its header."""


@dataclass(frozen=True)
class Odd:
    """The true result in an odd form; the true status with an odd time of work."""

    form: str


@dataclass(frozen=True)
class Lag:
    """fal's list without what was sent in the last so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Early:
    """A delivery, so many seconds before the request has ended; a negative number makes it a late one."""

    seconds: float


@dataclass(frozen=True)
class Twice:
    """A delivery that comes again after so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Ends:
    """How a request will end: `picture`, a typed error of `TYPED`, or `never`."""

    how: str = "picture"
    after_s: float = 3.0


@dataclass
class Request:
    """A request that fal has accepted."""

    id: str
    endpoint: str
    body: dict
    asks_for: str
    """What tells it from requests that ask for something else: the body, with digests for URLs."""
    sent_s: float
    starts_s: float
    ends_s: float
    how: str
    webhook: str | None = None
    """Where its end is to be delivered."""
    is_known: bool = False
    """Whether its result was asked for: some ledger has it."""
    cancelled: bool = False
    told: deque = field(default_factory=lambda: deque(maxlen=2))
    """The typed errors that its result was said to be, in the last answers."""

    def has_ended(self, now_s):
        return (self.how != "never" or self.cancelled) and now_s >= self.ends_s

    @property
    def is_paid(self):
        """Whether fal charges for it: sooner or later it brings a picture, or nobody knows."""
        return not self.cancelled and self.how not in TYPED

    def still_gives(self, now_s):
        """Whether its picture is there, or will be."""
        return not self.cancelled and self.how == "picture" and now_s < self.ends_s + KEPT_S


class PaidTwice(AssertionError):
    """fal was asked to make again what it has made, or may yet make."""


class Fal:
    """fal, whoever talks to it."""

    def __init__(self, loop, rng, receive):
        """Deliver by awaiting `receive(url, body)`, which says whether it was taken."""
        self.requests = {}
        self.lies = defaultdict(deque)
        """By kind of call: what is answered next instead of the truth."""
        self.fates = deque()
        """How the next accepted requests end."""
        self.excused = set()
        """What a person has decided to pay for twice, if need be."""
        self.calls = 0
        self.problem = None
        """The first time that something was paid for twice."""
        self._loop = loop
        self._rng = rng
        self._receive = receive
        self._uploads = {}

    @property
    def now_s(self):
        return self._loop.now_s

    def of(self, asks_for):
        return [one for one in self.requests.values() if one.asks_for == asks_for]

    def holds(self, arguments, such):
        """Say whether a request such as that came of these arguments."""
        return any(such(one) for asked in self.asked_by(arguments) for one in self.of(asked))

    def asked_by(self, arguments):
        """Return what requests of these arguments ask for, whose picture fields may be written otherwise."""
        wanted = arguments.get("prompt"), arguments.get("seed")
        return {
            one.asks_for
            for one in self.requests.values()
            if (one.body.get("prompt"), one.body.get("seed")) == wanted
        }

    def answer(self, request):
        """Return the true answer to a call, or the lie that is due, after what the call brings about."""
        self.calls += 1
        url = urlsplit(str(request.url))
        kind, call = self._kind(request.method, url.hostname, url.path)
        lie = self.lies[kind].popleft() if self.lies[kind] else None
        if isinstance(lie, Refuse):
            raise httpx2.ConnectTimeout("no way") from aiohttp.ConnectionTimeoutError()
        return call(request, url, lie)

    def _kind(self, method, host, path):
        parts = path.strip("/").split("/")
        if host == "queue.fal.run" and "requests" in parts:
            after = parts[parts.index("requests") + 2 :]
            name = {"PUT": "cancel"}.get(method, after[0] if after else "result")
            return name, self._about
        if host == "queue.fal.run":
            return "submit", self._submit
        if host == "api.fal.ai":
            return "list", self._list
        if host == "rest.fal.ai":
            return "upload", self._begin_upload
        return ("put", self._put) if method == "PUT" else ("media", self._media)

    # The queue

    def _submit(self, request, url, lie):
        body = json.loads(request.content)
        if isinstance(lie, Say) and (not lie.accepted or (400 <= lie.status < 500 and _is_json(lie.body))):
            return _said(lie, None)
        others = [
            one
            for one in self.requests.values()
            if one.is_known and one.sent_s < self.now_s - LATEST_ANSWER_S
        ]
        accepted = self._accept(url.path.strip("/"), body, parse_qs(url.query).get("fal_webhook", [None])[0])
        if isinstance(lie, Say):
            return _said(lie, accepted.id)
        told = self._rng.choice(others) if isinstance(lie, OtherRows) and others else accepted
        base = f"https://queue.fal.run/fal-ai/ideogram/requests/{told.id}"
        urls = {"status_url": f"{base}/status", "response_url": base, "cancel_url": f"{base}/cancel"}
        answer = _json(200, {"status": "IN_QUEUE", "request_id": told.id, **urls}, told.id)
        return lie if isinstance(lie, Drop) else answer

    def _accept(self, endpoint, body, webhook):
        fate = self.fates.popleft() if self.fates else Ends()
        starts_s = self.now_s + self._rng.choice((0.0, 0.5, 2.0))
        accepted = Request(
            id=f"{len(self.requests):08d}-0000-7000-8000-000000000000",
            endpoint=endpoint,
            body=body,
            asks_for=self._asks_for(body),
            sent_s=self.now_s,
            starts_s=starts_s,
            ends_s=starts_s + fate.after_s,
            how=fate.how,
            webhook=webhook,
        )
        before = [one for one in self.of(accepted.asks_for) if one.is_paid or not one.has_ended(self.now_s)]
        if before and accepted.asks_for not in self.excused:
            told = f"{body.get('prompt')!r} is with fal as {[one.id[:8] for one in before]}"
            self.problem = self.problem or PaidTwice(f"{told} and was submitted again at {self.now_s:.3f} s")
        self.requests[accepted.id] = accepted
        if accepted.how != "never":
            self._deliver(accepted)
        return accepted

    def _asks_for(self, body):
        def without_urls(value):
            if isinstance(value, list):
                return [without_urls(one) for one in value]
            content = self._uploads.get(value) if isinstance(value, str) else None
            return value if content is None else hashlib.sha256(content).hexdigest()

        return json.dumps(without_urls(list(body.items())), sort_keys=True)

    def _about(self, request, url, lie):
        parts = url.path.strip("/").split("/")
        name = parts[parts.index("requests") + 1]
        kind = self._kind(request.method, url.hostname, url.path)[0]
        truth = {"status": self._status, "result": self._result, "cancel": self._cancel}[kind]
        about = self.requests.get(name)
        if about is None:
            return _said(Say(404, "no status" if kind != "result" else "no request"), name)
        about.is_known |= kind == "result"
        if isinstance(lie, OtherRows) and kind != "cancel" and len(self.requests) > 1:
            other = self._rng.choice([one for one in self.requests.values() if one is not about])
            return truth(other, None)
        if isinstance(lie, Say) and (kind != "result" or self._may_say(about, lie)):
            return _said(lie, about.id)
        heard = list(about.told)
        answer = truth(about, lie)
        if isinstance(lie, Drop):
            about.told.clear()
            about.told.extend(heard)
            return lie
        return answer

    def _may_say(self, about, lie):
        """Say whether this lie about a result can still pass for a fault that passes; take note of it."""
        typed = lie.body if lie.body in TYPED else None
        is_true = about.how == typed and about.has_ended(self.now_s)
        if typed is not None and list(about.told) == [typed, typed] and not is_true:
            return False
        about.told.append(typed)
        return True

    def _status(self, about, lie):
        if self.now_s >= about.ends_s + KEPT_S:
            return _said(Say(404, "no status"), about.id)
        if about.cancelled or about.has_ended(self.now_s):
            seconds = INFERENCE_S.get(lie.form, 0.5) if isinstance(lie, Odd) else 0.5
            told = {"status": "COMPLETED", "request_id": about.id, "metrics": {"inference_time": seconds}}
            if about.how in TYPED or about.cancelled:
                told |= {"metrics": {}, "error": "It failed"}
            return _json(200, told, about.id)
        if self.now_s < about.starts_s:
            return _json(202, {"status": "IN_QUEUE", "request_id": about.id, "queue_position": 0}, about.id)
        return _json(202, {"status": "IN_PROGRESS", "request_id": about.id}, about.id)

    def _result(self, about, lie):
        if self.now_s >= about.ends_s + KEPT_S:
            return _said(Say(404, "no request"), about.id)
        if about.cancelled:
            about.told.append("client_cancelled")
            return _json(499, {"detail": "Cancelled", "error_type": "client_cancelled"}, about.id)
        if not about.has_ended(self.now_s):
            about.told.append(None)
            return _said(Say(400, "not yet"), about.id)
        if about.how in TYPED:
            about.told.append(about.how)
            return _said(Say(*TYPED[about.how], about.how), about.id)
        about.told.append(None)
        return _json(200, self._brought(about, lie), about.id)

    def _brought(self, about, lie):
        """Return what a request brings, maybe in an odd form."""
        count = int(about.body.get("num_images", 1))
        images = [
            {"url": f"https://v3.fal.media/files/{about.id}-{index}.png", "content_type": "image/png"}
            for index in range(count)
        ]
        result = {"images": images, "seed": about.body.get("seed")}
        if isinstance(lie, Odd) and lie.form in ODD:
            result = ODD[lie.form](result)
        return result

    def _cancel(self, about, lie):
        if about.cancelled or about.has_ended(self.now_s):
            return _said(Say(400, "too late"), about.id)
        if self.now_s < about.starts_s:
            about.cancelled = True
            about.ends_s = self.now_s
            self._deliver(about)
            return _json(200, {"status": "OK"}, about.id)
        return _said(Say(202, "requested"), about.id)

    # Deliveries

    def _deliver(self, about):
        """Have its end delivered, if it is to be: the truth, or the lie that is due."""
        if about.webhook is None:
            return
        lie = self.lies["delivery"].popleft() if self.lies["delivery"] else None
        in_s = max(about.ends_s - self.now_s - (lie.seconds if isinstance(lie, Early) else 0), 0)
        for after_s in (0, lie.seconds) if isinstance(lie, Twice) else (0,):
            self._loop.call_later(in_s + after_s, self._begin_delivery, about, lie)

    def _begin_delivery(self, about, lie):
        if not isinstance(lie, Drop | Refuse):
            self._loop.owned(None, self._receive(about.webhook, self._delivered(about, lie)))

    def _delivered(self, about, lie):
        if isinstance(lie, OtherRows) and len(self.requests) > 1:
            return self._delivered(
                self._rng.choice([one for one in self.requests.values() if one is not about]), None
            )
        told = {"request_id": about.id, "gateway_request_id": about.id}
        if isinstance(lie, Say):
            said = BODIES[lie.body]
            if lie.status == 200:
                return json.dumps({**told, "status": "OK"})[:-1].encode() + b', "payload": ' + said + b"}"
            error = {"status": "ERROR", "error": f"Invalid status code: {lie.status}"}
            return (
                json.dumps({**told, **error, "payload": json.loads(said)}).encode()
                if _is_json(lie.body)
                else said
            )
        if about.cancelled or about.how != "picture":
            error = {"status": "ERROR", "error": "Invalid status code: 500", "payload": None}
            return json.dumps({**told, **error}).encode()
        if isinstance(lie, Odd) and lie.form == "withheld":
            return json.dumps(
                {**told, "status": "ERROR", "payload": None, "payload_error": "too large"}
            ).encode()
        return json.dumps({**told, "status": "OK", "payload": self._brought(about, lie)}).encode()

    # The list, and files

    def _list(self, request, url, lie):
        if isinstance(lie, Say):
            return _said(lie, None)
        asked = parse_qs(url.query)
        start, end = (datetime.fromisoformat(asked[name][0]) for name in ("start", "end"))
        latest = self.now_s - (lie.seconds if isinstance(lie, Lag) else 0)
        items = [
            self._item(one)
            for one in reversed(self.requests.values())
            if one.endpoint in asked["endpoint_id"]
            and (one.cancelled or one.has_ended(latest))
            and self.now_s < one.ends_s + KEPT_S
            and start <= _at(one.sent_s) < end
            and ("request_id" not in asked or one.id in asked["request_id"])
        ]
        begin, limit = int(asked.get("cursor", ["0"])[0]), int(asked.get("limit", ["50"])[0])
        page, more = items[begin : begin + limit], len(items) > begin + limit
        cursor = str(begin + limit) if more else None
        answer = _json(200, {"items": page, "next_cursor": cursor, "has_more": more}, None)
        return lie if isinstance(lie, Drop) else answer

    def _item(self, one):
        code = 499 if one.cancelled else 200 if one.how == "picture" else TYPED[one.how][0]
        times = {"sent_at": one.sent_s, "started_at": min(one.starts_s, one.ends_s), "ended_at": one.ends_s}
        return {
            "request_id": one.id,
            "endpoint_id": one.endpoint,
            **{name: _at(moment).isoformat() for name, moment in times.items()},
            "status_code": code,
            "json_input": one.body,
        }

    def _begin_upload(self, request, url, lie):
        if isinstance(lie, Say):
            return _said(lie, None)
        name = f"https://v3.fal.media/files/up-{len(self._uploads)}.png"
        self._uploads[name] = b""
        answer = _json(200, {"upload_url": name, "file_url": name}, None)
        return lie if isinstance(lie, Drop) else answer

    def _put(self, request, url, lie):
        if isinstance(lie, Say):
            return _said(lie, None)
        self._uploads[str(request.url)] = request.content
        return lie if isinstance(lie, Drop) else _response(200, {}, b"")

    def _media(self, request, url, lie):
        if isinstance(lie, Say):
            return _said(lie, None)
        name = url.path.rpartition("/")[2]
        content = self._uploads.get(str(request.url)) or picture(name)
        if isinstance(lie, Odd):
            content = content[:-7]
        about = self.requests.get(name.rpartition("-")[0])
        if about and not about.still_gives(self.now_s):
            return _said(Say(404, "text"), None)
        return lie if isinstance(lie, Drop) else _response(200, {}, content)


def picture(name):
    """Return a tiny PNG that no other name has."""
    color = tuple(hashlib.sha256(name.encode()).digest()[:3])
    sink = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(sink, "PNG")
    return sink.getvalue()


def _at(now_s):
    return EPOCH + timedelta(seconds=now_s)


def _json(status, value, request_id):
    headers = {"content-type": "application/json"}
    headers |= {} if request_id is None else {"x-fal-request-id": request_id}
    return _response(status, headers, json.dumps(value).encode())


def _said(lie, request_id):
    headers = {"x-fal-request-id": request_id} if request_id and lie.with_id else {}
    return _response(lie.status, headers, BODIES[lie.body])


def _response(status, headers, content):
    return httpx2.Response(status, headers=dict(headers), stream=httpx2.ByteStream(content))


def _is_json(body):
    return BODIES[body].startswith((b"{", b"[", b"null")) and body != "cut"


class Wire(httpx2.AsyncBaseTransport):
    """The network between one process and fal."""

    def __init__(self, fal, life):
        self._fal = fal
        self._life = life

    async def handle_async_request(self, request):
        await self._life.waited()
        answer = self._fal.answer(request)
        await self._life.waited()
        if isinstance(answer, Drop):
            if answer.hangs:
                await asyncio.sleep(24 * 3600)
            raise httpx2.ReadError("gone") from aiohttp.ServerDisconnectedError()
        answer.headers["date"] = format_datetime(_at(self._fal.now_s), usegmt=True)
        return answer

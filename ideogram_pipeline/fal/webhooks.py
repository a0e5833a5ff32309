"""Webhook deliveries: whether they are fal's (Ed25519 against its published keys), and what they say.

fal delivers at least once, and tries again for as long as it keeps the result, so a receiver must be idempotent in
the request id; a delivery is a hint to fetch the result, and asking for the status remains the backstop.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from base64 import urlsafe_b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic_core import from_json

from ideogram_pipeline.fal.answers import JsonObject, text
from ideogram_pipeline.fal.errors import UnexpectedAnswer, WebhookRejected
from ideogram_pipeline.fal.http import Call, Http

TOLERANCE_S = 300
"""Largest difference between a delivery's timestamp and now (fal docs, webhooks page)."""
KEYS_KEPT_S = 24 * 3600
"""How long fal's public keys may be kept (same page)."""
KEYS_RETRIED_S = 300
"""From which age the keys are fetched anew when a signature fits none of them; younger ones make it a forgery."""
REQUEST_ID, USER_ID = "x-fal-webhook-request-id", "x-fal-webhook-user-id"
TIMESTAMP, SIGNATURE = "x-fal-webhook-timestamp", "x-fal-webhook-signature"
REMEMBERED = 10_000
"""How many request ids a receiver remembers to tell a repeated delivery."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The request brought a result."""

    payload: JsonObject
    """The model's output."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended without a result. `FalClient.result` raises the error in full."""

    error: str
    """fal's word, such as `Invalid status code: 422`."""
    payload: JsonObject | None
    """What the model said, where it did. It may echo the input, so don't log it."""


@dataclass(frozen=True, slots=True)
class PayloadWithheld:
    """The request ended and its output could not be delivered: fetch the result from the queue."""

    reason: str
    """fal's word on why."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One genuine delivery."""

    request_id: str
    """The request it is about."""
    user_id: str
    """The account whose request it is. Compare it with your own: any account can have fal deliver to your URL."""
    outcome: Succeeded | Failed | PayloadWithheld
    """What became of it."""
    repeated: bool
    """Whether this client has accepted a delivery for the same request before (among the last 10,000)."""


class WebhookCalls:
    """Receiving webhooks."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._keys: Sequence[Ed25519PublicKey] = ()
        self._keys_read_at = -float("inf")
        self._keys_lock = asyncio.Lock()
        self._delivered: dict[str, None] = {}

    async def accept_webhook(self, headers: Mapping[str, str], body: bytes) -> Delivery:
        """Verify a delivery and read it. `body` is the raw body, as it came.

        Raises `WebhookRejected` for what is forged, stale or unreadable, and other `FalError` where fal's keys can't
        be had: answer those with 503, so that fal delivers again.
        """
        keys = await self._public_keys(KEYS_KEPT_S)
        try:
            user_id = verify(headers, body, keys, now=time.time())
        except WebhookRejected:
            renewed = await self._public_keys(KEYS_RETRIED_S)
            if renewed is keys:
                raise
            user_id = verify(headers, body, renewed, now=time.time())
        request_id, outcome = read_delivery(body)
        repeated = request_id in self._delivered
        self._delivered[request_id] = None
        if len(self._delivered) > REMEMBERED:
            del self._delivered[next(iter(self._delivered))]
        return Delivery(request_id, user_id, outcome, repeated)

    async def webhook_keys(self) -> None:
        """Read fal's public keys, unless they were read within a day. Raises `FalError` where they can't be had.

        `accept_webhook` does so by itself; this is for a receiver that wants to know whether it will be able to.
        """
        await self._public_keys(KEYS_KEPT_S)

    async def _public_keys(self, max_age_s: float) -> Sequence[Ed25519PublicKey]:
        async with self._keys_lock:
            if time.monotonic() - self._keys_read_at > max_age_s:
                url = f"{self._http.hosts.rest}/.well-known/jwks.json"
                answer = await self._http.fetch(Call("GET", url, self._http.timeouts.call_s, keyed=False))
                self._keys, self._keys_read_at = _read_keys(answer.object() or {}), time.monotonic()
            return self._keys


def verify(headers: Mapping[str, str], body: bytes, keys: Sequence[Ed25519PublicKey], *, now: float) -> str:
    """Check a delivery's freshness and signature, and return the account that signed for it.

    `now` is in Unix seconds. Raises `WebhookRejected`.
    """
    given = {name.lower(): value for name, value in headers.items()}
    parts = [given.get(name, "") for name in (REQUEST_ID, USER_ID, TIMESTAMP)]
    try:
        sent_at, signature = int(parts[2]), bytes.fromhex(given.get(SIGNATURE, ""))
        message = "\n".join([*parts, hashlib.sha256(body).hexdigest()]).encode()
    except ValueError:
        raise WebhookRejected(message="A delivery lacks a readable timestamp or signature.") from None
    if abs(now - sent_at) > TOLERANCE_S:
        raise WebhookRejected(
            message=f"A delivery is stamped {now - sent_at:.0f} s ago; {TOLERANCE_S} s are allowed."
        )
    for key in keys:
        try:
            key.verify(signature, message)
        except InvalidSignature:
            continue
        return parts[1]
    raise WebhookRejected(message="A delivery's signature fits none of fal's keys.")


def read_delivery(body: bytes) -> tuple[str, Succeeded | Failed | PayloadWithheld]:
    """The request id and the outcome a delivery tells. Raises `WebhookRejected` for an unknown shape."""
    try:
        told = from_json(body)
    except ValueError:
        told = None
    told = told if isinstance(told, dict) else {}
    request_id, payload = text(told.get("request_id")), told.get("payload")
    if request_id and (withheld := text(told.get("payload_error"))):
        return request_id, PayloadWithheld(withheld)
    if request_id and told.get("status") == "OK" and isinstance(payload, dict):
        return request_id, Succeeded(payload)
    if request_id and told.get("status") == "ERROR":
        return request_id, Failed(
            text(told.get("error")) or "", payload if isinstance(payload, dict) else None
        )
    raise WebhookRejected(message="A delivery is none of the shapes fal documents.")


def _read_keys(jwks: JsonObject) -> Sequence[Ed25519PublicKey]:
    """The Ed25519 keys of a JWKS; keys of other kinds are passed over."""
    entries = jwks.get("keys")
    found = []
    for entry in entries if isinstance(entries, list) else []:
        x = text(entry.get("x")) if isinstance(entry, dict) else None
        if x is not None:
            try:
                found.append(Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(x + "=" * (-len(x) % 4))))
            except ValueError:
                continue
    if not found:
        raise UnexpectedAnswer(message="fal's JWKS holds no Ed25519 key.", may_be_billed=False)
    return found

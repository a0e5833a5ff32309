"""The inbox: what fal delivers, in the store, where the run that waits for it finds it, on whatever host.

    inbox/secret.json                                                   made once, by whoever needs it first
    inbox/batch=<batch>/<fingerprint>-<attempt>-<request>.json          a letter: one delivered end of one request

A submit tells fal where to deliver: an address that names batch, fingerprint and attempt, and carries a token that only
a holder of the store's secret can make. A letter is created only if it isn't there, so that a repeated delivery changes
nothing. The run that records how an attempt ended removes its letter, and the letters of all that have ended, so
that the folder holds what is unread and one listing of it serves every row of a run. What fal delivers after that is
removed by the batch's next run, or by reconciling.

fal signs whatever it delivers, for every customer alike: a signature says that fal speaks, not that it speaks of our
request. So strangers are kept out by the token; and a letter is read only for the request that the ledger knows of its
attempt. Where the ledger knows none, because the submit's answer was lost, the letter is a hint: fal is asked, with our
own key, whether the request is ours before it is written into the ledger (see `reconcile`).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.fal.webhooks import Delivery, Succeeded
from ideogram_pipeline.generation.ledger import Ledger, Reserved
from ideogram_pipeline.storage import Store

LOOK_EVERY_S = 1.0
"""Seconds between two looks at a batch's letters: each is one listing, for all rows of the run."""

_PATH = "inbox/secret.json"
_NAME = re.compile(r"(?P<fingerprint>[0-9a-f]{64})-(?P<attempt>[1-9]\d{0,3})-[0-9a-f]{16}\.json")

_log = logging.getLogger(__name__)


class Secret(BaseModel):
    """By what this store's own addresses are told from a stranger's."""

    model_config = ConfigDict(frozen=True)

    secret: str = Field(min_length=64, repr=False, description="Random, in hexadecimal.")

    @classmethod
    def of(cls, store: Store) -> Self:
        """Return the store's secret, made if there is none yet.

        Raises:
            StoreError: the store can't be read or written, or the secret is damaged.
        """
        try:
            content = store.get(_PATH)
        except FileNotFoundError:
            fresh = cls(secret=secrets.token_hex(32))
            store.create(_PATH, fresh.model_dump_json().encode(), durable=True)
            content = store.get(_PATH)
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            raise StoreError(
                f"{store.where(_PATH)!r} is damaged. Remove it: a new one is made, and what fal delivers to the "
                "old addresses is refused and asked for instead."
            ) from None


@dataclass(frozen=True, slots=True)
class Address:
    """Where the end of one attempt is delivered to."""

    batch: str
    """The partition."""
    fingerprint: str
    """The request's identity, 64 hexadecimal digits."""
    attempt: int
    """Which submit of it."""

    @classmethod
    def of(cls, reserved: Reserved) -> Self:
        """Return the address of a reserved attempt."""
        return cls(reserved.request.batch, reserved.request.fingerprint, reserved.attempt)

    def token(self, secret: Secret) -> str:
        """Return the token that proves that this store made the address."""
        told = f"{self.batch}\n{self.fingerprint}\n{self.attempt}".encode()
        return hmac.new(bytes.fromhex(secret.secret), told, hashlib.sha256).hexdigest()[:32]

    def is_ours(self, token: str, secret: Secret) -> bool:
        """Say whether this token is the address's: a store with this secret made it."""
        return hmac.compare_digest(self.token(secret).encode(), token.encode())

    def url(self, base: str, secret: Secret) -> str:
        """Return the URL at a receiver that is reached at `base`."""
        parts = (quote(self.batch, safe=""), self.fingerprint, str(self.attempt), self.token(secret))
        return "/".join((base.rstrip("/"), *parts))

    def path(self, request_id: str) -> str:
        """Return where in the store the letter about a request lies; an id of fal's may hold any characters."""
        name = hashlib.sha256(request_id.encode()).hexdigest()[:16]
        return f"{_folder(self.batch)}/{self.fingerprint}-{self.attempt}-{name}.json"


class Letter(BaseModel):
    """What fal delivered: that a request has ended, and its result if it brought one."""

    model_config = ConfigDict(frozen=True)

    request_id: str = Field(description="fal's id of the request.")
    user_id: str = Field(description="The account whose request it is, as fal says.")
    payload: dict[str, JsonValue] | None = Field(
        description="The model's answer as fal sent it; None where fal's queue has to be asked how it ended."
    )

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Return what a delivery says."""
        payload = delivery.outcome.payload if isinstance(delivery.outcome, Succeeded) else None
        return cls(request_id=delivery.request_id, user_id=delivery.user_id, payload=payload)


async def put_letter(store: Store, address: Address, letter: Letter) -> None:
    """Write a letter, durably, unless it is there.

    Raises:
        StoreError: it may not have been written.
    """
    await store.create_async(address.path(letter.request_id), letter.model_dump_json().encode())


async def read_letter(store: Store, path: str) -> Letter | None:
    """Return a letter; None where it is gone, or the power went before it was whole."""
    try:
        return Letter.model_validate_json(await store.get_async(path))
    except (FileNotFoundError, ValidationError):
        return None


async def letters_about(store: Store, ledger: Ledger) -> Mapping[tuple[str, int], Sequence[str]]:
    """Return the paths of a batch's letters, by fingerprint and attempt; those that nobody will read are removed."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    read: list[str] = []
    for letter in await store.objects_async(_folder(ledger.batch)):
        if name := _NAME.fullmatch(letter.path.rsplit("/", 1)[-1]):
            fingerprint, attempt = name["fingerprint"], int(name["attempt"])
            if _has_ended(ledger, fingerprint, attempt) or ledger.was_erased(fingerprint):
                read.append(letter.path)
            else:
                found[fingerprint, attempt].append(letter.path)
    await store.delete_async(read)
    return found


def _has_ended(ledger: Ledger, fingerprint: str, attempt: int) -> bool:
    entry = ledger.entries.get(fingerprint)
    known = [one for one in entry.attempts if one.reserved.attempt == attempt] if entry else []
    return any(one.settled for one in known)


class Inbox:
    """The letters of one batch, while a run waits for them."""

    def __init__(self, store: Store, ledger: Ledger, receiver: str) -> None:
        """Have fal deliver to the receiver that the internet reaches at this URL."""
        self._store = store
        self._ledger = ledger
        self._receiver = receiver
        self._secret = Secret.of(store)
        self._letters: Mapping[tuple[str, int], Sequence[str]] = {}

    def url(self, reserved: Reserved) -> str:
        """Return where fal delivers how an attempt ended."""
        return Address.of(reserved).url(self._receiver, self._secret)

    def holds(self, reserved: Reserved, request_id: str) -> bool:
        """Say whether the letter about a request of this attempt was there at the last look."""
        address = Address.of(reserved)
        return address.path(request_id) in self._letters.get((address.fingerprint, address.attempt), ())

    async def payload(self, reserved: Reserved, request_id: str) -> dict[str, JsonValue] | None:
        """Return the answer that the letter about a request carries, or None where fal has to be asked for it."""
        letter = await read_letter(self._store, Address.of(reserved).path(request_id))
        return letter.payload if letter and letter.request_id == request_id else None

    @asynccontextmanager
    async def watched(self, on_look: Callable[[], None]) -> AsyncIterator[None]:
        """Look for letters, first and then again and again, until the block is left; report every look."""
        await self._look()

        async def watch() -> None:
            while True:
                await asyncio.sleep(LOOK_EVERY_S)
                await self._look()
                on_look()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])
        await self._look()  # what was recorded last has been read, and is removed

    async def wait_for(self, unanswered: Iterable[Reserved], patience_s: float) -> None:
        """Wait until a letter about each of these attempts has come, or that long has passed since it was sent."""
        time_s, now = asyncio.get_running_loop().time(), datetime.now(UTC)
        until = {
            (one.request.fingerprint, one.attempt): time_s
            + patience_s
            - max((now - one.reserved_at).total_seconds(), 0)
            for one in unanswered
        }
        while any(attempt not in self._letters and time_s < end for attempt, end in until.items()):
            await asyncio.sleep(LOOK_EVERY_S)
            time_s = asyncio.get_running_loop().time()

    async def _look(self) -> None:
        try:
            self._letters = await letters_about(self._store, self._ledger)
        except (StoreError, FileNotFoundError) as error:  # another run may remove what is being listed
            _log.warning("the inbox could not be looked at; fal is asked instead: %s", error)


def _folder(batch: str) -> str:
    return f"inbox/batch={batch}"

"""The budget: spending limits in dollars that parallel runs, processes and hosts keep together through the store.

A limit has a log of entries that are each created once and never changed:

    budget/day=2026-11-22/000001.json     what all runs on the store reserve in one UTC day
    budget/run=<run id>/000001.json       what one run reserves, over its retries

Each entry holds the total after it, and the next one is created only if it isn't there. So the entries of all runs
have one order, and the total can't pass the limit, whoever races whom.

Not every request costs a write: a run reserves a block and hands out of it in memory. `close` gives back what is left.
What a crashed run held stays counted that day, two blocks at most, so a limit is never passed and may be reached early.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage import Store

BLOCK_REQUESTS = 20
"""A block is worth at most so many requests ..."""
BLOCK_SHARE = Decimal("0.05")
"""... and at most this share of the limit, unless a single request costs more."""

_LEAST = Decimal("0.01")
"""Dollars that must be left of a limit for a request without a price."""
_NAME = re.compile(r"/(\d{6,})\.json$")


class OverBudget(Exception):
    """A spending limit leaves no room for the request, nor for others like it. Says which, and what to do."""


class UnknownPrice(Exception):
    """The request has no known price, and such requests aren't allowed. Says how to allow them."""


class BudgetEntry(BaseModel):
    """One step of a limit's log, as it lies in the store."""

    model_config = ConfigDict(frozen=True)

    entry_id: str = Field(
        description="Tells the writer that an entry is its own, if the store's answer was lost."
    )
    run_id: str = Field(description="The run that made it.")
    usd: Decimal = Field(description="Dollars reserved; below zero: given back.")
    total_usd: Decimal = Field(description="Dollars reserved by all entries up to this one.")
    written_at: datetime = Field(description="UTC.")


class _Limit:
    """One spending limit: its log in the store, and what this run holds of it."""

    def __init__(
        self, store: Store, folder: str, run_id: str, limit: Decimal, *, name: str, advice: str
    ) -> None:
        self.folder = folder
        """Where its log lies."""
        self.allowance = Decimal(0)
        """Dollars reserved in the log that no request uses yet."""
        self._store = store
        self._run_id = run_id
        self._limit = limit
        self._name = name
        self._advice = advice
        self._block = Decimal(0)
        self._newest: int | None = None
        self._total = Decimal(0)

    async def read_to_the_end(self) -> None:
        """Learn what all runs have reserved until now."""
        while await self._read_on():
            pass

    @property
    def remaining(self) -> Decimal:
        """Dollars this run can still have, as far as it has read the log."""
        return self._limit - self._total + self.allowance

    async def cover(self, usd: Decimal) -> None:
        """Reserve until the allowance is worth `usd`, or raise `OverBudget`."""
        await self._open()
        self._block = max(usd, min(BLOCK_REQUESTS * usd, BLOCK_SHARE * self._limit))
        while self.allowance < usd:
            if usd <= self.remaining:
                block = min(self._block, self._limit - self._total)
                if await self._append(block):
                    self.allowance += block
            elif not await self._read_on():  # what others gave back meanwhile may do
                raise OverBudget(
                    f"{self._name} is {_dollars(self._limit)}, of which {_dollars(self._total - self.allowance)} is "
                    f"spent or reserved: too little is left for the next request. {self._advice}"
                )

    async def credit(self, usd: Decimal) -> None:
        """Take back what a request didn't cost, or count what it cost beyond its price (`usd` below zero)."""
        self.allowance += usd
        if self.allowance < 0:
            await self._give_back(self.allowance)
        elif self.allowance > 2 * self._block:
            await self._give_back(self.allowance - self._block)

    async def leave(self) -> None:
        """Hold nothing any more; what is credited from now on is given back at once."""
        self._block = Decimal(0)
        await self._give_back(self.allowance)

    async def _give_back(self, usd: Decimal) -> None:
        self.allowance -= usd  # before the write: if that is cut off, money must not be held twice
        while usd and not await self._append(-usd):
            pass

    async def _append(self, usd: Decimal) -> bool:
        """Append an entry; if another run was first with its number, read that one and return False."""
        number = await self._open() + 1
        entry = BudgetEntry(
            entry_id=uuid4().hex,
            run_id=self._run_id,
            usd=usd,
            total_usd=self._total + usd,
            written_at=datetime.now(UTC),
        )
        created = await self._store.create_async(self._path(number), entry.model_dump_json().encode())
        there = entry if created else await self._read(number)
        self._newest, self._total = number, there.total_usd
        return there.entry_id == entry.entry_id

    async def _read_on(self) -> bool:
        """Read the next entry; return whether there is one."""
        number = await self._open() + 1
        try:
            entry = await self._read(number)
        except FileNotFoundError:
            return False
        self._newest, self._total = number, entry.total_usd
        return True

    async def _open(self) -> int:
        """Return the number of the newest entry known; the first time, look for it in the store."""
        if self._newest is None:
            found = await asyncio.to_thread(
                lambda: [entry.path for entry in self._store.objects(self.folder)]
            )
            newest = max((int(name[1]) for path in found if (name := _NAME.search(path))), default=0)
            if newest and await asyncio.to_thread(self._store.delete_empty, self._path(newest)):
                newest -= 1  # the power went before it was on the disk, and nobody has gone on from it
            self._total = (await self._read(newest)).total_usd if newest else Decimal(0)
            self._newest = newest
        return self._newest

    async def _read(self, number: int) -> BudgetEntry:
        path = self._path(number)
        content = await self._store.get_async(path)
        try:
            return BudgetEntry.model_validate_json(content)
        except ValidationError as error:
            raise StoreError(
                f"The budget's file {self._store.where(path)!r} can't be read: {error.errors()[0]['msg']}. "
                "Restore it from a backup; nothing is submitted meanwhile."
            ) from None

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:06}.json"


@dataclass(frozen=True, slots=True, eq=False)
class Reservation:
    """What is set aside for one request, until `Budget.settle` is told its cost."""

    usd: Decimal
    """Its price; 0 if that isn't known."""
    limits: tuple[_Limit, ...]
    """The spending limits it is counted in."""


class Budget:
    """What one run may spend. Reserve before a submit, settle when the cost is known, close at the end.

    A request counts in the UTC day it is reserved in. Without a limit nothing is read or written. Every method raises
    `StoreError` where the store fails; nothing is handed out then.
    """

    def __init__(
        self,
        store: Store,
        *,
        run_id: str,
        per_run_usd: Decimal | None,
        per_day_usd: Decimal | None,
        allow_unknown: bool,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.spent_usd = Decimal(0)
        """Dollars of the requests whose cost is known."""
        self._store = store
        self._run_id = run_id
        self._per_day = per_day_usd
        self._allow_unknown = allow_unknown
        self._clock = clock
        self._lock = asyncio.Lock()
        self._open: set[Reservation] = set()
        self._run_limit = self._limit_of_this_run(per_run_usd) if per_run_usd else None
        self._day_limit = self._limit_of_today(per_day_usd) if per_day_usd else None

    @property
    def reserved_usd(self) -> Decimal:
        """Dollars set aside for requests whose cost isn't known."""
        return sum((reservation.usd for reservation in self._open), Decimal(0))

    @property
    def remaining_usd(self) -> Decimal | None:
        """Dollars this run can still have, as far as it knows of other runs; None without a limit."""
        return min((limit.remaining for limit in self._limits()), default=None)

    async def look(self) -> Decimal | None:
        """Return the dollars that the limits leave this run, as the store has them now; None without a limit."""
        async with self._lock:
            await self._begin_the_day()
            for limit in self._limits():
                await limit.read_to_the_end()
            return self.remaining_usd

    async def reserve(self, price_usd: Decimal | None) -> Reservation:
        """Set a request's price aside.

        An unknown price, where it is allowed, counts nothing until its cost is known; but something must be left.

        Raises:
            OverBudget: a spending limit leaves no room; nothing was set aside.
            UnknownPrice: the price is None, which isn't allowed.
        """
        if price_usd is None and not self._allow_unknown:
            raise UnknownPrice(
                "The price of this request is not known, so it is not sent. "
                "Set IDEOGRAM_ALLOW_UNKNOWN_PRICES=true to send it all the same."
            )
        async with self._lock:
            await self._begin_the_day()
            limits = self._limits()
            for limit in limits:
                await limit.cover(_LEAST if price_usd is None else price_usd)
            reservation = Reservation(price_usd or Decimal(0), limits)
            for limit in limits:
                limit.allowance -= reservation.usd
            self._open.add(reservation)
            return reservation

    async def settle(self, reservation: Reservation, cost_usd: Decimal | None) -> None:
        """Count what a request really cost: 0 if it turned out free, None if nobody knows, so that it stays reserved.

        Raises:
            KeyError: the reservation was settled before.
        """
        if cost_usd is None:
            return
        async with self._lock:
            self._open.remove(reservation)
            self.spent_usd += cost_usd
            for limit in reservation.limits:
                await limit.credit(reservation.usd - cost_usd)

    async def close(self) -> None:
        """Give back what no request uses. What is reserved for requests stays counted."""
        async with self._lock:
            for limit in self._limits():
                await limit.leave()

    def _limits(self) -> tuple[_Limit, ...]:
        return tuple(limit for limit in (self._run_limit, self._day_limit) if limit)

    async def _begin_the_day(self) -> None:
        """Turn to the day's own limit if midnight has passed."""
        if self._day_limit and self._per_day:
            today = self._limit_of_today(self._per_day)
            if today.folder != self._day_limit.folder:
                await self._day_limit.leave()
                self._day_limit = today

    def _limit_of_this_run(self, limit: Decimal) -> _Limit:
        return _Limit(
            self._store,
            f"budget/run={self._run_id}",
            self._run_id,
            limit,
            name="The budget of this run",
            advice="Raise IDEOGRAM_BUDGET_USD or the run's own limit (--max-spend, max_spend_usd), whichever is "
            "lower, or run again: what is there is not paid for again. A run that was to --regenerate is continued "
            "with --only-failed beside it.",
        )

    def _limit_of_today(self, limit: Decimal) -> _Limit:
        day = self._clock().astimezone(UTC).date()
        return _Limit(
            self._store,
            f"budget/day={day}",
            self._run_id,
            limit,
            name=f"The budget of all runs for {day} (UTC)",
            advice="Raise IDEOGRAM_BUDGET_USD_PER_DAY, or run again tomorrow (UTC).",
        )


def _dollars(usd: Decimal) -> str:
    return f"${usd:.2f}" if usd == round(usd, 2) else f"${usd:f}"

"""Finding the requests whose submit was never answered: in the inbox, and in fal's own list of what it was sent.

A reservation without an answer may be a request at fal. Where fal delivers, its letter comes to the address that names
the reservation; it counts if it is the only one about a request that fal, asked with our key, knows and calls ours.
Else fal's list of requests with payloads tells, for hardly two requests are alike: a row's seed is its own. Only an
exact match counts that no ledger of the store has, and only where fal lists no more of them than were sent without an
answer, given up or not: each row gets one then.
An absence proves nothing for certain, for a letter may still come, and the list may lag and may leave out what is still
queued, so what isn't found stays unknown.
Where fal keeps no payloads there is nothing to match, and its bills don't help: see `billing`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from pydantic import JsonValue

from ideogram_pipeline.fal import FalClient, FalError
from ideogram_pipeline.generation.inbox import Letter, letters_about, read_letter
from ideogram_pipeline.generation.ledger import (
    AlreadyWritten,
    Entry,
    Ledger,
    Reserved,
    Settled,
    Submitted,
    batches,
    request_ids,
)
from ideogram_pipeline.generation.runs import is_alive
from ideogram_pipeline.ideogram.endpoints import Output
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables import erased

SKEWS = (timedelta(minutes=10), timedelta(days=1))
"""How far fal's clock and ours may be apart: as a rule; and where a machine's clock was wrong for a while."""
MAX_LISTED = 20_000
"""A longer list is refused: an absence from a part of a list says nothing."""

_LOST = "its answer was lost, and somebody chose to submit it again; it may have been paid"


def digest(arguments: Mapping[str, JsonValue]) -> str:
    """Return a hex SHA-256 of a request's body as sent, whatever the order of its fields."""
    canonical = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Search:
    """What a search for unanswered submits found."""

    found: tuple[str, ...]
    """Fingerprints that are submitted now: their request is known and can be fetched."""
    missing: Mapping[str, str]
    """Fingerprints that stay unknown, with the reason."""


def unanswered(entries: Mapping[str, Entry]) -> list[str]:
    """Return the fingerprints whose last attempt was reserved and neither released nor answered."""
    return [fingerprint for fingerprint, entry in entries.items() if entry.state == "reserved"]


async def search(
    fal: FalClient, store: Store, ledger: Ledger, fingerprints: Iterable[str], *, but: str = ""
) -> Search:
    """Look for unanswered submits, and record the request id of each that is found once.

    What a live run has reserved is left to it, except what was reserved by the process whose own beat lies at `but`. So
    the ledger is read again once those runs are known to be dead: nobody else goes on with their reservations.

    Raises:
        StoreError: the inbox or the ledger is out of reach.
    """
    fingerprints = list(fingerprints)
    missing = await _reserved_by_the_living(store, ledger, fingerprints, but)
    await asyncio.to_thread(ledger.catch_up)
    left = [one for one in fingerprints if one not in missing]
    open_ = set(unanswered(ledger.entries))
    found = [one for one in left if one not in open_]  # somebody has found it meanwhile, or given it up
    left = [one for one in left if one in open_]
    found += await _delivered(fal, store, ledger, left)
    by_endpoint: dict[str, list[str]] = defaultdict(list)
    for fingerprint in left:
        if fingerprint not in found:
            by_endpoint[ledger.entries[fingerprint].last.reserved.request.endpoint_id].append(fingerprint)
    for of_endpoint in by_endpoint.values():
        wanted = of_endpoint
        for skew in SKEWS:
            try:
                candidates = await _listed(fal, store, ledger, wanted, skew)
            except FalError as error:
                missing |= dict.fromkeys(wanted, f"fal's list of requests can't be read: {error}")
                break
            for sent, alike in _by_input(ledger, wanted).items():
                matches = candidates.get(sent, [])
                if len(matches) > sum(ledger.entries[one].lost_attempts for one in alike):
                    told = f"fal's list holds {len(matches)} requests with the same input"
                    missing |= dict.fromkeys(alike, told)
                    continue
                for fingerprint, request_id in zip(alike, matches, strict=False):  # one each
                    await _attach(fal, ledger, fingerprint, request_id)
                    found.append(fingerprint)
            wanted = [one for one in wanted if one not in found and one not in missing]
            if not wanted:
                break
        else:
            missing |= dict.fromkeys(wanted, "fal's list of requests does not hold it, or not yet")
    return Search(tuple(found), missing)


async def _reserved_by_the_living(
    store: Store, ledger: Ledger, fingerprints: Iterable[str], but: str
) -> dict[str, str]:
    """Return those of the fingerprints that a live run has reserved, with a word on it."""
    by_owner: dict[str, list[str]] = defaultdict(list)
    for fingerprint in fingerprints:
        by_owner[ledger.entries[fingerprint].last.reserved.owner].append(fingerprint)
    return {
        fingerprint: f"run {owner} is submitting it at this moment"
        for owner, reserved in by_owner.items()
        if await is_alive(store, owner, but=but)
        for fingerprint in reserved
    }


async def _delivered(fal: FalClient, store: Store, ledger: Ledger, wanted: Iterable[str]) -> list[str]:
    """Record the request id of each submit that one letter in the inbox is about; return their fingerprints."""
    letters = await letters_about(store, ledger)
    attempts = [ledger.entries[fingerprint].last.reserved for fingerprint in wanted]
    about = [(one, letters.get((one.request.fingerprint, one.attempt), ())) for one in attempts]
    taken = request_ids(ledger.entries.values()) if any(paths for _, paths in about) else set()
    found = []
    for reserved, paths in about:
        told = [letter for path in paths if (letter := await read_letter(store, path))]
        ours = [
            one.request_id
            for one in told
            if one.request_id not in taken and await _is_ours(fal, reserved, one)
        ]
        if len(ours) == 1:
            await _attach(fal, ledger, reserved.request.fingerprint, ours[0])
            taken.add(ours[0])
            found.append(reserved.request.fingerprint)
    return found


async def _is_ours(fal: FalClient, reserved: Reserved, letter: Letter) -> bool:
    """Say whether a letter is about the request of an unanswered submit, and not about another one of the account.

    fal is asked with our key; the seed of what the request brought, or else what was asked in it, must be ours. Where
    fal can't say, the request is nobody's yet.
    """
    endpoint_id = reserved.request.endpoint_id
    try:
        await fal.status(fal.attach(endpoint_id, letter.request_id))
    except FalError:
        return False
    output = Output.read(letter.payload) if letter.payload is not None else None
    if output is not None and output.seed is not None:
        return output.seed == reserved.request.seed
    try:
        past = await fal.past_request(endpoint_id, letter.request_id)
    except FalError:
        return True  # most keys can't read the list, and fal delivers to the address that it was given
    if past is None:
        return False
    return not isinstance(past.json_input, dict) or digest(past.json_input) == reserved.sent_sha256


def _held(store: Store, own: Ledger) -> set[str]:
    """Return fal's ids of the requests that some batch's ledger holds, or held until it was erased.

    Two batches may ask for the same: a request that one of them has is never the answer that the other one lost.
    """
    held = {one for stone in erased.tombstones(store) for one in stone.request_ids}
    for batch in batches(store):
        held |= request_ids((own if batch == own.batch else Ledger(store, batch)).entries.values())
    return held


def _by_input(ledger: Ledger, fingerprints: Iterable[str]) -> Mapping[str, Sequence[str]]:
    """Return fingerprints by the digest of what was sent, the one that was reserved first in front."""
    found: dict[str, list[str]] = defaultdict(list)
    for one in sorted(fingerprints, key=lambda one: (ledger.entries[one].last.reserved.reserved_at, one)):
        found[ledger.entries[one].last.reserved.sent_sha256].append(one)
    return found


async def _listed(
    fal: FalClient, store: Store, ledger: Ledger, wanted: Sequence[str], skew: timedelta
) -> dict[str, list[str]]:
    """Return the ids of an endpoint's requests with a wanted input that no ledger has, by that input's digest."""
    now = datetime.now(UTC)
    earliest = min(now, *(ledger.entries[fingerprint].last.reserved.reserved_at for fingerprint in wanted))
    listing = await fal.requests_by_endpoint(
        ledger.entries[wanted[0]].last.reserved.request.endpoint_id,
        start=earliest - skew,
        end=now + skew,
        with_payloads=True,
        max_items=MAX_LISTED,
    )
    if listing.truncated:
        raise FalError(message=f"it holds more than {MAX_LISTED} requests since {earliest:%Y-%m-%d %H:%M}.")
    inputs = _by_input(ledger, wanted)
    candidates: dict[str, dict[str, None]] = defaultdict(dict)  # pages of a list that grows meanwhile overlap
    for past in listing.items:
        if isinstance(past.json_input, dict) and (sent := digest(past.json_input)) in inputs:
            candidates[sent][past.request_id] = None
    held = await asyncio.to_thread(_held, store, ledger) if candidates else set()
    return {sent: [one for one in ids if one not in held] for sent, ids in candidates.items()}


async def _attach(fal: FalClient, ledger: Ledger, fingerprint: str, request_id: str) -> None:
    queued = fal.attach(ledger.entries[fingerprint].last.reserved.request.endpoint_id, request_id)
    try:
        await ledger.submitted(fingerprint, Submitted.of(queued, datetime.now(UTC)))
    except AlreadyWritten:
        return  # its own run got the answer after all


async def give_up(ledger: Ledger, fingerprint: str, reason: str = _LOST) -> None:
    """Record that somebody chose to submit a request again, though it may have been paid."""
    settled = Settled(
        state="failed",
        reason=reason,
        retryable=True,
        completed_at=datetime.now(UTC),
        cost_usd=None,
        cost_source="unknown",
    )
    try:
        await ledger.settle(fingerprint, settled)
    except AlreadyWritten:
        return


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A submit that was never answered, and what became of it."""

    batch: str
    """The partition."""
    prompt_id: str
    """The row of the prompts table."""
    reserved_at: datetime
    """When it was about to be sent, UTC."""
    price_usd: Decimal | None
    """What it may have cost, and what a second submit would."""
    found: str | None
    """fal's id of the request, if it was found: the next run fetches it."""
    given_up: bool
    """Whether the next run submits it again, by choice."""
    reason: str
    """Why it wasn't found."""


async def reconcile_batch(
    client: FalClient, store: Store, ledger: Ledger, *, resubmit_after: timedelta | None = None
) -> list[Unanswered]:
    """Look for every unanswered submit of a batch; record those that are found.

    With `resubmit_after`, what is not found, was reserved longer ago than that, and whose run no longer works, is given
    up: the next run submits it again, and it may then be paid twice.
    """
    wanted = unanswered(ledger.entries)
    searched = await search(client, store, ledger, wanted)
    results = []
    for fingerprint in wanted:
        attempt = ledger.entries[fingerprint].last
        given_up = False
        if resubmit_after is not None and fingerprint in searched.missing:
            is_old = attempt.reserved.reserved_at + resubmit_after <= datetime.now(UTC)
            given_up = is_old and not await is_alive(store, attempt.reserved.owner)
        if given_up:
            await give_up(ledger, fingerprint)
        results.append(
            Unanswered(
                batch=attempt.reserved.request.batch,
                prompt_id=attempt.reserved.request.prompt_id,
                reserved_at=attempt.reserved.reserved_at,
                price_usd=attempt.reserved.request.price_usd,
                found=attempt.submitted.request_id if attempt.submitted else None,
                given_up=given_up,
                reason=searched.missing.get(fingerprint, ""),
            )
        )
    return results

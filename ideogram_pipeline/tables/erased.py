"""Pictures that were erased for good: what stays is their digest, and that nothing is made from them again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.store import StoredObject

FOLDER = "erased"
_NAME = re.compile(rf"{FOLDER}/[0-9a-f]{{64}}\.json")

DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
"""A digest or a fingerprint, wherever it stands in a text."""


class ErasedImage(BaseModel):
    """A picture that was made from an erased one."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(description="Hex digest of the file.")
    sha256_received: str = Field(description="Hex digest of what fal sent.")


class Tombstone(BaseModel):
    """What stays of an erased picture, under `erased/<sha256>.json`: digests, ids and money; no name, no prompt."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(description="Hex digest of its bytes.")
    erased_at: datetime = Field(description="UTC, when it was decided.")
    fingerprints: tuple[str, ...] = Field(description="The requests that were made from it.")
    request_ids: tuple[str, ...] = Field(description="fal's ids of them.")
    cost_usd: str | None = Field(description="What they have cost in all; none where that is not known.")
    images: tuple[ErasedImage, ...] = Field(description="The pictures that came of them.")


def path(sha256: str) -> str:
    """Return where the tombstone of a picture lies."""
    return f"{FOLDER}/{sha256}.json"


def tombstones(store: Store) -> list[Tombstone]:
    """Return every tombstone, by digest.

    Raises:
        StoreError: one can't be read.
    """
    found = sorted(
        (one for one in store.objects(FOLDER) if _NAME.fullmatch(one.path)), key=lambda one: one.path
    )
    return [_read(store, one) for one in found]


@lru_cache(maxsize=4096)
def _read(store: Store, there: StoredObject) -> Tombstone:
    """Read a tombstone, and once only as long as its listing shows the same: every batch's ledger asks for all."""
    try:
        return Tombstone.model_validate_json(store.get(there.path))
    except ValidationError:
        raise StoreError(
            f"{store.where(there.path)!r} says that a picture was erased, and can't be read. Restore it from a backup: "
            "nothing is planned meanwhile, so that nothing is made from that picture."
        ) from None


def refused(store: Store) -> Mapping[str, Tombstone]:
    """Return the digests of which nothing is made: of what was erased, and of the pictures that came from it."""
    return by_digest(tombstones(store))


def by_digest(stones: Sequence[Tombstone]) -> Mapping[str, Tombstone]:
    """Return these tombstones by the digest of what was erased, and of each picture that came from it."""
    made = {
        digest: stone
        for stone in stones
        for one in stone.images
        for digest in (one.sha256, one.sha256_received)
    }
    return {**made, **{stone.sha256: stone for stone in stones}}


def fingerprints(stones: Iterable[Tombstone]) -> frozenset[str]:
    """Return the requests that were made from what was erased."""
    return frozenset(fingerprint for stone in stones for fingerprint in stone.fingerprints)


def refusal(stone: Tombstone) -> str:
    """Return why nothing is made from an erased picture, and what to do."""
    return (
        f"this picture was erased on {stone.erased_at:%Y-%m-%d}, and nothing is made from it any more; take the row, "
        "and the rows that name it, out of the tables"
    )

"""Whose pictures a store holds, and whether it keeps claims: what is made sure of before anything is written to it.

`store.json` says it, and is read whenever a store is opened for work.
"""

from __future__ import annotations

import logging
from functools import cache

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.settings import Backend
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.claims import ClaimsNotKept, prove_claims

STORE_MARK = "store.json"
"""Says whose pictures a store holds, so that the sandbox's can't be taken for fal's."""

_ADDRESSES = 8
"""So many addresses are remembered at which a store keeps claims: more than there are ways to one that are in use."""

_log = logging.getLogger(__name__)


class Address(BaseModel):
    """Where a store answers, as one process reaches it."""

    model_config = ConfigDict(frozen=True)

    url: str = Field(description="Folder or URL.")
    endpoint: str | None = Field(default=None, description="Base URL of the server, for S3.")


class StoreMark(BaseModel):
    """What a store says of itself, in `store.json`. What a later version adds to it stays there."""

    model_config = ConfigDict(frozen=True, extra="allow")

    backend: Backend = Field(description="Whose pictures it holds.")
    pipeline: str = Field(default="", description="Key prefix of the pipeline it belongs to.")
    keeps_claims: tuple[Address, ...] = Field(
        default=(),
        description="Where it was proven that it keeps claims, the newest last. A copy of the store has another "
        "address, at which nothing is proven.",
    )


def open_for_work(url: str, backend: Backend, pipeline: str) -> Store:
    """Open a store that a run may write to. The first time at its address, prove that it keeps claims.

    Raises:
        StoreError: it can't be opened.
        ConfigurationError: it holds the other backend's pictures, is another pipeline's, or keeps no claims and
            `backend` costs money.
    """
    store = Store.open(url)
    own = StoreMark(backend=backend, pipeline=pipeline)
    try:
        mark = StoreMark.model_validate_json(_marked(store, own))
    except ValidationError:
        raise ConfigurationError(
            f'{store.where(STORE_MARK)!r} is damaged. It should read {{"backend": "sandbox"}} or '
            '{"backend": "fal"}, whichever made the pictures in this store.'
        ) from None
    if mark.backend != backend:
        raise ConfigurationError(
            f"The store {store.url!r} holds pictures of the {mark.backend} backend. Set IDEOGRAM_STORE to another "
            f"place for the {backend} backend, so that drawn and real pictures never mix."
        )
    if mark.pipeline != pipeline:
        raise ConfigurationError(
            f"The store {store.url!r} belongs to the pipeline with the key prefix {mark.pipeline!r}, and this "
            f"one's is {pipeline!r}: each would overwrite the other's tables. Give each a store of its own; "
            f"if this pipeline was renamed, change the name in {store.where(STORE_MARK)!r}."
        )
    _prove_once(store, mark)
    return store


def _marked(store: Store, mark: StoreMark) -> bytes:
    """Return the store's mark; a store that has none gets this one."""
    try:
        return store.get(STORE_MARK)
    except FileNotFoundError:
        store.create(STORE_MARK, mark.model_dump_json().encode())
        return store.get(STORE_MARK)


def _prove_once(store: Store, mark: StoreMark) -> None:
    """Prove that a store keeps claims, unless its mark says that this was proven at its address."""
    here = Address(url=store.where(""), endpoint=store.endpoint)
    if here in mark.keeps_claims:
        return
    try:
        prove_claims(store)
    except ClaimsNotKept as error:
        if mark.backend == "fal":
            raise ConfigurationError(str(error)) from None
        _warn(f"{error} The sandbox's pictures cost nothing, so they are drawn all the same.")
        return
    proven = mark.model_copy(update={"keeps_claims": (*mark.keeps_claims, here)[-_ADDRESSES:]})
    store.put(STORE_MARK, proven.model_dump_json().encode())


@cache
def _warn(message: str) -> None:
    """Log a warning once, however often a run opens its store."""
    _log.warning(message)

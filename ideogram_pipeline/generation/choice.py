"""What a person asks of one run: new takes, only some rows. Decided once, and kept by every retry of that run.

Which rows get which take, and which rows a limit lets through, depends on what the ledger knows; and that changes as
soon as the run pays. So a run writes both down before it plans, under the id of the first of its attempts, and its
retries read them instead of deciding anew:

    takes/batch=<batch>/<root run id>.json              fingerprint of the row's take 0 -> take
    limits/batch=<batch>/<root run id>-<limit>.json     fingerprints that may be paid for
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.errors import ConfigurationError, StoreError
from ideogram_pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person asks of one run. By default: whatever is missing."""

    regenerate: bool = False
    """A new take of every row whose newest take has ended; the others are first brought to an end."""
    only_failed: bool = False
    """Only rows that an earlier run left without a picture."""
    limit: int | None = None
    """Pay for at most so many rows, the first in the order of the table."""

    regenerate_rejected: bool = False
    """A new take of every row of which a picture of the newest take is rejected; no other row is paid for."""
    prompt_ids: Sequence[str] = ()
    """Only these rows of the batch; all of them if none is named."""

    def __post_init__(self) -> None:
        """Raise a `ConfigurationError` for a limit that lets nothing through, or wishes that exclude each other."""
        if self.regenerate_rejected and (self.regenerate or self.only_failed):
            raise ConfigurationError(
                "regenerate_rejected is for rejected pictures alone: leave regenerate and only_failed out, or make a "
                "run of its own for them."
            )
        if self.limit is not None and self.limit < 1:
            raise ConfigurationError(
                f"limit is {self.limit}: no row would be paid for. Give a number from 1, or leave it out."
            )


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Takes(_Record):
    """The takes a run asks for."""

    takes: Mapping[str, int] = Field(description="By the fingerprint of the row's take 0.")


class Limited(_Record):
    """The requests that a run's limit lets through."""

    fingerprints: tuple[str, ...] = Field(description="In the order of the table.")


Record = TypeVar("Record", bound=_Record)


class Decisions:
    """What one run, over all its attempts, has decided about a batch."""

    def __init__(self, store: Store, batch: str, root_run_id: str) -> None:
        self._store = store
        self._place = f"batch={batch}/{root_run_id}"

    def takes(self, first: Mapping[str, int]) -> Mapping[str, int]:
        """Return the takes that stand: those of an earlier attempt of the run, else the `first` ones, now kept."""
        return self._once(f"takes/{self._place}.json", Takes(takes=first)).takes

    def limited(self, limit: int, first: Sequence[str]) -> Sequence[str]:
        """Return the fingerprints that stand, likewise."""
        return self._once(
            f"limits/{self._place}-{limit}.json", Limited(fingerprints=tuple(first))
        ).fingerprints

    def _once(self, path: str, record: Record) -> Record:
        if self._store.create(path, record.model_dump_json().encode(), durable=True):
            return record
        content = self._store.get(path)
        if not content:
            # Whoever wrote it went on only once the bytes were on the disk. They aren't, so the power went first.
            self._store.delete_empty(path)
            return self._once(path, record)
        try:
            return type(record).model_validate_json(content)
        except ValidationError as error:
            raise StoreError(
                f"What this run decided, {self._store.where(path)!r}, can't be read: {error.errors()[0]['msg']}. "
                "Restore it from a backup, or start a run of its own instead of a retry."
            ) from None

"""What the pages show: an entry for every picture, and one for every row without. The browser makes cards of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.generation import files, readings
from ideogram_pipeline.generation.fetching import THUMBNAIL_SIDE, thumbnail_path
from ideogram_pipeline.generation.requests import PictureUse
from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow, OutcomeState, PlannedRow
from ideogram_pipeline.pictures import BadPicture, thumbnail
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.rows import Review

_REFERENCE_SIDE = 96
_CHARACTER = "reference_image_urls"
_NO_FACTS = {"request_json", "current", "due", "batch", "reason", "state"}
"""Columns that an entry has already, or that repeat others."""


class Entry(BaseModel):
    """A picture, or a row of the prompts table that has none, as a page shows it. Paths are those of the store."""

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="The partition.")
    state: OutcomeState = Field(description="How the row ended.")
    row: int = Field(description="Where the row stands in the table; 0 if it no longer does.")
    reason: str = Field(default="", description="Why there is no picture.")
    character: str = Field(default="", description="The character's reference, the one that fal uses.")
    image: str = Field(default="", description="The picture; empty if there is none.")
    thumbnail: str = Field(default="", description="The small picture, or the picture where none are made.")
    older: bool = Field(
        default=False, description="Whether the row has a newer take, or asks for another picture."
    )
    references: tuple[tuple[str, str], ...] = Field(
        default=(), description="Names and small pictures, or no path."
    )
    terms: dict[str, tuple[str, str]] = Field(
        default={},
        description="License and notes of references, by name, where the references table has them.",
    )
    review: str = Field(default="", description="`picked` or `rejected`, as the reviews table has it.")
    note: str = Field(default="", description="What was said with it.")
    reviewed_at: str = Field(default="", description="ISO 8601, UTC.")
    facts: dict[str, Any] = Field(
        description="Columns of the picture's row, or the row's outcome, that say something."
    )

    @property
    def caption(self) -> str:
        """What stands below the picture on paper."""
        return f"{self.facts['prompt_id']}\n{self.facts.get('prompt', '')}"

    @property
    def completed_at(self) -> str:
        """ISO 8601, UTC; empty for a row without a picture."""
        return str(self.facts.get("completed_at", ""))


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a row of the prompts table asks for."""

    prompt: str
    speed: str
    character: str
    references: tuple[tuple[str, str], ...]
    terms: dict[str, tuple[str, str]]


class References:
    """The small pictures of references, each looked for once, and what their table says of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._there = {found.path for found in store.objects("gallery/references") if found.size}
        self._paths: dict[str, str] = {}
        self._terms = readings.terms_of(store)
        self.named: set[str] = set()
        """Digests of the references whose terms were asked for."""

    def terms(self, uses: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
        """Return license and notes by name, of those references (name and digest) of which something is told."""
        told = {}
        for name, sha256 in uses:
            self.named.add(sha256)
            if terms := self._terms.get(sha256):
                told[name] = (terms.license, terms.notes)
        return told

    def digest(self, sha256s: Iterable[str]) -> str:
        """Return what changes with the licenses and notes of references."""
        told = [self._terms.get(sha256) for sha256 in sorted(sha256s)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def small(self, use: PictureUse) -> str:
        """Return the path of the small picture, making it if need be; empty if there is none."""
        if use.sha256 not in self._paths:
            self._paths[use.sha256] = self._made(use)
        return self._paths[use.sha256]

    def known(self, sha256: str) -> str:
        """Return the path of a small picture that was made before; empty if there is none."""
        path = f"gallery/references/{sha256}.webp"
        return path if path in self._there else self._paths.get(sha256, "")

    def _made(self, use: PictureUse) -> str:
        path = f"gallery/references/{use.sha256}.webp"
        if path not in self._there:
            try:
                self._store.put(path, thumbnail(self._store.get(use.path), _REFERENCE_SIDE))
            except (FileNotFoundError, BadPicture):
                return ""
        return path


def entries(
    store: Store, batch: str, references: References, reviews: Mapping[str, Review], *, thumbnails: bool
) -> Iterator[Entry]:
    """Yield a batch's entries: its pictures, older takes too, and then the rows without.

    Few rows are in memory at a time. Small pictures that are missing are made where there are to be `thumbnails`.
    """
    plan = files.read_plan(store, batch).rows
    for request in filter(None, (row.request for row in plan)):
        for use in request.pictures:
            references.small(use)
    numbers = {row.prompt_id: row.row_number for row in files.outcomes(store, batch)}
    shown = Thumbnails(store, batch) if thumbnails else _Pictures(store, batch)
    pictured: set[str] = set()
    for row in files.images(store, batch):
        image = f"images/batch={batch}/{row.file_name}"
        if image in shown:
            if row.current:
                pictured.add(row.fingerprint)
            yield _picture(row, numbers.get(row.prompt_id, 0), references, reviews, thumbnails)
    asked = _asked(plan, references, pictured)
    for outcome in files.outcomes(store, batch):
        if outcome.fingerprint is None or outcome.fingerprint not in pictured:
            yield _without_picture(batch, outcome, asked.get(outcome.fingerprint or ""))


def _picture(
    row: ImageRow, number: int, references: References, reviews: Mapping[str, Review], thumbnails: bool
) -> Entry:
    image = f"images/batch={row.batch}/{row.file_name}"
    review = reviews.get(image)
    if review is not None and review.sha256 != row.sha256:
        review = None
    uses = [
        *zip(row.reference_ids, row.reference_sha256s, strict=False),
        *zip(row.style_reference_ids, row.style_reference_sha256s, strict=False),
        *([(row.image_id, row.image_sha256 or "")] if row.image_id else []),
    ]
    return Entry(
        batch=row.batch,
        state="generated",
        row=number,
        character=next(iter(row.reference_ids), ""),
        image=image,
        thumbnail=thumbnail_path(image) if thumbnails else image,
        older=not row.current,
        references=tuple((name, references.known(sha256)) for name, sha256 in uses),
        terms=references.terms(uses),
        review=review.review if review else "",
        note=review.note if review else "",
        reviewed_at=review.reviewed_at.astimezone(UTC).isoformat().replace("+00:00", "Z") if review else "",
        facts=_facts(row),
    )


def _without_picture(batch: str, outcome: OutcomeRow, asked: _Asked | None) -> Entry:
    facts = _facts(outcome)
    if asked:
        facts |= {"prompt": asked.prompt, "rendering_speed": asked.speed}
    return Entry(
        batch=batch,
        state=outcome.state,
        row=outcome.row_number,
        reason=outcome.reason or "Its picture is not in the store, or can't be opened.",
        character=asked.character if asked else "",
        references=asked.references if asked else (),
        terms=asked.terms if asked else {},
        facts=facts,
    )


def _facts(row: ImageRow | OutcomeRow) -> dict[str, Any]:
    said = row.model_dump(mode="json", exclude_none=True, exclude=_NO_FACTS)
    return {name: value for name, value in said.items() if value not in ("", [], "{}")}


def _asked(
    plan: Iterable[PlannedRow], references: References, pictured: Collection[str]
) -> dict[str, _Asked]:
    """Return what the rows without a picture ask for, by fingerprint."""
    return {
        request.fingerprint: _Asked(
            prompt=str(request.arguments.get("prompt") or ""),
            speed=str(request.arguments.get("rendering_speed") or ""),
            character=next((use.reference_id for use in request.pictures if use.field == _CHARACTER), ""),
            references=tuple((use.reference_id, references.small(use)) for use in request.pictures),
            terms=references.terms((use.reference_id, use.sha256) for use in request.pictures),
        )
        for row in plan
        if (request := row.request) and request.fingerprint not in pictured
    }


class _Pictures:
    """The pictures of a batch that are there."""

    def __init__(self, store: Store, batch: str) -> None:
        self._there = {found.path for found in store.objects(f"images/batch={batch}")}

    def __contains__(self, image: str) -> bool:
        """Say whether a picture lies under a path."""
        return image in self._there


class Thumbnails:
    """The pictures of a batch of which there is a small one, or can be."""

    def __init__(self, store: Store, batch: str) -> None:
        self._store = store
        self._there = {
            found.path for found in store.objects(f"gallery/batch={batch}/thumbnails") if found.size
        }

    def __contains__(self, image: str) -> bool:
        """Say whether a picture can be shown small; the small one is made if it is missing."""
        path = thumbnail_path(image)
        if path in self._there:
            return True
        try:
            self._store.put(path, thumbnail(self._store.get(image), THUMBNAIL_SIDE))
        except (FileNotFoundError, BadPicture):
            return False
        return True

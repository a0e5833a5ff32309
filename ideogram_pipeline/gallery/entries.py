"""What the pages show: an entry for every picture, and one for every row without. The browser makes cards of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.fetching import THUMBNAIL_SIDE, thumbnail_path
from ideogram_pipeline.generation.files import ShownPicture
from ideogram_pipeline.generation.requests import PictureUse
from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow, OutcomeState
from ideogram_pipeline.pictures import BadPicture, thumbnail
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.rows import Review

_REFERENCE_SIDE = 96
_CHARACTER = "reference_image_urls"
_NO_FACTS = {"request_json", "current", "due", "batch", "reason", "state"}
"""Columns that an entry has already, or that repeat others."""

Picture = TypeVar("Picture", ImageRow, ShownPicture)


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


class References:
    """The small pictures of references, each looked for once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._there = {found.path for found in store.objects("gallery/references")}
        self._paths: dict[str, str] = {}

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
    """Yield a batch's entries: its pictures, older takes too, and then the rows without."""
    asked = _asked(store, batch, references)
    outcomes = {row.prompt_id: row for row in files.outcomes(store, batch)}
    shown = files.shown_pictures(store, batch)
    names = {
        row.file_name for row in (fill_in_thumbnails(store, shown) if thumbnails else _there(store, shown))
    }
    pictured: set[str | None] = set()
    for row in files.images(store, batch):
        if row.file_name not in names:
            continue
        if row.current:
            pictured.add(row.fingerprint)
        outcome = outcomes.get(row.prompt_id)
        yield _picture(row, outcome.row_number if outcome else 0, references, reviews, thumbnails)
    for prompt_id, outcome in outcomes.items():
        if outcome.fingerprint is None or outcome.fingerprint not in pictured:
            yield _without_picture(batch, outcome, asked.get(prompt_id))


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
        facts=facts,
    )


def _facts(row: ImageRow | OutcomeRow) -> dict[str, Any]:
    said = row.model_dump(mode="json", exclude_none=True, exclude=_NO_FACTS)
    return {name: value for name, value in said.items() if value not in ("", [], "{}")}


def _asked(store: Store, batch: str, references: References) -> dict[str, _Asked]:
    asked: dict[str, _Asked] = {}
    for row in files.read_plan(store, batch).rows:
        if request := row.request:
            asked[row.prompt_id] = _Asked(
                prompt=str(request.arguments.get("prompt") or ""),
                speed=str(request.arguments.get("rendering_speed") or ""),
                character=next((use.reference_id for use in request.pictures if use.field == _CHARACTER), ""),
                references=tuple((use.reference_id, references.small(use)) for use in request.pictures),
            )
    return asked


def _there(store: Store, images: Sequence[ShownPicture]) -> list[ShownPicture]:
    there = _listed(store, {f"images/batch={image.batch}" for image in images})
    return [image for image in images if f"images/batch={image.batch}/{image.file_name}" in there]


def _listed(store: Store, folders: Collection[str]) -> set[str]:
    return {found.path for folder in folders for found in store.objects(folder)}


def fill_in_thumbnails(store: Store, images: Sequence[Picture]) -> list[Picture]:
    """Make the small pictures that are missing; return the rows whose picture is there and can be shown."""
    there = _listed(store, {f"gallery/batch={image.batch}/thumbnails" for image in images})
    shown = []
    for image in images:
        path = f"images/batch={image.batch}/{image.file_name}"
        if thumbnail_path(path) not in there:
            try:
                store.put(thumbnail_path(path), thumbnail(store.get(path), THUMBNAIL_SIDE))
            except (FileNotFoundError, BadPicture):
                continue
        shown.append(image)
    return shown

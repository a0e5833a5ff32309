"""A character's pages, over all batches: each batch leaves its entries in a file, and a page loads those that it shows.

So one more batch costs its own entries, however many pictures the character has.

    gallery/characters/<id>/batch=<b>.js      the entries of a batch; no others change when the batch does
    gallery/characters/<id>/index.html        the newest batches, and 2.html, 3.html ... the older ones
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.gallery.entries import Entry
from ideogram_pipeline.storage import Store

A_PART = 5_000
"""Entries on a page. A batch is never split."""
_BEFORE, _AFTER = "(self.galleryEntries ??= []).push([\n", "\n]);\n"


class InBatch(BaseModel):
    """What a batch has of a character."""

    model_config = ConfigDict(frozen=True)

    character: str = Field(description="The reference.")
    entries: int = Field(description="Pictures, older takes too, and rows without.")
    images: int = Field(description="Current pictures.")
    cost_usd: float = Field(description="US dollars of them whose amount is known.")
    newest: str = Field(description="When the newest picture was completed, ISO 8601; empty without any.")
    face: str = Field(description="Small picture of the reference; empty if there is none.")


class Piece(NamedTuple):
    """The entries of one character in one batch."""

    batch: str
    known: InBatch

    @property
    def path(self) -> str:
        """Where they lie in the store."""
        return piece_path(self.known.character, self.batch)


def piece_path(character: str, batch: str) -> str:
    """Return where a batch's entries of a character lie."""
    return f"{folder(character)}/batch={batch}.js"


def folder(character: str) -> str:
    """Return where everything about a character lies."""
    return f"gallery/characters/{character}"


def page_name(number: int) -> str:
    """Return the file name of a character's page, counted from 1."""
    return "index.html" if number == 1 else f"{number}.html"


def summary(character: str, members: Sequence[Entry]) -> InBatch:
    """Return what is remembered of a batch's entries of a character."""
    current = [entry for entry in members if entry.image and not entry.older]
    faces = (path for entry in members for name, path in entry.references if name == character)
    return InBatch(
        character=character,
        entries=len(members),
        images=len(current),
        cost_usd=sum(entry.facts.get("cost_usd", 0.0) for entry in current),
        newest=max((entry.completed_at for entry in members), default=""),
        face=next(filter(None, faces), ""),
    )


def encode_piece(lines: Iterable[bytes]) -> bytes:
    """Return the file of entries that are JSON already, safe inside a script."""
    return b"".join([_BEFORE.encode(), b",\n".join(lines), _AFTER.encode()])


def read_piece(store: Store, path: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a file, one a line of it."""
    text = store.get(path).decode()
    for line in text.removeprefix(_BEFORE).removesuffix(_AFTER).split("\n"):
        yield json.loads(line.removesuffix(","))


def parts(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Return a character's pieces, newest first, page by page."""
    pages: list[list[Piece]] = [[]]
    held = 0
    for piece in sorted(pieces, key=lambda piece: (piece.known.newest, piece.batch), reverse=True):
        if pages[-1] and held + piece.known.entries > A_PART:
            pages.append([])
            held = 0
        pages[-1].append(piece)
        held += piece.known.entries
    return pages

"""A character's pages, over all batches: each batch leaves its entries in a file, and a page loads those that it shows.

So one more batch costs its own entries, however many pictures the character has.

    gallery/characters/<id>/batch=<b>.js      the entries of a batch; no others change when the batch does
    gallery/characters/<id>/index.html        the newest batches, and 2.html, 3.html ... the older ones
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.gallery.entries import Entry
from ideogram_pipeline.storage import Store

A_PART = 5_000
"""Entries on a page. A batch is never split."""
PAGE = re.compile(r"gallery/characters/[^/]+/(?:index|[1-9]\d*)\.html")
"""Where a character's page lies."""
_BEFORE, _AFTER = "(self.galleryEntries ??= []).push([\n", "\n]);\n"


class InBatch(BaseModel):
    """What a batch has of a character."""

    model_config = ConfigDict(frozen=True)

    character: str = Field(description="The reference.")
    entries: int = Field(default=0, description="Pictures, older takes too, and rows without.")
    images: int = Field(default=0, description="Current pictures.")
    cost_usd: float = Field(default=0.0, description="US dollars of them whose amount is known.")
    replaced_usd: float = Field(default=0.0, description="The same of older takes, on top of that.")
    newest: str = Field(
        default="", description="When the newest picture was completed, ISO 8601; empty without any."
    )
    face: str = Field(default="", description="Small picture of the reference; empty if there is none.")

    def and_with(self, entry: Entry) -> InBatch:
        """Return what it has with one entry more."""
        is_current = bool(entry.image) and not entry.older
        cost_usd = entry.facts.get("cost_usd", 0.0) if entry.image else 0.0
        faces = (path for name, path in entry.references if name == self.character)
        return self.model_copy(
            update={
                "entries": self.entries + 1,
                "images": self.images + is_current,
                "cost_usd": self.cost_usd + (cost_usd if is_current else 0.0),
                "replaced_usd": self.replaced_usd + (0.0 if is_current else cost_usd),
                "newest": max(self.newest, entry.completed_at),
                "face": self.face or next(filter(None, faces), ""),
            }
        )


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


def encoded_piece(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the file of entries that are JSON already, safe inside a script, in parts."""
    before = _BEFORE.encode()
    for line in lines:
        yield before + line
        before = b",\n"
    yield _AFTER.encode()


def read_piece(store: Store, path: str) -> Iterator[dict[str, Any]]:
    """Yield the entries of a file, one a line of it; no more of it is read than is gone through.

    A line that was cut or overwritten is left out, and comes back when the batch's page is next made.
    """
    for line in _lines(store.parts(path)):
        if line.startswith(b"{"):
            try:
                entry = json.loads(line.removesuffix(b","))
            except ValueError:
                continue
            yield entry


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
    yield rest


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

"""The gallery: an index and a page per batch and character, static, with small pictures and without a server.

A page is made when its batch's results were written since it was last made; `gallery/index.json` remembers when. A
character's page is made when one of its batches' is.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, get_args
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.errors import DamagedFile
from ideogram_pipeline.gallery import characters
from ideogram_pipeline.gallery.characters import InBatch, Piece
from ideogram_pipeline.gallery.entries import Entry, References, entries
from ideogram_pipeline.gallery.sheet import A_PAGE, printed_sheets, printed_tile
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.fetching import THUMBNAIL_SIDE
from ideogram_pipeline.generation.rebuild import mend
from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow, OutcomeState
from ideogram_pipeline.packing import Packer
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.rows import Review
from ideogram_pipeline.texts import counted

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup
    from PIL.Image import Image

INDEX = "gallery/index.html"
REMEMBERED = "gallery/index.json"
STRIP = 8
"""So many of a batch's pictures stand in the index."""
BATCH_SHEETS, CHARACTER_SHEETS = 20, 4
"""So many printed pages at most: of a batch's first pictures, and of a character's newest."""
_STATIC = ("gallery.css", "gallery.js")
_STATIC_FILE = re.compile(r"gallery/static/gallery-[0-9a-f]{12}\.(css|js)")
_SHEET = re.compile(r"([1-9]\d*)\.jpg")


class BatchPage(BaseModel):
    """One batch as the index shows it, and what its page was made of."""

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="The partition.")
    mark: str = Field(description="Of the results that the page shows, and of the way it shows them.")
    href: str = Field(description="Link to the page.")
    states: tuple[tuple[str, int], ...] = Field(description="Rows by state, those that occur.")
    images: int = Field(description="Current pictures.")
    cost_usd: float = Field(description="US dollars of its rows as they are now, whose amount is known.")
    replaced_usd: float = Field(
        default=0.0, description="Of pictures that later takes or edited rows have replaced, on top of that."
    )
    sandbox: bool = Field(description="Whether the local stand-in drew any of it.")
    strip: tuple[tuple[str, str], ...] = Field(description="The first pictures: paths and words.")
    characters: tuple[InBatch, ...] = Field(default=(), description="What it has of each character.")
    sheets: int = Field(default=0, description="Printed pages.")
    references: tuple[str, ...] = Field(default=(), description="Digests of the references it shows.")
    terms: str = Field(default="", description="Changes with their licenses and notes.")
    sha256: str = Field(default="", description="Hex digest of the page.")


class GalleryIndex(BaseModel):
    """The pages that were made."""

    model_config = ConfigDict(frozen=True)

    pages: tuple[BatchPage, ...] = Field(default=(), description="In the order of the index.")


class Character(BaseModel):
    """One character as the index shows it."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="The reference.")
    href: str = Field(description="Link to its page.")
    images: int = Field(description="Current pictures, over all batches.")
    cost_usd: float = Field(description="US dollars of them whose amount is known.")
    replaced_usd: float = Field(description="Of older takes, on top of that.")
    batches: int = Field(description="Batches that have any.")
    face: str = Field(description="Small picture of the reference; empty if there is none.")


@dataclass(frozen=True, slots=True)
class GallerySummary:
    """What a gallery shows."""

    index: str
    """Path of the first page in the store."""
    batches: int
    """Pages of batches."""
    characters: int
    """Characters with pages of their own."""
    rows: int
    """Rows of the prompts table."""
    images: int
    """Pictures."""
    digest: str
    """Changes when, and only when, a page does."""


def write_gallery(
    store: Store, *, thumbnails: bool = True, anew: bool = False, reviews: Iterable[Review] = ()
) -> GallerySummary:
    """Write the pages of batches whose results or reviews have changed, or of all `anew`, and of their characters.

    Small pictures that are missing are made. Without thumbnails the pages show the pictures themselves, and there is
    nothing to print.
    """
    return _Gallery(store, thumbnails, reviews).write(anew=anew)


class _Gallery:
    """One writing of the gallery."""

    def __init__(self, store: Store, thumbnails: bool, reviews: Iterable[Review]) -> None:
        self._store = store
        self._thumbnails = thumbnails
        self._reviews: dict[str, dict[str, Review]] = defaultdict(dict)
        for review in reviews:
            self._reviews[review.batch][review.image] = review
        static = {name: _packaged(name) for name in _STATIC}
        self._static = {
            name: f"-{_digest(content)[:12]}.".join(name.split(".")) for name, content in static.items()
        }
        self._contents = {f"gallery/static/{self._static[name]}": static[name] for name in _STATIC}
        self._templates = _templates(self._static)
        self._look = _look(self._templates, self._static.values(), thumbnails)
        self._references = References(store)
        self._tiles: dict[str, Image] = {}

    def write(self, *, anew: bool) -> GallerySummary:
        before = _remembered(self._store)
        known = {page.batch: page for page in before.pages}
        there = {
            found.path
            for found in self._store.objects("gallery/static")
            if _STATIC_FILE.fullmatch(found.path)
        }
        for path in self._contents.keys() - there:
            self._store.put(path, self._contents[path])
        asked_for = files.batches(self._store)
        pages = []
        touched = {
            kept.character
            for page in known.values()
            if page.batch not in asked_for
            for kept in page.characters
        }
        for batch, results in files.results(self._store).items():
            if batch not in asked_for:
                continue
            said = "\n".join(one.model_dump_json() for _, one in sorted(self._reviews[batch].items()))
            mark = f"{results} {self._look} {_digest(said.encode())[:16]}"
            page = known.get(batch)
            if (
                page is None
                or page.mark != mark
                or page.terms != self._references.digest(page.references)
                or anew
            ):
                previous = page.characters if page else ()
                page = self._written_batch(batch, mark)
                now = {kept.character for kept in page.characters}
                touched |= now | {kept.character for kept in previous}
                for kept in previous:
                    if kept.character not in now:
                        self._store.delete(characters.piece_path(kept.character, batch))
            pages.append(page)
        found = _characters(pages)
        for name in sorted(touched):
            self._write_character(name, found.get(name, []), pages)
        html = b"".join(self._rendered("index.html.j2", "../", pages=pages, characters=_in_short(found)))
        after = GalleryIndex(pages=tuple(pages))
        if after != before or anew or not self._store.exists(INDEX):
            self._store.put(INDEX, html)
            self._store.put(REMEMBERED, after.model_dump_json().encode())
        for path in there - self._contents.keys():
            self._store.delete(path)
        return GallerySummary(
            index=INDEX,
            batches=len(pages),
            characters=len(found),
            rows=sum(sum(count for _, count in page.states) for page in pages),
            images=sum(page.images for page in pages),
            digest=_digest("".join(page.sha256 for page in pages).encode() + html),
        )

    def _written_batch(self, batch: str, mark: str) -> BatchPage:
        """Write a batch's page and all that goes with it, from rows that are made anew where they are damaged."""
        try:
            return self._write_batch(batch, mark)
        except (DamagedFile, FileNotFoundError):
            mend(self._store, batch)
            return self._write_batch(batch, mark)

    def _write_batch(self, batch: str, mark: str) -> BatchPage:
        """Write a batch's page, its printed pages and its characters' entries."""
        self._tiles.clear()
        self._references.named.clear()
        packer = Packer()
        lines: list[bytes] = []
        members: dict[str, list[bytes]] = defaultdict(list)
        known: dict[str, InBatch] = {}
        printed: list[tuple[str, str]] = []
        current = 0
        sandbox = False
        for entry in entries(
            self._store, batch, self._references, self._reviews[batch], thumbnails=self._thumbnails
        ):
            line = packer.packed(_script_json(entry).encode())
            lines.append(line)
            sandbox |= entry.facts.get("backend") == "sandbox"
            if name := entry.character:
                members[name].append(line)
                known[name] = known.get(name, InBatch(character=name)).and_with(entry)
            if entry.image and not entry.older:
                current += 1
                if len(printed) < BATCH_SHEETS * A_PAGE:
                    printed.append((entry.thumbnail, entry.caption))
        for name, held in members.items():
            self._store.put_parts(
                characters.piece_path(name, batch), characters.encoded_piece(map(packer.unpacked, held))
            )
        rows = files.rows_in_short(self._store, batch)
        counted = Counter[str](row.state for row in rows)
        page = BatchPage(
            batch=batch,
            mark=mark,
            href=quote(f"batch={batch}/index.html"),
            states=tuple((state, counted[state]) for state in get_args(OutcomeState) if counted[state]),
            images=current,
            cost_usd=sum(row.cost_usd or 0.0 for row in rows),
            replaced_usd=files.replaced_usd(self._store, batch),
            sandbox=sandbox,
            strip=tuple((path, caption.partition("\n")[2][:300]) for path, caption in printed[:STRIP]),
            characters=tuple(known[name] for name in sorted(known)),
            sheets=self._write_sheets(f"gallery/batch={batch}", batch, printed),
            references=tuple(sorted(self._references.named)),
            terms=self._references.digest(self._references.named),
        )
        sha256 = self._write_page(
            f"gallery/batch={batch}/index.html",
            "batch.html.j2",
            "../../",
            page=page,
            lines=(_as_script(packer.unpacked(line)) for line in lines),
            a_page=A_PAGE,
        )
        return page.model_copy(update={"sha256": sha256})

    def _write_character(self, name: str, pieces: Sequence[Piece], pages: Sequence[BatchPage]) -> None:
        """Write a character's pages, or remove them if no batch has it any more."""
        folder = characters.folder(name)
        parts = characters.parts(pieces) if pieces else []
        drawn = {page.batch for page in pages if page.sandbox}
        sheets = self._write_sheets(folder, name, self._newest(parts))
        written = set()
        for number, part in enumerate(parts, 1):
            path = f"{folder}/{characters.page_name(number)}"
            self._write_page(
                path,
                "character.html.j2",
                "../../../",
                character=_character(name, pieces),
                pieces=[quote(f"batch={piece.batch}.js") for piece in part],
                entries=sum(piece.known.entries for piece in part),
                parts=[characters.page_name(other) for other in range(1, len(parts) + 1)],
                number=number,
                sheets=sheets,
                sandbox=any(piece.batch in drawn for piece in pieces),
                a_page=A_PAGE,
            )
            written.add(path)
        for stored in list(self._store.objects(folder)):
            if characters.PAGE.fullmatch(stored.path) and stored.path not in written:
                self._store.delete(stored.path)

    def _newest(self, parts: Iterable[Iterable[Piece]]) -> list[tuple[str, str]]:
        """Return small pictures and captions of a character's newest batches, as many as are printed."""
        if not self._thumbnails:
            return []
        held = (entry for part in parts for piece in part for entry in self._held(piece))
        current = (entry for entry in held if entry.image and not entry.older)
        return [
            (entry.thumbnail, f"{entry.batch}: {entry.caption}")
            for entry in islice(current, CHARACTER_SHEETS * A_PAGE)
        ]

    def _held(self, piece: Piece) -> Iterator[Entry]:
        with suppress(FileNotFoundError):  # its batch was erased
            yield from map(Entry.model_validate, characters.read_piece(self._store, piece.path))

    def _write_sheets(self, folder: str, title: str, pictures: Sequence[tuple[str, str]]) -> int:
        """Write printed pages, remove those that are left of before, and return how many there are."""
        number = 0
        if self._thumbnails:
            for number, content in enumerate(
                printed_sheets(title, self._drawn(pictures), count=len(pictures)), 1
            ):
                self._store.put(f"{folder}/sheets/{number}.jpg", content)
        for stored in list(self._store.objects(f"{folder}/sheets")):
            sheet = _SHEET.fullmatch(PurePosixPath(stored.path).name)
            if sheet and int(sheet[1]) > number:
                self._store.delete(stored.path)
        return number

    def _drawn(self, pictures: Iterable[tuple[str, str]]) -> Iterator[tuple[Image, str]]:
        for path, caption in pictures:
            with suppress(FileNotFoundError):  # removed since
                yield self._tile(path), caption

    def _tile(self, path: str) -> Image:
        """Return a small picture for a printed page; a batch's first ones are often a character's newest too."""
        if path not in self._tiles:
            tile = printed_tile(self._store.get(path))
            if len(self._tiles) >= CHARACTER_SHEETS * A_PAGE:
                return tile
            self._tiles[path] = tile
        return self._tiles[path]

    def _write_page(self, path: str, template: str, root: str, **context: object) -> str:
        """Write a page, which may be large, and return its hex digest."""
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            for part in self._rendered(template, root, **context):
                digest.update(part)
                yield part

        self._store.put_parts(path, hashed())
        return digest.hexdigest()

    def _rendered(self, template: str, root: str, **context: object) -> Iterator[bytes]:
        """Yield a page in parts; `root` leads from it to the store's root."""
        parts = self._templates.get_template(template).stream(root=root, side=THUMBNAIL_SIDE, **context)
        parts.enable_buffering(100)
        return (part.encode() for part in parts)


def _templates(static: Mapping[str, str]) -> Environment:
    from jinja2 import Environment, PackageLoader, select_autoescape

    templates = Environment(
        loader=PackageLoader("ideogram_pipeline.gallery"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    models = (OutcomeRow, ImageRow)
    columns = {name: field.description for model in models for name, field in model.model_fields.items()}
    templates.globals |= {"static": static, "columns": columns}
    templates.filters |= {"link": quote, "counted": counted}
    return templates


def _remembered(store: Store) -> GalleryIndex:
    try:
        return GalleryIndex.model_validate_json(store.get(REMEMBERED))
    except (FileNotFoundError, ValueError):
        return GalleryIndex()


def _packaged(name: str) -> bytes:
    return (resources.files("ideogram_pipeline.gallery") / "static" / name).read_bytes()


def _look(templates: Environment, static: Iterable[str], thumbnails: bool) -> str:
    """Return what changes with the way pages look."""
    loader = templates.loader
    assert loader is not None
    sources = [loader.get_source(templates, name)[0] for name in sorted(loader.list_templates())]
    whole = "".join([*sources, *static, str(thumbnails)])
    return _digest(whole.encode())[:16]


def _script_json(entry: Entry) -> str:
    """Return an entry as JSON that can't end the script it stands in."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(entry.model_dump(exclude_defaults=True), separators=(",", ":"))


def _as_script(line: bytes) -> Markup:
    from markupsafe import Markup

    return Markup(line.decode())  # noqa: S704 - made by `_script_json`, which escapes what could end a script


def _characters(pages: Sequence[BatchPage]) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = defaultdict(list)
    for page in pages:
        for known in page.characters:
            found[known.character].append(Piece(page.batch, known))
    return dict(sorted(found.items()))


def _in_short(found: Mapping[str, Sequence[Piece]]) -> list[Character]:
    return [_character(name, pieces) for name, pieces in found.items()]


def _character(name: str, pieces: Sequence[Piece]) -> Character:
    return Character(
        name=name,
        href=quote(f"characters/{name}/index.html"),
        images=sum(piece.known.images for piece in pieces),
        cost_usd=sum(piece.known.cost_usd for piece in pieces),
        replaced_usd=sum(piece.known.replaced_usd for piece in pieces),
        batches=len(pieces),
        face=next((piece.known.face for piece in pieces if piece.known.face), ""),
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

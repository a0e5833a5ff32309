"""The gallery: an index and a page per batch, static, with small pictures and without a server.

A page is made when its batch's results were written since it was last made; `gallery/index.json` remembers when.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, get_args
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.fetching import THUMBNAIL_SIDE, thumbnail_path
from ideogram_pipeline.generation.files import ShownPicture, ShownRow
from ideogram_pipeline.generation.planner import Plan
from ideogram_pipeline.generation.requests import PictureUse
from ideogram_pipeline.generation.rows import ImageRow, OutcomeState
from ideogram_pipeline.pictures import BadPicture, thumbnail
from ideogram_pipeline.storage import Store

if TYPE_CHECKING:
    from jinja2 import Environment

INDEX = "gallery/index.html"
REMEMBERED = "gallery/index.json"
STRIP = 8
"""So many of a batch's pictures stand in the index."""
_REFERENCE_SIDE = 96

Picture = TypeVar("Picture", ImageRow, ShownPicture)


@dataclass(frozen=True, slots=True)
class Card:
    """One row of the prompts table as the page shows it: with a picture, or with the reason there is none."""

    outcome: ShownRow
    """How the row ended."""
    image: ShownPicture | None
    """The picture, if there is one."""
    prompt: str
    """As the plan has it."""
    href: str
    """Link to the picture."""
    thumbnail: str
    """Link to the small picture."""
    references: tuple[tuple[str, str], ...]
    """Names and small pictures of the references."""


class BatchPage(BaseModel):
    """One batch as the index shows it, and what its page was made of."""

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="The partition.")
    mark: str = Field(description="Of the results that the page shows, and of the way it shows them.")
    href: str = Field(description="Link to the page.")
    states: tuple[tuple[str, int], ...] = Field(description="Rows by state, those that occur.")
    images: int = Field(description="Pictures.")
    cost_usd: float = Field(description="US dollars whose amount is known.")
    sandbox: bool = Field(description="Whether the local stand-in drew any of it.")
    strip: tuple[tuple[str, str], ...] = Field(description="The first pictures: links and words.")
    sha256: str = Field(default="", description="Hex digest of the page.")


class GalleryIndex(BaseModel):
    """The pages that were made."""

    model_config = ConfigDict(frozen=True)

    pages: tuple[BatchPage, ...] = Field(default=(), description="In the order of the index.")


@dataclass(frozen=True, slots=True)
class GallerySummary:
    """What a gallery shows."""

    index: str
    """Path of the first page in the store."""
    batches: int
    """Pages besides the index."""
    rows: int
    """Rows of the prompts table."""
    images: int
    """Pictures."""
    digest: str
    """Changes when, and only when, a page does."""


def write_gallery(store: Store, *, thumbnails: bool = True, anew: bool = False) -> GallerySummary:
    """Write the pages of batches whose results have changed, or of all `anew`, with the small pictures they lack.

    Without thumbnails the pages show the pictures themselves.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    templates = Environment(
        loader=PackageLoader("ideogram_pipeline.gallery"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    before = GalleryIndex() if anew else _remembered(store)
    known = {page.batch: page for page in before.pages}
    asked_for = files.batches(store)
    look = _look(templates, thumbnails)
    references = _References(store)
    pages = []
    for batch, results in files.results(store).items():
        if batch not in asked_for:
            continue
        mark = f"{results} {look}"
        if batch not in known or known[batch].mark != mark:
            page, cards = _page(store, batch, mark, references, thumbnails=thumbnails)
            parts = templates.get_template("batch.html.j2").stream(
                page=page, cards=cards, side=THUMBNAIL_SIDE
            )
            parts.enable_buffering(1_000)
            content = b"".join(part.encode() for part in parts)
            store.put(f"gallery/batch={batch}/index.html", content)
            known[batch] = page.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
        pages.append(known[batch])
    html = templates.get_template("index.html.j2").render(pages=pages)
    after = GalleryIndex(pages=tuple(pages))
    if after != before or not store.exists(INDEX):
        store.put(INDEX, html.encode())
        store.put(REMEMBERED, after.model_dump_json().encode())
    whole = "".join([*(page.sha256 for page in pages), html])
    return GallerySummary(
        index=INDEX,
        batches=len(pages),
        rows=sum(sum(count for _, count in page.states) for page in pages),
        images=sum(page.images for page in pages),
        digest=hashlib.sha256(whole.encode()).hexdigest(),
    )


def _remembered(store: Store) -> GalleryIndex:
    try:
        return GalleryIndex.model_validate_json(store.get(REMEMBERED))
    except (FileNotFoundError, ValueError):
        return GalleryIndex()


def _look(templates: Environment, thumbnails: bool) -> str:
    """Return what changes with the way pages look."""
    loader = templates.loader
    assert loader is not None
    sources = [loader.get_source(templates, name)[0] for name in sorted(loader.list_templates())]
    return hashlib.sha256("".join([*sources, str(thumbnails)]).encode()).hexdigest()[:16]


def _page(
    store: Store, batch: str, mark: str, references: _References, *, thumbnails: bool
) -> tuple[BatchPage, list[Card]]:
    outcomes = files.shown_rows(store, batch)
    images = [row for row in files.shown_pictures(store, batch) if row.current]
    images = fill_in_thumbnails(store, images) if thumbnails else _there(store, batch, images)
    cards = _cards(references, files.read_plan(store, batch), outcomes, images, thumbnails)
    counted = Counter[str](outcome.state for outcome in outcomes)
    first = [card for card in cards if card.image][:STRIP]
    page = BatchPage(
        batch=batch,
        mark=mark,
        href=quote(f"batch={batch}/index.html"),
        states=tuple((state, counted[state]) for state in get_args(OutcomeState) if counted[state]),
        images=len(images),
        cost_usd=sum(outcome.cost_usd or 0.0 for outcome in outcomes),
        sandbox=any(image.backend == "sandbox" for image in images),
        strip=tuple((card.thumbnail.replace("../../gallery/", "", 1), card.prompt) for card in first),
    )
    return page, cards


def _cards(
    shown: _References,
    plan: Plan,
    outcomes: Sequence[ShownRow],
    images: Sequence[ShownPicture],
    thumbnails: bool,
) -> list[Card]:
    asked: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {}
    for row in plan.rows:
        if request := row.request:
            references = tuple((use.reference_id, shown.link(use)) for use in request.pictures)
            asked[row.prompt_id] = str(request.arguments.get("prompt", "")), references
    pictures: dict[str | None, list[ShownPicture]] = defaultdict(list)
    for image in images:
        pictures[image.fingerprint].append(image)
    cards = []
    for outcome in outcomes:
        prompt, references = asked.get(outcome.prompt_id, ("", ()))
        if outcome.fingerprint not in pictures:
            cards.append(Card(outcome, None, prompt, "", "", references))
        for image in pictures.get(outcome.fingerprint, []):
            path = f"images/batch={image.batch}/{image.file_name}"
            href = quote(f"../../{path}")
            small = quote(f"../../{thumbnail_path(path)}") if thumbnails else href
            cards.append(Card(outcome, image, prompt, href, small, references))
    return cards


def _there(store: Store, batch: str, images: Sequence[ShownPicture]) -> list[ShownPicture]:
    there = {found.path for found in store.objects(f"images/batch={batch}")}
    return [image for image in images if f"images/batch={batch}/{image.file_name}" in there]


def fill_in_thumbnails(store: Store, images: Sequence[Picture]) -> list[Picture]:
    """Make the small pictures that are missing; return the rows whose picture is there and can be shown."""
    batches = {image.batch for image in images}
    there = {found.path for batch in batches for found in store.objects(f"gallery/batch={batch}/thumbnails")}
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


class _References:
    """The small pictures of references, each looked for once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._there = {found.path for found in store.objects("gallery/references")}
        self._links: dict[str, str] = {}

    def link(self, use: PictureUse) -> str:
        """Return the link from a batch's page, making the small picture if need be; empty if there is none."""
        if use.sha256 not in self._links:
            self._links[use.sha256] = self._made(use)
        return self._links[use.sha256]

    def _made(self, use: PictureUse) -> str:
        path = f"gallery/references/{use.sha256}.webp"
        if path not in self._there:
            try:
                self._store.put(path, thumbnail(self._store.get(use.path), _REFERENCE_SIDE))
            except (FileNotFoundError, BadPicture):
                return ""
        return f"../../{path}"

"""The gallery: an index and a page per batch, static, with small pictures and without a server."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args
from urllib.parse import quote

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.fetching import THUMBNAIL_SIDE, thumbnail_path
from ideogram_pipeline.generation.planner import Plan
from ideogram_pipeline.generation.requests import PictureUse
from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow, OutcomeState
from ideogram_pipeline.pictures import BadPicture, thumbnail
from ideogram_pipeline.storage import Store

INDEX = "gallery/index.html"
_REFERENCE_SIDE = 96


@dataclass(frozen=True, slots=True)
class Card:
    """One row of the prompts table as the page shows it: with a picture, or with the reason there is none."""

    outcome: OutcomeRow
    """How the row ended."""
    image: ImageRow | None
    """The picture, if there is one."""
    prompt: str
    """As the plan has it."""
    href: str
    """Link to the picture."""
    thumbnail: str
    """Link to the small picture."""
    references: tuple[tuple[str, str], ...]
    """Names and small pictures of the references."""


@dataclass(frozen=True, slots=True)
class BatchPage:
    """One batch as the index shows it."""

    batch: str
    """The partition."""
    href: str
    """Link to its page."""
    cards: tuple[Card, ...]
    """Its rows."""
    states: tuple[tuple[str, int], ...]
    """Rows by state, those that occur."""
    images: int
    """Pictures."""
    cost_usd: float
    """US dollars whose amount is known."""
    sandbox: bool
    """Whether the local stand-in drew any of it."""


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


def write_gallery(store: Store, *, thumbnails: bool = True) -> GallerySummary:
    """Write every page anew from what the batches' runs left; make the small pictures that are missing.

    Without thumbnails the pages show the pictures themselves.
    """
    from jinja2 import Environment, PackageLoader, select_autoescape

    templates = Environment(
        loader=PackageLoader("ideogram_pipeline.gallery"),
        autoescape=select_autoescape(default=True),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    whole = hashlib.sha256()
    asked_for = files.batches(store)
    references = _References(store)
    pages = [
        _page(store, batch, references, thumbnails)
        for batch in files.batches_with_results(store)
        if batch in asked_for
    ]
    for page in pages:
        html = templates.get_template("batch.html.j2").render(page=page, side=THUMBNAIL_SIDE).encode()
        store.put(f"gallery/batch={page.batch}/index.html", html)
        whole.update(html)
    html = templates.get_template("index.html.j2").render(pages=pages).encode()
    store.put(INDEX, html)
    whole.update(html)
    return GallerySummary(
        index=INDEX,
        batches=len(pages),
        rows=sum(sum(count for _, count in page.states) for page in pages),
        images=sum(page.images for page in pages),
        digest=whole.hexdigest(),
    )


def _page(store: Store, batch: str, references: _References, thumbnails: bool) -> BatchPage:
    outcomes = files.read_outcomes(store, batch)
    images = [row for row in files.read_images(store, batch) if row.current]
    images = fill_in_thumbnails(store, images) if thumbnails else _there(store, batch, images)
    cards = tuple(_cards(files.read_plan(store, batch), outcomes, images, references, thumbnails))
    counted = Counter[str](outcome.state for outcome in outcomes)
    return BatchPage(
        batch=batch,
        href=quote(f"batch={batch}/index.html"),
        cards=cards,
        states=tuple((state, counted[state]) for state in get_args(OutcomeState) if counted[state]),
        images=len(images),
        cost_usd=sum(outcome.cost_usd or 0.0 for outcome in outcomes),
        sandbox=any(image.backend == "sandbox" for image in images),
    )


def _cards(
    plan: Plan,
    outcomes: Sequence[OutcomeRow],
    images: Sequence[ImageRow],
    references: _References,
    thumbnails: bool,
) -> list[Card]:
    requests = {row.prompt_id: row.request for row in plan.rows}
    pictures: dict[str | None, list[ImageRow]] = defaultdict(list)
    for image in images:
        pictures[image.fingerprint].append(image)
    cards = []
    for outcome in outcomes:
        request = requests.get(outcome.prompt_id)
        shown = tuple((use.reference_id, references.link(use)) for use in request.pictures) if request else ()
        prompt = str(request.arguments.get("prompt", "")) if request else ""
        if outcome.fingerprint not in pictures:
            cards.append(Card(outcome, None, prompt, "", "", shown))
        for image in pictures.get(outcome.fingerprint, []):
            path = f"images/batch={image.batch}/{image.file_name}"
            href = quote(f"../../{path}")
            small = quote(f"../../{thumbnail_path(path)}") if thumbnails else href
            cards.append(Card(outcome, image, prompt, href, small, shown))
    return cards


def _there(store: Store, batch: str, images: Sequence[ImageRow]) -> list[ImageRow]:
    there = {found.path for found in store.objects(f"images/batch={batch}")}
    return [image for image in images if f"images/batch={batch}/{image.file_name}" in there]


def fill_in_thumbnails(store: Store, images: Sequence[ImageRow]) -> list[ImageRow]:
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
        """Return the link to a reference's small picture, which is made if there is none; empty if it can't be."""
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

"""The gallery: every row has its card, every link leads to a file, and no prompt is ever markup."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from ideogram_pipeline.gallery.pages import INDEX, write_gallery
from ideogram_pipeline.generation.planner import References
from ideogram_pipeline.pictures import inspect
from ideogram_pipeline.tables.references import picture_path
from ideogram_pipeline.tables.rows import Reference, Rejection

ENDINGS = {"g": "generated", "x": "refused", "f": "failed", "u": "unknown", "n": "not_reached"}
ROWS = [{"prompt_id": name, "prompt": f"prompt of {name}"} for name in ENDINGS]
REJECTION = Rejection(
    file="p.csv", row_number=99, row_id="../evil", batch="drop", column="prompt_id", reason="that is no name"
)


@dataclass
class Page(HTMLParser):
    """What a browser would make of a page: its elements, its links and its words."""

    path: Path
    tags: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    words: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words += data

    @property
    def targets(self) -> list[Path]:
        assert not any(urlsplit(link).scheme for link in self.links)
        return [(self.path.parent / unquote(link)).resolve() for link in self.links]


def page(store, path: str) -> Page:
    return Page(Path(store.where(path)))


def test_every_row_has_a_card_with_its_state_and_its_reason(store, work_batch):
    work_batch(ROWS, endings=ENDINGS, rejections=[REJECTION])
    summary = write_gallery(store)
    batch = page(store, "gallery/batch=drop/index.html")
    assert batch.tags.count("article") == summary.rows == 6
    assert summary.images == 1
    for words in ("generated", "refused", "failed", "unknown", "not reached", "rejected"):
        assert words in batch.words
    for reason in (
        "it was refused",
        "it was failed",
        "the answer was lost",
        "the brake was pulled",
        "that is no name",
    ):
        assert reason in batch.words


def test_every_link_leads_to_a_file(store, work_batch):
    rows = [{"prompt_id": "a", "prompt": "x", "num_images": 2}]
    for batch in ("drop", "été-漢", "v1.0_b"):
        work_batch(rows, batch=batch)
    write_gallery(store)
    pages = [
        page(store, INDEX),
        *(page(store, f"gallery/{name}/index.html") for name in store.folders("gallery")),
    ]
    targets = [target for found in pages for target in found.targets]
    assert len(pages) == 4
    assert len(targets) == 3 * (1 + 2) + 3 * (1 + 2 + 2)
    assert [target for target in targets if not target.is_file()] == []


def test_a_reference_is_shown_beside_its_picture(store, work_batch, picture):
    content = picture("gold")
    facts = inspect(content)
    face = Reference(
        reference_id="face",
        row_number=2,
        uri="face.png",
        sha256=facts.sha256,
        kind=facts.kind,
        width=facts.width,
        height=facts.height,
        bytes=facts.bytes,
    )
    store.put(picture_path(face), content)
    row = {"prompt_id": "a", "prompt": "x", "reference_id": "face"}
    work_batch([row], references=References.of([face], []))
    write_gallery(store)
    shown = Path(store.where(f"gallery/references/{facts.sha256}.webp"))
    assert shown in page(store, "gallery/batch=drop/index.html").targets
    assert max(Image.open(shown).size) <= 96


def test_a_reference_that_is_gone_costs_the_page_nothing_else(store, work_batch):
    gone = Reference(
        reference_id="gone", row_number=2, uri="x", sha256="0" * 64, kind="png", width=9, height=9, bytes=9
    )
    row = {"prompt_id": "a", "prompt": "x", "reference_id": "gone"}
    work_batch([row], references=References.of([gone], []))
    write_gallery(store)
    assert all(target.is_file() for target in page(store, "gallery/batch=drop/index.html").targets)


@pytest.mark.parametrize(
    "evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'</p><b>&amp;"]
)
def test_a_prompt_is_shown_and_never_markup(store, work_batch, evil):
    rejection = REJECTION.model_copy(update={"row_id": evil, "reason": evil})
    plain = [{"prompt_id": "g", "prompt": "x"}, {"prompt_id": "f", "prompt": "x"}]
    work_batch(plain, endings={"f": "failed"}, rejections=[REJECTION])
    write_gallery(store)
    expected = [page(store, path).tags for path in ("gallery/batch=drop/index.html", INDEX)]
    work_batch([row | {"prompt": evil} for row in plain], endings={"f": "failed"}, rejections=[rejection])
    write_gallery(store)
    found = [page(store, path) for path in ("gallery/batch=drop/index.html", INDEX)]
    assert [shown.tags for shown in found] == expected
    assert found[0].words.count(evil) == 4


def test_every_card_has_an_id_of_its_own(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x", "num_images": 3}, *ROWS], endings=ENDINGS)
    write_gallery(store)
    ids = page(store, "gallery/batch=drop/index.html").ids
    assert len(ids) == len(set(ids)) == 3 + len(ROWS)


def test_what_the_sandbox_drew_is_said_to_be_drawn(store, work_batch):
    work_batch(ROWS)
    write_gallery(store)
    for path in (INDEX, "gallery/batch=drop/index.html"):
        assert "Drawn by the local sandbox" in page(store, path).words


def test_missing_thumbnails_are_made(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    write_gallery(store)
    [small] = store.objects("gallery/batch=drop/thumbnails")
    store.delete(small.path)
    write_gallery(store, anew=True)
    assert store.exists(small.path)


def test_only_current_pictures_are_shown(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "before"}])
    work_batch([{"prompt_id": "a", "prompt": "after"}])
    assert write_gallery(store).images == 1
    words = page(store, "gallery/batch=drop/index.html").words
    assert "after" in words
    assert "before" not in words


def test_the_digest_changes_when_and_only_when_a_page_does(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    first = write_gallery(store).digest
    assert write_gallery(store).digest == first
    work_batch([{"prompt_id": "a", "prompt": "y"}])
    assert write_gallery(store).digest != first


def test_only_pages_of_batches_that_were_run_since_are_made(store, work_batch):
    for batch in ("one", "two"):
        work_batch([{"prompt_id": "a", "prompt": batch}], batch=batch)
    write_gallery(store)
    pages = {batch: f"gallery/batch={batch}/index.html" for batch in ("one", "two")}
    before = {batch: store.etag(path) for batch, path in pages.items()}
    work_batch([{"prompt_id": "a", "prompt": "three"}], batch="two")
    summary = write_gallery(store)
    assert [batch for batch, path in pages.items() if store.etag(path) != before[batch]] == ["two"]
    assert (summary.batches, summary.rows, summary.images) == (2, 2, 2)
    alternatives = [found for found in page(store, INDEX).tags if found == "img"]
    assert len(alternatives) == 2


def test_other_thumbnails_or_a_lost_memory_make_every_page_anew(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    write_gallery(store)
    path = "gallery/batch=drop/index.html"
    small = page(store, path).links
    write_gallery(store, thumbnails=False)
    assert page(store, path).links != small
    for found in list(store.objects("gallery")):
        store.delete(found.path)
    write_gallery(store)
    assert page(store, path).links == small


def test_a_store_without_pictures_has_an_index(store):
    summary = write_gallery(store)
    assert (summary.batches, summary.rows, summary.images) == (0, 0, 0)
    assert "0 pictures in 0 batches" in page(store, INDEX).words

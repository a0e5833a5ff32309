"""The gallery: every row has its entry, every link leads to a file, and no prompt is ever markup."""

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from ideogram_pipeline.gallery import characters
from ideogram_pipeline.gallery.pages import INDEX, REMEMBERED, write_gallery
from ideogram_pipeline.generation.planner import References
from ideogram_pipeline.generation.readings import write_references
from ideogram_pipeline.pictures import inspect
from ideogram_pipeline.tables.references import ReferencesTable, picture_path
from ideogram_pipeline.tables.rows import Reference, Rejection, Review

ENDINGS = {"g": "generated", "x": "refused", "f": "failed", "u": "unknown", "n": "not_reached"}
ROWS = [{"prompt_id": name, "prompt": f"prompt of {name}"} for name in ENDINGS]
REJECTION = Rejection(
    file="p.csv", row_number=99, row_id="../evil", batch="drop", column="prompt_id", reason="that is no name"
)
BATCH = "gallery/batch=drop/index.html"
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'</p><b>&amp;<!--",
    "{{ 7*7 }} {% raw %}",
    "\u202eright to left\u2028\u2029 \U0001f98a \u05e9\u05dc\u05d5\u05dd",
    "x" * 10_000,
)


@dataclass
class Page(HTMLParser):
    """What a browser would make of a page: its elements, its links, its words and what its script reads."""

    path: Path
    tags: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    handlers: list[str] = field(default_factory=list)
    words: str = ""
    data: dict[str, str] = field(default_factory=dict)
    _script: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self._script = (found.get("id") or "script") if tag == "script" else None
        self.links += [found[name] or "" for name in ("href", "src") if name in found]
        self.handlers += [name for name in found if name.startswith("on") or name == "style"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.data[self._script] = self.data.get(self._script, "") + data
        else:
            self.words += data

    @property
    def entries(self) -> list[dict]:
        return json.loads(self.data["entries"])

    @property
    def targets(self) -> list[Path]:
        """The files that its links lead to, with those of its entries."""
        followed = [link for link in self.links if link != "data:,"]
        assert not any(urlsplit(link).scheme or link.startswith("/") for link in followed)
        root = self.path.parents[
            next(n for n, parent in enumerate(self.path.parents) if parent.name == "store")
        ]
        shown = self.entries if "entries" in self.data else []
        small = [path for entry in shown for _, path in entry.get("references", []) if path]
        own = [entry[name] for entry in shown for name in ("image", "thumbnail") if name in entry]
        return [(self.path.parent / unquote(link)).resolve() for link in followed] + [
            root / path for path in own + small
        ]


def page(store, path: str) -> Page:
    return Page(Path(store.where(path)))


def pages(store) -> list[Page]:
    return [page(store, found.path) for found in store.objects("gallery") if found.path.endswith(".html")]


@pytest.fixture
def face(store, picture):
    """A reference whose picture is in the store."""
    content = picture("gold")
    facts = inspect(content)
    found = Reference(
        reference_id="face",
        row_number=2,
        uri="face.png",
        sha256=facts.sha256,
        kind=facts.kind,
        width=facts.width,
        height=facts.height,
        bytes=facts.bytes,
    )
    store.put(picture_path(found), content)
    return found


def test_every_row_has_an_entry_with_its_state_and_its_reason(store, work_batch):
    work_batch(ROWS, endings=ENDINGS, rejections=[REJECTION])
    summary = write_gallery(store)
    found = {entry["facts"]["prompt_id"]: entry for entry in page(store, BATCH).entries}
    assert {name: entry["state"] for name, entry in found.items()} == ENDINGS | {"../evil": "rejected"}
    assert (summary.rows, summary.images) == (6, 1)
    assert [name for name, entry in found.items() if "image" in entry] == ["g"]
    reasons = {
        "x": "it was refused",
        "f": "it was failed",
        "u": "the answer was lost",
        "n": "the brake was pulled",
    }
    for name, reason in (reasons | {"../evil": "that is no name"}).items():
        assert reason in found[name]["reason"]
    assert found["f"]["facts"]["prompt"] == "prompt of f"


def test_a_picture_says_every_fact_of_its_row(store, work_batch):
    work_batch([{"prompt_id": "g", "prompt": "x", "rendering_speed": "TURBO", "mood": "calm"}])
    write_gallery(store)
    [entry] = page(store, BATCH).entries
    assert entry["facts"]["rendering_speed"] == "TURBO"
    assert entry["facts"]["backend"] == "sandbox"
    assert len(entry["facts"]["sha256"]) == 64
    assert "description" not in entry["facts"]
    columns = json.loads(page(store, BATCH).data["columns"])
    assert set(entry["facts"]) <= set(columns)


def test_every_link_leads_to_a_file(store, work_batch, face):
    rows = [{"prompt_id": "a", "prompt": "x", "num_images": 2, "reference_id": "face"}]
    for batch in ("drop", "été-漢", "v1.0_b"):
        work_batch(rows, batch=batch, references=References.of([face], []))
    write_gallery(store)
    found = pages(store)
    assert len(found) == 1 + 3 + 1
    targets = [target for one in found for target in one.targets]
    assert len(targets) > 40
    assert [target for target in targets if not target.is_file()] == []


def test_a_reference_is_shown_beside_its_picture(store, work_batch, face):
    work_batch(
        [{"prompt_id": "a", "prompt": "x", "reference_id": "face"}], references=References.of([face], [])
    )
    write_gallery(store)
    [entry] = page(store, BATCH).entries
    assert entry["references"] == [["face", f"gallery/references/{face.sha256}.webp"]]
    assert max(Image.open(store.where(entry["references"][0][1])).size) <= 96


def test_a_reference_that_is_gone_costs_the_page_nothing_else(store, work_batch):
    gone = Reference(
        reference_id="gone", row_number=2, uri="x", sha256="0" * 64, kind="png", width=9, height=9, bytes=9
    )
    row = {"prompt_id": "a", "prompt": "x", "reference_id": "gone"}
    work_batch([row], references=References.of([gone], []))
    write_gallery(store)
    assert page(store, BATCH).entries[0]["references"] == [["gone", ""]]
    assert all(target.is_file() for target in page(store, BATCH).targets)


@pytest.mark.parametrize("evil", HOSTILE)
def test_a_prompt_is_shown_and_never_markup(store, work_batch, face, evil):
    """The pages' elements stay those of a harmless prompt, and the texts come out as they went in."""
    references = References.of([face], [])
    rejection = REJECTION.model_copy(update={"row_id": evil, "reason": evil})
    plain = [{"prompt_id": name, "prompt": "x", "reference_id": "face"} for name in ("g", "f")]
    work_batch(plain, endings={"f": "failed"}, rejections=[REJECTION], references=references)
    write_gallery(store)
    expected = {found.path: found.tags for found in pages(store)}
    evils = [row | {"prompt": evil} for row in plain]
    work_batch(evils, endings={"f": "failed"}, rejections=[rejection], references=references)
    write_gallery(store)
    assert {found.path: found.tags for found in pages(store)} == expected
    assert [handler for found in pages(store) for handler in found.handlers] == []
    entries = [entry for entry in page(store, BATCH).entries if not entry.get("older")]
    said = [entry["facts"].get("prompt") or entry["facts"]["prompt_id"] for entry in entries]
    assert said == [evil.strip()] * 2 + [evil]
    piece = Path(store.where(characters.piece_path("face", "drop"))).read_text()
    assert "<" not in piece
    assert "\u2028" not in piece


def test_no_page_has_code_or_styles_in_it_nor_anything_of_another_host(store, work_batch, face):
    work_batch(
        [{"prompt_id": "a", "prompt": "x", "reference_id": "face"}], references=References.of([face], [])
    )
    write_gallery(store)
    for found in pages(store):
        assert "style" not in found.tags
        assert set(found.data) <= {"columns", "entries", "script"}
        assert found.data.get("script", "").strip() == ""


def test_what_the_sandbox_drew_is_said_to_be_drawn(store, work_batch, face):
    work_batch(
        [{"prompt_id": "a", "prompt": "x", "reference_id": "face"}], references=References.of([face], [])
    )
    write_gallery(store)
    for found in pages(store):
        assert "Drawn by the local sandbox" in found.words


def test_missing_thumbnails_are_made(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    write_gallery(store)
    [small] = store.objects("gallery/batch=drop/thumbnails")
    store.delete(small.path)
    write_gallery(store, anew=True)
    assert store.exists(small.path)


def test_a_picture_that_is_gone_leaves_a_card_that_says_so(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    for folder in ("images/batch=drop", "gallery/batch=drop/thumbnails"):
        for found in [found for found in store.objects(folder) if not found.path.endswith(".parquet")]:
            store.delete(found.path)
    write_gallery(store)
    [entry] = page(store, BATCH).entries
    assert "image" not in entry
    assert "not in the store" in entry["reason"]


def test_pictures_of_before_are_there_and_marked_as_older(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "before"}])
    work_batch([{"prompt_id": "a", "prompt": "after"}])
    assert write_gallery(store).images == 1
    found = page(store, BATCH).entries
    assert {entry["facts"]["prompt"]: entry.get("older", False) for entry in found} == {
        "after": False,
        "before": True,
    }


def test_money_is_told_with_and_without_the_takes_that_were_replaced(store, work_batch, face):
    """Incident: the sum left out what older takes had cost, and fal's bill was higher than the gallery."""
    references = References({"face": face}, {})
    work_batch([{"prompt_id": "a", "prompt": "before", "reference_id": "face"}], references=references)
    write_gallery(store)
    for path in (BATCH, INDEX, "gallery/characters/face/index.html"):
        assert "1 picture" in page(store, path).words
        assert "older takes" not in page(store, path).words.replace("Older takes", ""), path
    work_batch([{"prompt_id": "a", "prompt": "after", "reference_id": "face"}], references=references)
    write_gallery(store)
    for path in (BATCH, INDEX, "gallery/characters/face/index.html"):
        words = " ".join(page(store, path).words.split())
        assert "1 picture" in words
        assert "$0.15 of sandbox money, $0.30 with older takes" in words, path


def reviewed(image, sha256, review, note, at):
    return Review(image=image, row_number=2, sha256=sha256, review=review, note=note, reviewed_at=at)


def test_a_review_stands_with_the_very_picture_that_was_looked_at(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}, {"prompt_id": "b", "prompt": "x"}])
    write_gallery(store)
    [one, other] = page(store, BATCH).entries
    at = "2026-01-02T03:04:05Z"
    reviews = [
        reviewed(one["image"], one["facts"]["sha256"], "rejected", "six fingers", at),
        reviewed(other["image"], "0" * 64, "picked", "", at),
    ]
    write_gallery(store, reviews=reviews)
    [one, other] = page(store, BATCH).entries
    assert (one["review"], one["note"], one["reviewed_at"]) == ("rejected", "six fingers", at)
    assert "review" not in other
    before = store.etag(BATCH)
    write_gallery(store, reviews=reviews)
    assert store.etag(BATCH) == before


def test_a_characters_page_has_its_entries_of_every_batch(store, work_batch, face):
    other = face.model_copy(update={"reference_id": "other"})
    references = References.of([face, other], [])
    for batch in ("one", "two"):
        rows = [
            {"prompt_id": name, "prompt": "x", "reference_id": reference}
            for name, reference in (("a", "face"), ("b", "face"), ("c", "other"))
        ]
        words = {"prompt_id": "d", "prompt": "x"}
        work_batch([*rows, words], endings={"b": "refused"}, batch=batch, references=references)
    assert write_gallery(store).characters == 2
    for batch in ("one", "two"):
        held = list(characters.read_piece(store, characters.piece_path("face", batch)))
        assert [(entry["facts"]["prompt_id"], entry["state"]) for entry in held] == [
            ("a", "generated"),
            ("b", "refused"),
        ]
    found = page(store, "gallery/characters/face/index.html")
    assert {unquote(link) for link in found.links if link.endswith(".js") and "static" not in link} == {
        "batch=one.js",
        "batch=two.js",
    }
    assert "2 pictures in 2 batches" in found.words
    assert "face" in page(store, INDEX).words


def test_only_the_characters_of_a_changed_batch_are_touched(store, work_batch, face):
    other = face.model_copy(update={"reference_id": "other"})
    references = References.of([face, other], [])
    for batch, name in (("one", "face"), ("two", "other")):
        work_batch(
            [{"prompt_id": "a", "prompt": "x", "reference_id": name}], batch=batch, references=references
        )
    write_gallery(store)
    before = {found.path: found.etag for found in store.objects("gallery")}
    work_batch(
        [{"prompt_id": "b", "prompt": "y", "reference_id": "other"}], batch="two", references=references
    )
    store.requests.clear()
    write_gallery(store)
    changed = {found.path for found in store.objects("gallery") if before.get(found.path) != found.etag}
    kept = {path for path in changed if "thumbnails" not in path and "sheets" not in path}
    assert kept == {
        INDEX,
        REMEMBERED,
        "gallery/batch=two/index.html",
        "gallery/characters/other/batch=two.js",
        "gallery/characters/other/index.html",
    }


def test_a_character_that_no_batch_asks_for_any_more_has_no_page(store, work_batch, face):
    references = References.of([face], [])
    work_batch(
        [{"prompt_id": "a", "prompt": "x", "reference_id": "face"}],
        endings={"a": "not_reached"},
        references=references,
    )
    write_gallery(store)
    assert list(store.objects("gallery/characters/face"))
    work_batch([{"prompt_id": "b", "prompt": "x"}], references=references)
    assert write_gallery(store).characters == 0
    assert list(store.objects("gallery/characters/face")) == []


def test_a_character_with_many_pictures_has_several_pages_newest_first(store, work_batch, face, monkeypatch):
    monkeypatch.setattr(characters, "A_PART", 3)
    references = References.of([face], [])
    for batch in ("one", "two", "three"):
        rows = [{"prompt_id": name, "prompt": "x", "reference_id": "face"} for name in ("a", "b")]
        work_batch(rows, batch=batch, references=references)
    write_gallery(store)
    folder = "gallery/characters/face"
    shown = [
        [unquote(link) for link in page(store, f"{folder}/{name}").links if link.startswith("batch")]
        for name in ("index.html", "2.html", "3.html")
    ]
    assert shown == [["batch=two.js"], ["batch=three.js"], ["batch=one.js"]]
    monkeypatch.setattr(characters, "A_PART", 100)
    write_gallery(store, anew=True)
    assert not store.exists(f"{folder}/2.html")


def test_batches_and_characters_have_pages_to_print(store, work_batch, face):
    rows = [{"prompt_id": f"a{number}", "prompt": "x", "reference_id": "face"} for number in range(31)]
    work_batch(rows, references=References.of([face], []))
    write_gallery(store)
    for folder in ("gallery/batch=drop", "gallery/characters/face"):
        sheets = sorted(found.path for found in store.objects(f"{folder}/sheets"))
        assert sheets == [f"{folder}/sheets/1.jpg", f"{folder}/sheets/2.jpg"]
        assert {"sheets/1.jpg", "sheets/2.jpg"} <= set(page(store, f"{folder}/index.html").links)
    work_batch(rows[:2], references=References.of([face], []))
    write_gallery(store)
    assert [found.path for found in store.objects("gallery/batch=drop/sheets")] == [
        "gallery/batch=drop/sheets/1.jpg"
    ]


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
    paths = {batch: f"gallery/batch={batch}/index.html" for batch in ("one", "two")}
    before = {batch: store.etag(path) for batch, path in paths.items()}
    work_batch([{"prompt_id": "a", "prompt": "three"}], batch="two")
    summary = write_gallery(store)
    assert [batch for batch, path in paths.items() if store.etag(path) != before[batch]] == ["two"]
    assert (summary.batches, summary.rows, summary.images) == (2, 2, 2)
    assert page(store, INDEX).tags.count("img") == 2


def test_license_and_notes_of_references_are_shown_and_followed(store, work_batch, face):
    rows = [{"prompt_id": "g", "prompt": "x", "reference_id": "face"}, {"prompt_id": "f", "prompt": "x"}]
    for batch, row in (("one", rows[0]), ("two", rows[1])):
        work_batch([row], batch=batch, references=References.of([face], []))

    def shown(license):
        told = face.model_copy(update={"license": license, "notes": "<b>ask"})
        write_references(store, ReferencesTable((told,), (), "r.csv"))
        write_gallery(store)
        return [
            page(store, f"gallery/batch={batch}/index.html").entries[0].get("terms")
            for batch in ("one", "two")
        ]

    assert shown("CC BY 4.0") == [{"face": ["CC BY 4.0", "<b>ask"]}, None]
    other = store.etag("gallery/batch=two/index.html")
    assert shown("none") == [{"face": ["none", "<b>ask"]}, None]
    assert store.etag("gallery/batch=two/index.html") == other


def test_other_thumbnails_or_a_lost_memory_make_every_page_anew(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    write_gallery(store)
    small = page(store, BATCH).entries
    write_gallery(store, thumbnails=False)
    assert page(store, BATCH).entries != small
    assert not list(store.objects("gallery/batch=drop/sheets"))
    for found in list(store.objects("gallery")):
        store.delete(found.path)
    write_gallery(store)
    assert page(store, BATCH).entries == small


def test_styles_and_scripts_of_before_are_removed(store, work_batch):
    work_batch([{"prompt_id": "a", "prompt": "x"}])
    store.put("gallery/static/gallery-0123456789ab.js", b"old")
    write_gallery(store)
    assert len(list(store.objects("gallery/static"))) == 2
    assert not store.exists("gallery/static/gallery-0123456789ab.js")


def test_a_store_without_pictures_has_an_index(store):
    summary = write_gallery(store)
    assert (summary.batches, summary.rows, summary.images) == (0, 0, 0)
    assert "0 pictures in 0 batches" in page(store, INDEX).words

"""The gallery in a real browser, from disk and from below a prefix: what a reviewer clicks, types and takes away."""

import csv
import functools
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ideogram_pipeline.gallery.pages import write_gallery
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.planner import References
from ideogram_pipeline.generation.rows import ImageRow
from ideogram_pipeline.pictures import inspect
from ideogram_pipeline.storage import parquet
from ideogram_pipeline.tables.references import picture_path
from ideogram_pipeline.tables.rows import Reference, Rejection, Review

pytestmark = [pytest.mark.ui, pytest.mark.timeout(300)]

EVIL = '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
ROWS = [
    {
        "prompt_id": "a1",
        "prompt": "a lighthouse in a storm",
        "rendering_speed": "TURBO",
        "reference_id": "face",
    },
    {"prompt_id": "a2", "prompt": "a boat at dawn", "rendering_speed": "QUALITY", "reference_id": "face"},
    {"prompt_id": "a3", "prompt": EVIL, "rendering_speed": "BALANCED"},
    {"prompt_id": "a4", "prompt": "a forbidden lighthouse", "rendering_speed": "TURBO"},
    {"prompt_id": "a5", "prompt": "a boat that is never reached", "rendering_speed": "TURBO"},
]
ENDINGS = {"a4": "refused", "a5": "not_reached"}


@pytest.fixture
def work(work_batch):
    """Work a batch in a thread: the browser's own loop runs in this one."""
    with ThreadPoolExecutor(1) as thread:
        yield lambda *rows, **how: thread.submit(work_batch, *rows, **how).result()


@pytest.fixture
def gallery(store, work, picture):
    """A batch whose row a2 has an earlier picture, with a rejection and a character."""
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
    references = References.of([face], [])
    before = [ROWS[1] | {"prompt": "a boat at dusk"}]
    rejection = Rejection(
        file="p.csv", row_number=99, row_id="bad", batch="drop", column="prompt_id", reason="that is no name"
    )
    for rows in (before, ROWS):
        work(rows, endings=ENDINGS, rejections=[rejection], references=references)
    write_gallery(store)
    return store


@pytest.fixture
def look(browser):
    """Open a page at a URL; whatever goes wrong in it fails the test."""
    contexts = []

    def opened(url, **how):
        context = browser.new_context(viewport={"width": 1400, "height": 900}, **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda said: page.wrong.append(said.text) if said.type == "error" else None)
        page.on("requestfailed", lambda request: page.wrong.append(request.url))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        wrong = [fault for page in context.pages for fault in getattr(page, "wrong", [])]
        context.close()
        assert wrong == []


@pytest.fixture
def batch(gallery, look):
    return look(url_of(gallery))


def url_of(store, path="gallery/batch=drop/index.html"):
    return Path(store.where(path)).as_uri()


@contextmanager
def served(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ids(page):
    return page.locator(".card b").all_text_contents()


def cards(page, number):
    """Wait until so many cards are shown."""
    page.wait_for_function("n => document.querySelector('#grid')?.dataset.built == n", arg=number)
    return ids(page)


def choose(page, name, value):
    page.locator(f"select[name={name}]").select_option(value)


def focused(page):
    return page.evaluate("document.activeElement.closest('.card')?.querySelector('b').textContent")


def exported(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Export reviews").click()
    assert download.value.suggested_filename == "reviews.csv"
    return Path(download.value.path()).read_bytes()


def test_every_row_has_a_card_and_those_without_a_picture_say_why(batch):
    assert cards(batch, 6) == ["a1", "a2", "a3", "a4", "a5", "bad"]
    assert "it was refused" in batch.locator(".card", has_text="a4").inner_text()
    assert "that is no name" in batch.locator(".card", has_text="bad").inner_text()
    assert batch.locator("#count").inner_text() == "6 of 6 shown · 0 picked · 0 rejected"
    pictures = batch.locator(".card .open img")
    assert pictures.count() == 3
    batch.wait_for_function(
        "() => [...document.images].every((image) => image.complete && image.naturalWidth)"
    )


def test_a_hostile_prompt_is_text(batch):
    cards(batch, 6)
    card = batch.locator(".card", has_text="a3")
    assert EVIL in card.inner_text()
    card.locator(".open").click()
    assert batch.locator("#lightbox-prompt").inner_text() == EVIL
    assert batch.title() == "drop"


def test_filters_narrow_and_are_in_the_address(batch, look):
    cards(batch, 6)
    batch.get_by_label("Text").fill("LIGHTHOUSE")
    assert cards(batch, 2) == ["a1", "a4"]
    choose(batch, "state", "refused")
    assert cards(batch, 1) == ["a4"]
    again = look(batch.url)
    assert cards(again, 1) == ["a4"]
    batch.get_by_role("button", name="Clear").click()
    cards(batch, 6)
    choose(batch, "character", "face")
    assert cards(batch, 2) == ["a1", "a2"]
    choose(batch, "speed", "QUALITY")
    assert cards(batch, 1) == ["a2"]
    choose(batch, "state", "refused")
    batch.get_by_text("Nothing passes these filters.").wait_for()


def test_the_cost_filters_and_sorts(batch):
    cards(batch, 6)
    costs = batch.locator("select[name=cost] option").all_inner_texts()
    assert len(costs) >= 3
    choose(batch, "state", "generated")
    cards(batch, 3)
    choose(batch, "sort", "dearest")
    batch.wait_for_function("() => document.querySelector('.card b').textContent === 'a2'")
    assert ids(batch) == ["a2", "a3", "a1"] or ids(batch) == ["a2", "a1", "a3"]


def test_pictures_that_look_alike_or_whose_faces_differ_come_first_where_that_is_asked_for(store, work, look):
    work([{"prompt_id": name, "prompt": name} for name in ("a", "b", "c", "d")])
    columns = ("nearest_distance", "reference_distance", "face_distance")
    distances = {"a": (30, None, 0.7), "b": (40, 3, 0.2), "c": (None, None, None), "d": (12, None, 0.5)}
    rows = [
        row.model_copy(update=dict(zip(columns, distances[row.prompt_id], strict=True)))
        for row in files.read_images(store, "drop")
    ]
    parquet.write(store, files.metadata_path("drop"), ImageRow, rows)
    write_gallery(store)
    page = look(url_of(store))
    cards(page, 4)
    choose(page, "sort", "alike")
    page.wait_for_function("() => document.querySelector('.card b').textContent === 'b'")
    assert ids(page) == ["b", "d", "a", "c"]
    choose(page, "sort", "unlike")
    page.wait_for_function("() => document.querySelector('.card b').textContent === 'a'")
    assert ids(page) == ["a", "d", "b", "c"]


def test_the_keyboard_moves_picks_rejects_and_undoes(batch):
    cards(batch, 6)
    batch.keyboard.press("Home")
    assert focused(batch) == "a1"
    batch.keyboard.press("p")
    batch.keyboard.press("ArrowRight")
    assert focused(batch) == "a2"
    batch.keyboard.press("r")
    assert batch.locator(".card.picked b").all_inner_texts() == ["a1"]
    assert batch.locator(".card.rejected b").all_inner_texts() == ["a2"]
    assert batch.locator("#count").inner_text() == "6 of 6 shown · 1 picked · 1 rejected"
    batch.keyboard.press("u")
    assert batch.locator(".card.rejected").count() == 0
    batch.keyboard.press("End")
    assert focused(batch) == "bad"
    batch.keyboard.press("p")  # there is no picture to pick
    assert batch.locator(".card.picked").count() == 1
    batch.keyboard.press("/")
    assert batch.evaluate("document.activeElement.name") == "text"
    batch.keyboard.type("pr")  # letters are text while the filter has the focus
    assert batch.locator(".card.picked").count() <= 1
    batch.keyboard.press("Escape")
    cards(batch, 6)
    assert batch.get_by_label("Text").input_value() == ""
    assert focused(batch) is not None


def test_the_lightbox_has_every_fact_and_gives_the_focus_back(batch, gallery):
    cards(batch, 6)
    batch.keyboard.press("Home")
    batch.keyboard.press("Enter")
    box = batch.get_by_role("dialog")
    box.wait_for()
    [row, *_] = json.loads(batch.locator("#entries").text_content())
    told = box.locator("#facts").inner_text()
    for name, value in row["facts"].items():
        if name not in ("prompt", "prompt_id"):
            assert name.replace("_", " ") in told
            assert str(value if not isinstance(value, list) else value[0]) in told or isinstance(value, bool)
    box.locator("figure img").wait_for()
    assert box.locator("figure img").get_attribute("alt") == "a1: a lighthouse in a storm"
    batch.keyboard.press("ArrowRight")
    assert box.locator("h2").inner_text() == "a2"
    batch.keyboard.press("p")
    assert box.get_by_role("button", name="Pick").get_attribute("aria-pressed") == "true"
    batch.keyboard.press("Escape")
    box.wait_for(state="hidden")
    assert focused(batch) == "a2"
    assert batch.locator(".card.picked b").all_inner_texts() == ["a2"]


def test_takes_of_a_row_are_shown_side_by_side(batch):
    cards(batch, 6)
    batch.locator(".card", has_text="a2").locator(".open").click()
    box = batch.get_by_role("dialog")
    assert box.locator("figure").count() == 1
    assert box.locator(".strip-of-takes button").count() == 2
    batch.keyboard.press("t")
    assert box.locator("figure").count() == 2
    batch.keyboard.press("Escape")
    batch.get_by_label("Older takes").check()
    assert cards(batch, 7).count("a2") == 2
    assert batch.locator(".card .tag", has_text="older").count() == 1


def test_a_row_without_older_pictures_has_no_strip(batch):
    cards(batch, 6)
    batch.locator(".card", has_text="a1").locator(".open").click()
    batch.get_by_role("dialog").wait_for()
    assert batch.locator(".strip-of-takes").count() == 0


def test_reviews_are_exported_as_harmless_csv(batch, gallery):
    cards(batch, 6)
    assert batch.get_by_role("button", name="Export reviews").is_disabled()
    note = '=HYPERLINK("http://x"), "two"\nlines, é'
    batch.keyboard.press("Home")
    batch.keyboard.press("p")
    batch.keyboard.press("ArrowRight")
    batch.keyboard.press("Enter")
    batch.keyboard.press("r")
    batch.locator("#note").fill(note)
    batch.keyboard.press("Escape")
    content = exported(batch)
    assert content.count(b"\r\n") == 3
    rows = list(csv.DictReader(content.decode().splitlines(keepends=True)))
    assert list(rows[0]) == ["image", "sha256", "review", "note", "reviewed_at", "batch", "prompt_id"]
    assert [(row["prompt_id"], row["review"], row["note"]) for row in rows] == [
        ("a1", "picked", ""),
        ("a2", "rejected", f"'{note}"),
    ]
    for row in rows:
        assert inspect(gallery.get(row["image"])).sha256 == row["sha256"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row["reviewed_at"])
        assert row["batch"] == "drop"


def test_reviews_outlive_the_page_and_are_on_the_characters_page_too(batch, gallery):
    cards(batch, 6)
    batch.keyboard.press("Home")
    batch.keyboard.press("p")
    batch.reload()
    cards(batch, 6)
    assert batch.locator(".card.picked b").all_inner_texts() == ["a1"]
    batch.goto(url_of(gallery, "gallery/characters/face/index.html"))
    assert cards(batch, 2) == ["a1", "a2"]
    assert batch.locator(".card.picked b").all_inner_texts() == ["a1"]
    choose(batch, "review", "picked")
    assert cards(batch, 1) == ["a1"]


def test_published_reviews_are_shown_exported_and_can_be_taken_back(gallery, look):
    page = look(url_of(gallery))
    [row, *_] = json.loads(page.locator("#entries").text_content())
    at = "2026-01-02T03:04:05Z"
    said = {"image": row["image"], "sha256": row["facts"]["sha256"], "review": "rejected", "note": "blurred"}
    write_gallery(gallery, reviews=[Review(**said, row_number=2, reviewed_at=at)])
    page.reload()
    cards(page, 6)
    assert page.locator(".card.rejected b").all_inner_texts() == ["a1"]
    [kept] = csv.DictReader(exported(page).decode().splitlines())
    assert (kept["review"], kept["note"], kept["reviewed_at"]) == ("rejected", "blurred", at)
    page.keyboard.press("Home")
    page.keyboard.press("r")
    assert page.locator(".card.rejected").count() == 0
    assert page.get_by_role("button", name="Export reviews").is_disabled()


def test_it_works_below_a_prefix_and_leads_from_the_index_to_pictures(gallery, look):
    folder = Path(gallery.where("")).parent
    with served(folder) as url:
        page = look(f"{url}/store/gallery/index.html")
        page.get_by_label("Find").fill("dro")
        assert page.locator(".person:visible").count() == 0
        page.get_by_role("link", name="drop").click()
        cards(page, 6)
        page.wait_for_function(
            "() => [...document.images].every((image) => image.complete && image.naturalWidth)"
        )
        page.get_by_role("link", name="Pictures").click()
        page.get_by_role("link", name="face").click()
        cards(page, 2)
        page.get_by_text("Print", exact=True).click()
        assert page.get_by_role("link", name="Printed page 1").get_attribute("href") == "sheets/1.jpg"


def test_a_name_that_a_url_must_encode_leads_to_its_pictures(store, work, look):
    work([{"prompt_id": "été-漢", "prompt": "x"}], batch="v1.0_é")
    write_gallery(store)
    page = look(url_of(store, "gallery/batch=v1.0_é/index.html"))
    cards(page, 1)
    page.wait_for_function(
        "() => [...document.images].every((image) => image.complete && image.naturalWidth)"
    )


@pytest.mark.parametrize(("scheme", "other"), [("light", "dark"), ("dark", "light")])
def test_light_and_dark_follow_the_system_and_the_switch_and_can_be_read(gallery, look, scheme, other):
    page = look(url_of(gallery), color_scheme=scheme)
    cards(page, 6)
    grounds = {name: ground(page) for name in [scheme]}
    while page.locator("#theme").inner_text() != f"Theme: {other}":
        page.locator("#theme").click()
    grounds[other] = ground(page)
    assert grounds["light"] > 200
    assert grounds["dark"] < 60
    page.reload()
    assert ground(page) == grounds[other]
    cards(page, 6)
    assert contrasts(page) == []


def ground(page):
    """The page's background, 0 black to 255 white."""
    return int(
        page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").split(",")[0]
    )


def contrasts(page):
    """The texts whose contrast with what is behind them is below 4.5 (WCAG AA)."""
    return page.evaluate(
        """() => {
          const channels = (color) => color.match(/[\\d.]+/g).map(Number);
          const light = (color) => channels(color).slice(0, 3).map((c) => c / 255)
            .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
            .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
          const behind = (node) => {
            for (; node; node = node.parentElement) {
              const found = channels(getComputedStyle(node).backgroundColor);
              if (found.length < 4 || found[3] === 1) return getComputedStyle(node).backgroundColor;
            }
          };
          const low = [];
          for (const node of document.querySelectorAll("body *")) {
            const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
            if (!own || !node.checkVisibility() || node.disabled || node.closest(".marks, .tag, script")) continue;
            const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
            if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${node.className} ${node.textContent.slice(0, 40)}`);
          }
          return low;
        }"""
    )


def test_five_thousand_pictures_are_all_there_and_still_filtered(gallery, look):
    path = Path(gallery.where("gallery/batch=drop/index.html"))
    html = path.read_text()
    start, end = html.index('id="entries">') + len('id="entries">'), html.rindex("</script>")
    first = json.loads(html[start:end])[0]
    many = [
        first
        | {"row": number + 1, "image": f"{first['image']}?{number}"}
        | {"facts": first["facts"] | {"prompt_id": f"row-{number:04}", "prompt": f"picture {number} of many"}}
        for number in range(5_000)
    ]
    path.write_text(html[:start] + json.dumps(many) + html[end:])
    page = look(url_of(gallery))
    assert len(cards(page, 5_000)) == 5_000
    page.get_by_label("Text").fill("row-4999")
    assert cards(page, 1) == ["row-4999"]
    page.get_by_label("Text").fill("")
    cards(page, 5_000)
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    assert focused(page) == "row-4999"

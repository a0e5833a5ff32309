"""A photo of a phone, stored on its side: what is sent is upright, and both are on record, from table to lineage."""

import hashlib
import io
import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.files import edges_path
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.rows import EdgeRow
from ideogram_pipeline.preview import PlanSummary, preview
from ideogram_pipeline.provenance.erasing import descent, remains
from ideogram_pipeline.provenance.lineage import trace
from ideogram_pipeline.provenance.replaying import written
from ideogram_pipeline.repair import erase
from ideogram_pipeline.storage import parquet

pytestmark = pytest.mark.slow

EDIT = {"batch": "one", "prompt": "a red hat", "endpoint": "v3/edit", "image_id": "phone"}
ROWS = (
    {**EDIT, "mask_id": "mask"},
    {"batch": "one", "prompt": "at sea", "reference_id": "phone", "reference_mask_id": "mask"},
    {"batch": "one", "prompt": "at home", "endpoint": "v3/remix", "image_id": "bob"},
)


@pytest.fixture(scope="module")
def project(make_project):
    """A photo stored 400x300 that is seen 300x400, and a mask that was painted on what is seen."""
    project = make_project()
    seen = Image.effect_noise((300, 400), 20).convert("RGB")
    ImageDraw.Draw(seen).rectangle((0, 0, 299, 80), fill="navy")
    tags = Image.Exif()
    tags[0x0112] = 6
    seen.transpose(Image.Transpose.ROTATE_90).save(
        project.folder / "phone.jpg", exif=tags, quality=95, subsampling=0
    )
    mask = Image.new("L", (300, 400), 255)
    ImageDraw.Draw(mask).rectangle((100, 250, 200, 350), fill=0)
    mask.save(project.folder / "mask.png")
    mask.transpose(Image.Transpose.ROTATE_90).save(project.folder / "lying.png")
    Image.new("L", (300, 400), 255).save(project.folder / "white.png")
    with (project.folder / "references.csv").open("a") as table:
        table.write("phone,phone.jpg\nmask,mask.png\nlying,lying.png\nwhite,white.png\n")
    project.write(*ROWS)
    return project


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_a_phone_photo_and_a_mask_painted_upright(project):
    store = project.store
    photo = (project.folder / "phone.jpg").read_bytes()
    asked = digest(photo)
    done = project.run()
    assert (done.generated, done.rejected) == (3, 0)

    with closing(sqlite3.connect(project.folder / "store/sandbox/state.sqlite")) as state:
        received = {digest(content): content for (content,) in state.execute("SELECT content FROM files")}
    assert asked not in received
    (kept,) = [found.path for found in store.objects("references") if found.path.count(".") == 2]
    copy = store.get(kept)
    sent = digest(copy)
    assert received[sent] == copy
    upright = Image.open(io.BytesIO(copy))
    assert (upright.size, dict(upright.getexif())) == ((300, 400), {})

    rows = {row.prompt_id: row for row in files.read_images(store, "one")}
    assert (rows["p1"].image_sha256, json.loads(rows["p1"].sent_sha256s)) == (asked, {asked: sent})
    assert (rows["p2"].reference_sha256s, json.loads(rows["p2"].sent_sha256s)) == ((asked,), {asked: sent})
    assert rows["p3"].sent_sha256s == "{}"
    assert json.loads(rows["p1"].request_json)["image_url"] == f"sha256:{asked}"
    uses = [edge for edge in parquet.read(store, edges_path("one"), EdgeRow) if edge.kind == "uses"]
    assert {(edge.from_id, edge.sent_sha256) for edge in uses if edge.reference_id == "phone"} == {
        (asked, sent)
    }
    assert {edge.sent_sha256 for edge in uses if edge.reference_id != "phone"} == {None}

    # the edit changes nothing outside the mask: the picture lies there as it is seen
    made = Image.open(io.BytesIO(store.get(f"images/batch=one/{rows['p1'].file_name}"))).convert("RGB")
    source = ImageOps.fit(ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB"), made.size)
    top = (0, 0, made.width, made.height // 2)
    unlike = np.abs(np.asarray(made.crop(top), int) - np.asarray(source.crop(top), int))
    assert made.height > made.width
    assert unlike.mean() < 6

    small = Image.open(io.BytesIO(store.get(f"gallery/references/{asked}.webp")))
    assert small.height > small.width

    for key in (sent, asked, str(project.folder / "store" / kept), "reference:phone"):
        found = trace(store, key)
        assert found.roots == (("reference", asked),)
        (node,) = [node for node in found.nodes if node.id == asked]
        assert (node.facts["sent_sha256"], node.facts["sent_path"]) == (sent, kept)
        assert len([one for one in found.downstream if one[0] == "image"]) == 2


def test_rows_that_were_paid_before_there_were_copies_are_not_paid_again(project):
    project.run()
    asked = digest((project.folder / "phone.jpg").read_bytes())
    for path in project.folder.glob("store/ledger/batch=one/*/*.json"):
        entry = json.loads(path.read_bytes())
        for use in entry.get("request", {}).get("pictures", ()):
            use.pop("sent_sha256", None)
        path.write_text(json.dumps(entry))
    for kept in list(project.folder.glob("store/references/*.*.*")):
        kept.unlink()
    for kept in (*project.folder.glob("store/uploads/*"), *project.folder.glob("store/catalog/*")):
        kept.unlink()
    entries = Ledger(project.store, "one").entries.values()
    assert {use.sent_sha256 for entry in entries for use in entry.last.reserved.request.pictures} == {None}
    again = project.run()
    assert (again.reused, again.generated) == (3, 0)
    rows = files.read_images(project.store, "one")
    assert {row.sent_sha256s for row in rows} == {"{}"}  # which is what was sent then
    assert asked in {row.image_sha256 for row in rows}


def test_a_mask_as_the_photo_is_stored_and_one_of_one_colour(project):
    project.write(*ROWS, {**EDIT, "mask_id": "lying"}, {**EDIT, "mask_id": "white"})
    (plan,) = preview(project.settings, ["one"])
    rows = {row.prompt_id: row for row in plan.rows}
    assert rows["p4"].decision == "rejected"
    assert rows["p4"].reason.startswith(
        "The mask is 400x300, but the source is 300x400 upright, as its EXIF says and as it is sent. Turn the mask"
    )
    assert rows["p5"].decision == "new"
    advice = [one.text for one in PlanSummary.of([plan], None).advice]
    assert [text for text in advice if text.startswith("mask_url: The mask is all white")]
    project.write(*ROWS)


def test_a_replay_uploads_the_copy(project):
    project.run()
    rows = {row.prompt_id: row.request for row in preview(project.settings, ["one"])[0].rows}
    (copy,) = [found.path for found in project.store.objects("references") if found.path.count(".") == 2]
    assert copy in written(rows["p1"], "python", project.store)


def test_erasing_the_photo_erases_the_copy(project):
    project.run()
    asked = digest((project.folder / "phone.jpg").read_bytes())
    store = project.store
    (kept,) = [found.path for found in store.objects("references") if found.path.count(".") == 2]
    copy = store.get(kept)
    found = descent(store, "phone")
    assert {asked, digest(copy)} <= found.digests
    assert descent(store, digest(copy)).digests == found.digests
    assert erase(project.settings, found).left == ()
    assert remains(store) == []
    for path in (project.folder / "store").rglob("*"):
        if path.is_file() and "erased" not in path.parts:
            assert copy[200:300] not in path.read_bytes(), path
            assert digest(copy) not in path.name
    assert project.run().rejected == 2

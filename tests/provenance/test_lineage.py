"""The lineage of every kind of key, held against the ledger."""

import io
import shutil

import pytest
from PIL import Image
from rich.console import Console

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.provenance import drawing
from ideogram_pipeline.provenance.lineage import LIKELY, UnknownKey, trace
from ideogram_pipeline.provenance.replaying import request_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def worked(make_project):
    """Two batches; `p1` has two takes, `p3` is made from the very bytes of `p1`'s first picture."""
    project = make_project()
    project.write(
        {"batch": "one", "prompt": "a lighthouse", "reference_id": "ada"},
        {"batch": "one", "prompt": "a harbour", "num_images": 2},
    )
    project.run()
    project.run("one", regenerate=True, limit=1)
    first = made(project, "one", "p1")[0]
    shutil.copy(project.folder / "store" / first.path, project.folder / "again.png")
    with (project.folder / "references.csv").open("a") as table:
        table.write("again,again.png\n")
    project.write(
        {"batch": "one", "prompt": "a lighthouse", "reference_id": "ada"},
        {"batch": "one", "prompt": "a harbour", "num_images": 2},
        {"batch": "two", "prompt": "a storm", "endpoint": "v3/remix", "image_id": "again"},
    )
    project.run("two")
    return project


def attempts(project, batch, prompt_id):
    """What the ledger knows of a row, oldest take first."""
    entries = Ledger(project.store, batch).entries.values()
    of_row = [entry.last for entry in entries if entry.last.reserved.request.prompt_id == prompt_id]
    return sorted(of_row, key=lambda attempt: attempt.reserved.request.take)


def made(project, batch, prompt_id):
    return [image for attempt in attempts(project, batch, prompt_id) for image in attempt.settled.images]


def ids(nodes, kind):
    return {identity for one, identity in nodes if one == kind}


def keys(project):
    first = attempts(project, "one", "p1")[0]
    (image,) = first.settled.images
    copy = project.folder / "elsewhere.png"
    shutil.copy(project.folder / "store" / image.path, copy)
    request = first.reserved.request
    (use,) = request.pictures
    return {
        "path in the store": (image.path, "image", image.path),
        "path of the file": (str(project.folder / "store" / image.path), "image", image.path),
        "path of a copy": (str(copy), "image", image.path),
        "digest of the file": (image.sha256, "image", image.path),
        "digest of what fal sent": (image.sha256_received, "image", image.path),
        "prompt id": ("p1", "prompt", "p1"),
        "fingerprint": (request.fingerprint, "request", request.fingerprint),
        "start of a fingerprint": (request.fingerprint[:8], "request", request.fingerprint),
        "request id": (first.submitted.request_id, "submit", first.submitted.request_id),
        "run id": (first.reserved.owner, "run", first.reserved.owner),
        "reference id": ("ada", "reference", use.sha256),
        "reference digest": (use.sha256, "reference", use.sha256),
    }


def test_every_kind_of_key_leads_to_what_the_ledger_says(worked):
    first, _second = attempts(worked, "one", "p1")
    (image,) = first.settled.images
    for name, (key, kind, identity) in keys(worked).items():
        lineage = trace(worked.store, key)
        assert lineage.roots == ((kind, identity),), name
        around = {*lineage.roots, *lineage.upstream, *lineage.downstream}
        if kind != "reference":
            assert ("image", image.path) in around, name
        assert {(node.kind, node.id) for node in lineage.nodes} >= around, name


def test_a_picture_came_from_its_row_references_request_and_run(worked):
    first, _second = attempts(worked, "one", "p1")
    (image,) = first.settled.images
    lineage = trace(worked.store, image.path, downstream=False)
    request = first.reserved.request
    assert set(lineage.upstream) == {
        ("prompt", "p1"),
        ("reference", request.pictures[0].sha256),
        ("request", request.fingerprint),
        ("submit", first.submitted.request_id),
        ("run", first.reserved.owner),
    }
    assert lineage.downstream == ()
    facts = {node.kind: node.facts for node in lineage.nodes}
    assert facts["request"]["arguments"] == request.arguments
    assert facts["request"]["seed"] == request.seed
    assert facts["submit"]["cost_usd"] == str(first.settled.cost_usd)
    assert facts["submit"]["seed_returned"] == first.settled.seed
    assert facts["image"]["sha256"] == image.sha256
    assert facts["reference"]["reference_id"] == "ada"


def test_what_came_of_a_reference_goes_on_through_pictures_that_were_used_again(worked):
    lineage = trace(worked.store, "ada", upstream=False)
    assert ids(lineage.downstream, "image") == {
        image.path for batch, row in (("one", "p1"), ("two", "p3")) for image in made(worked, batch, row)
    }
    (third,) = made(worked, "two", "p3")
    assert ("image", made(worked, "one", "p1")[0].path) in trace(worked.store, third.path).upstream
    assert ids(trace(worked.store, third.path).upstream, "prompt") == {"p1", "p3"}


def test_later_takes_come_of_a_request(worked):
    first, second = attempts(worked, "one", "p1")
    lineage = trace(worked.store, first.reserved.request.fingerprint, upstream=False)
    assert ids(lineage.downstream, "request") >= {second.reserved.request.fingerprint}
    assert second.reserved.request.take == 1


def test_a_copy_that_was_changed_is_known_by_its_marks(worked, tmp_path):
    (image,) = attempts(worked, "one", "p1")[0].settled.images
    content = (worked.folder / "store" / image.path).read_bytes()
    changed = tmp_path / "changed.png"
    changed.write_bytes(content + b"trailing")
    lineage = trace(worked.store, str(changed))
    assert lineage.roots == (("request", attempts(worked, "one", "p1")[0].reserved.request.fingerprint),)


def test_a_copy_that_was_saved_anew_is_found_by_its_looks_as_a_likely_answer(worked, tmp_path):
    """A smaller JPEG without any metadata once led nowhere."""
    (image,) = attempts(worked, "one", "p1")[0].settled.images
    copies = {name: tmp_path / name for name in ("same.png", "small.jpg", "other.png", "text.png")}
    with Image.open(worked.folder / "store" / image.path) as picture:
        picture.save(copies["same.png"])
        picture.convert("RGB").resize((300, 300)).save(copies["small.jpg"], quality=40)
    Image.effect_noise((400, 400), 90).save(copies["other.png"])
    copies["text.png"].write_text("no picture")
    same, small = (trace(worked.store, str(copies[name])) for name in ("same.png", "small.jpg"))
    for found in (same, small):
        assert ("image", image.path) in found.roots
        assert ("prompt", "p1") in found.upstream
    assert same.likeness == 0
    assert 0 <= small.likeness <= LIKELY
    console = Console(width=400, file=io.StringIO())
    console.print(drawing.tree(small))
    assert "likely, not certain: it looks" in console.file.getvalue()
    assert trace(worked.store, image.path).likeness is None
    for name in ("other.png", "text.png"):
        with pytest.raises(UnknownKey):
            trace(worked.store, str(copies[name]))
    with pytest.raises(ConfigurationError, match="likely and not certain"):
        request_of(worked.store, str(copies["small.jpg"]))


def test_license_and_notes_of_a_reference_are_told_as_the_table_has_them_now(make_project):
    project = make_project()
    table = project.folder / "references.csv"
    project.write({"prompt": "a lighthouse", "reference_id": "ada"})
    project.run()
    (told,) = (node.facts for node in trace(project.store, "ada").nodes if node.kind == "reference")
    assert told.get("license") is None
    table.write_text('reference_id,uri,license,notes\nada,ada.png,"CC BY 4.0","[asked] her, May"\n')
    project.run()
    lineage = trace(project.store, "ada")
    (told,) = (node.facts for node in lineage.nodes if node.kind == "reference")
    assert (told["license"], told["notes"]) == ("CC BY 4.0", "[asked] her, May")
    console = Console(width=400, file=io.StringIO())
    console.print(drawing.tree(lineage))
    assert "license CC BY 4.0" in console.file.getvalue()
    assert "notes [asked] her, May" in console.file.getvalue()
    pages = (project.folder / "store" / "gallery").rglob("index.html")
    assert any("CC BY 4.0" in page.read_text() for page in pages)


def test_keys_that_lead_nowhere_or_to_several_things_say_so(worked):
    with pytest.raises(UnknownKey, match="'nobody'"):
        trace(worked.store, "nobody")
    with (worked.folder / "references.csv").open("a") as table:
        table.write("p2,bob.png\n")
    worked.write({"batch": "three", "prompt": "a calm", "reference_id": "p2"}, {"prompt": "a harbour"})
    worked.run("three")
    with pytest.raises(ConfigurationError, match=r"names several things.*prompt:p2"):
        trace(worked.store, "p2")
    assert trace(worked.store, "prompt:p2").roots == (("prompt", "p2"),)


def test_a_store_without_lineage_says_how_to_make_it(store):
    with pytest.raises(ConfigurationError, match="rebuild"):
        trace(store, "anything")


def test_the_drawings_name_every_node(worked):
    lineage = trace(worked.store, "p1")
    graph, flow = drawing.dot(lineage), drawing.mermaid(lineage)
    for node in lineage.nodes:
        assert node.id in graph
        assert node.id in flow
    assert graph.count("->") == flow.count("-->|") == len(lineage.edges)

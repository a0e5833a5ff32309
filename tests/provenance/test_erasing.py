"""Consent withdrawn: what came from a reference goes, wherever it lies, and is not made again."""

import gzip
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.preview import preview
from ideogram_pipeline.provenance.erasing import descent, entomb, remains, remove
from ideogram_pipeline.repair import erase
from ideogram_pipeline.tables import erased

pytestmark = pytest.mark.slow

ROWS = (
    {"batch": "one", "prompt": "zanzibar lighthouse", "reference_id": "ada", "num_images": 2},
    {"batch": "one", "prompt": "quiet harbour", "reference_id": "bob"},
    {"batch": "two", "prompt": "xylophone market", "reference_id": "ada", "style_reference_ids": "bob"},
    {"batch": "two", "prompt": "plain meadow"},
)
CHAINED = {"batch": "three", "prompt": "yucatan storm", "endpoint": "v3/remix", "image_id": "again"}


@pytest.fixture
def worked(project, certificate):
    """`ada` is in two batches; a picture of hers is a reference of a third; `bob` stays."""
    for seed, name in enumerate(("ada", "bob")):
        Image.effect_noise((64, 64), 50 + seed).save(project.folder / f"{name}.png")
    signing = {"c2pa_certificate": str(certificate.chain), "c2pa_key": str(certificate.key)}
    project.settings = project.settings.model_copy(update=signing)
    project.write(*ROWS)
    project.run()
    (image,) = [one for one in descent(project.store, "ada").images if "p1" in one and "-0." in one]
    shutil.copy(project.folder / "store" / image, project.folder / "again.png")
    with (project.folder / "references.csv").open("a") as table:
        table.write("again,again.png\n")
    project.write(*ROWS, CHAINED)
    project.run("three")
    project.run("one", regenerate=True, limit=1)
    return project


def submits(project):
    with closing(sqlite3.connect(project.folder / "store" / "sandbox" / "state.sqlite")) as state:
        return state.execute("SELECT count(*) FROM requests").fetchone()[0]


def words_in(folder, words):
    """Where any of the words stands: in every file, as it lies there and as what it packs."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            contents = [path.read_bytes()]
            if path.suffix == ".gz":
                contents.append(gzip.decompress(contents[0]))
            if path.suffix == ".parquet":
                contents.append(str(pq.read_table(path).to_pylist()).encode())
            contents.append(str(path).encode())
            found += [
                f"{path.relative_to(folder)}: {word[:20]!r}"
                for word in words
                if any(word in content for content in contents)
            ]
    return found


def test_nothing_of_it_remains_but_digests_and_nothing_is_made_from_it_again(worked):
    store, folder = worked.store, worked.folder / "store"
    found = descent(store, "ada")
    assert {path.split("/")[-1][:2] for path in found.images} == {"p1", "p3", "p5"}
    pictures = [(folder / path).read_bytes() for path in found.images]
    reference = (worked.folder / "ada.png").read_bytes()
    secret = [
        *(row["prompt"].encode() for row in (ROWS[0], ROWS[2], CHAINED)),
        reference[60:160],
        *(content[1500:1600] for content in pictures),
        *(path.rsplit("/", 1)[-1].encode() for path in found.images),
        b"characters/ada",
    ]
    assert words_in(folder, secret)
    paid = submits(worked)

    done = erase(worked.settings, found)
    assert (done.left, done.payloads_left, done.payloads) == ((), "", len(found.request_ids))
    assert words_in(folder, secret) == []
    assert words_in(worked.folder / "home", secret) == []
    stone = erased.refused(store)[hashlib.sha256(reference).hexdigest()]
    assert set(stone.fingerprints) == found.fingerprints
    assert len(stone.images) == len(pictures)

    assert remains(store) == []
    assert [(row.prompt_id, row.nearest_image) for row in files.images(store, "one")] == [("p2", None)]
    assert [row.prompt_id for row in files.images(store, "two")] == ["p4"]
    again = worked.run()
    assert (again.generated, again.reused, again.rejected) == (0, 2, 3)
    assert submits(worked) == paid
    (plan,) = preview(worked.settings, ["two"])
    reasons = {row.prompt_id: row.reason for row in plan.rows if row.decision == "rejected"}
    assert "this picture was erased on" in reasons["p3"]
    assert remains(store) == []
    assert words_in(folder / "references", [reference[60:160]]) == []


def test_a_picture_of_it_that_comes_back_as_a_reference_is_refused_too(worked):
    erase(worked.settings, descent(worked.store, "ada"))
    worked.write({"batch": "four", "prompt": "once more", "endpoint": "v3/remix", "image_id": "again"})
    assert worked.run("four").rejected == 1


def test_an_erasure_that_is_interrupted_is_taken_up_by_asking_again(worked):
    store = worked.store
    found = descent(store, "ada")
    entomb(store, found)
    assert remains(store)
    assert worked.run("two").rejected == 1
    remove(store, found)
    assert [line for line in remains(store) if "rows" not in line] == []
    again = descent(store, hashlib.sha256((worked.folder / "ada.png").read_bytes()).hexdigest())
    assert (again.images, again.entries) == ([], {})
    assert erase(worked.settings, again).left == ()


@pytest.mark.parametrize("stop_after", [1, 5, 20])
def test_an_erasure_that_is_killed_finishes_when_it_is_asked_for_again(worked, stop_after):
    """A process of its own is killed once so many objects were deleted or written."""
    script = f"""
import os, signal
from ideogram_pipeline.storage import Store
left = [{stop_after}]
for name in ("put", "delete"):
    def counted(self, *given, _call=getattr(Store, name), **more):
        _call(self, *given, **more)
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(Store, name, counted)
from ideogram_pipeline.provenance.erasing import descent, entomb, remove
store = Store.open({worked.settings.store!r})
found = descent(store, "ada")
entomb(store, found)
remove(store, found)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    digest = hashlib.sha256((worked.folder / "ada.png").read_bytes()).hexdigest()
    assert erase(worked.settings, descent(worked.store, digest)).left == ()
    secret = [row["prompt"].encode() for row in (ROWS[0], ROWS[2])]
    assert words_in(worked.folder / "store", secret) == []
    entries = [entry for batch in ("one", "two") for entry in Ledger(worked.store, batch).entries.values()]
    assert {entry.last.reserved.request.prompt_id for entry in entries} == {"p2", "p4"}


def test_a_name_that_nothing_has_is_refused(worked):
    with pytest.raises(ConfigurationError, match="'nobody'"):
        descent(worked.store, "nobody")


def test_what_was_erased_is_known_by_its_digest_alone_and_its_id_says_so(worked):
    digest = next(iter(descent(worked.store, "ada").digests))
    erase(worked.settings, descent(worked.store, "ada"))
    with pytest.raises(ConfigurationError, match="of what was erased nothing else is kept"):
        descent(worked.store, "ada")
    assert descent(worked.store, digest).traces == ()


def test_nothing_of_it_remains_in_an_object_store_either(project, s3, tmp_path):
    def downloaded(name):
        for one in store.objects(""):
            path = tmp_path / name / one.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(one.path))
        return tmp_path / name

    Image.effect_noise((64, 64), 50).save(project.folder / "ada.png")
    bucket = {"store": f"s3://{s3.bucket()}/pictures"}
    project.settings = project.settings.model_copy(update=bucket)
    project.write(*ROWS)
    project.run()
    store = project.store
    found = descent(store, "ada")
    secret = [
        *(row["prompt"].encode() for row in (ROWS[0], ROWS[2])),
        (project.folder / "ada.png").read_bytes()[60:160],
        *(store.get(path)[1500:1600] for path in found.images),
        *(path.rsplit("/", 1)[-1].encode() for path in found.images),
    ]
    assert len(found.images) == 3
    assert words_in(downloaded("before"), secret)
    done = erase(project.settings, found)
    assert (done.left, done.payloads_left) == ((), "")
    assert words_in(downloaded("after"), secret) == []
    assert (project.run().rejected, sorted(files.results(store))) == (2, ["one", "two"])

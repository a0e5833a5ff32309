"""What other programs leave in a store is nobody's: it stops nothing, changes nothing, and stays."""

import os
import shutil

import boto3
import datasets
import pytest

from ideogram_pipeline.export import Selection, export
from ideogram_pipeline.generation import catalog, files
from ideogram_pipeline.preview import preview
from ideogram_pipeline.provenance.erasing import descent
from ideogram_pipeline.provenance.verifying import verified
from ideogram_pipeline.repair import erase, rebuild, reconcile
from ideogram_pipeline.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROWS = (
    {"batch": "one", "prompt": "zanzibar lighthouse", "reference_id": "ada", "num_images": 2},
    {"batch": "one", "prompt": "quiet harbour", "reference_id": "bob"},
    {"batch": "two", "prompt_id": "steam-train-01", "prompt": "xylophone market", "reference_id": "ada"},
)
LEFT = (
    b".DS_Store",
    b"Thumbs.db",
    b"desktop.ini",
    b"Icon\r",
    b"~$table.xlsx",
    b".~lock.table.csv#",
    b"\xff\xfe.png",
    b"notes",
)
NOT_OURS = ("dagster", "sandbox")


def litter(folder):
    """Leave in every folder what macOS, Windows, office programs and synchronizers leave; return all of it."""
    left = set()
    for parent, folders, names in os.walk(folder):
        if parent == str(folder):
            folders[:] = [name for name in folders if name not in NOT_OURS]
        here = os.fsencode(parent)
        for name in LEFT:
            left.add(os.path.join(here, name))
        for name in map(os.fsencode, names):
            stem, dot, ending = name.rpartition(b".")
            left.add(os.path.join(here, b"._" + name))
            left.add(os.path.join(here, name + b"~"))
            left.add(os.path.join(here, stem + b" (conflicted copy 2026-11-30)" + dot + ending))
            left.add(os.path.join(here, stem + b" 2" + dot + ending))
    for path in left:
        with open(path, "wb") as file:
            file.write(b"\x00\x05\x16\x07 left by another program")
    return left


def state_of(store):
    return {
        "batches": files.batches(store),
        "rows": [row.model_dump() for batch in files.results(store) for row in files.images(store, batch)],
        "outcomes": [
            row.model_dump() for batch in files.results(store) for row in files.outcomes(store, batch)
        ],
        "catalog": sorted(row.path for path in catalog.paths(store) for row in catalog.read(store, path)),
    }


def test_what_other_programs_leave_in_any_folder_stops_nothing_and_stays(project, tmp_path):
    project.write(*ROWS)
    project.run()
    folder = project.folder / "store"
    before = state_of(project.store)
    left = litter(folder)
    for path in [
        one for one in left if one.startswith(os.fsencode(folder / "catalog")) and one.endswith(b".parquet")
    ]:
        if not os.path.basename(path).startswith(b"."):
            left.discard(path)  # `catalog/*.parquet` is what people read, so there a stray goes
    again = project.run()
    assert (again.generated, again.reused, again.unknown, again.failed) == (0, 3, 0, 0)
    assert state_of(project.store) == before
    assert [plan.count("reused") for plan in preview(project.settings, [])] == [2, 1]
    project.run("one", regenerate=True, limit=1)
    rebuilt = rebuild(project.settings)
    assert [(one.batch, one.damaged, one.unreadable) for one in rebuilt] == [("one", (), ()), ("two", (), ())]
    reconcile(project.settings, [], resubmit_after=None)
    assert export(project.store, tmp_path / "out", "webdataset", Selection(project.store)).images == 4
    found = list(verified([str(folder / "images")]))
    copies = {one.path for one in found if "conflicted" in one.path or " 2." in one.path}
    assert {one.path for one in found if one.problem and "\udcff" not in one.path} == copies
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder / "images/batch=two"), cache_dir=str(tmp_path / "cache")
    )
    assert {name: split["prompt_id"] for name, split in loaded.items()} == {"train": ["steam-train-01"]}
    assert sorted(left) == sorted(path for path in left if os.path.exists(path))


def test_an_erasure_takes_what_others_left_beside_what_it_takes(project):
    project.write(*ROWS)
    project.run()
    folder = project.folder / "store"
    pictures = descent(project.store, "ada").images
    for path in pictures:
        name = folder / path
        shutil.copy(name, name.with_stem(f"{name.stem} (conflicted copy)"))
        (name.parent / f"._{name.name}").write_bytes(b"its thumbnail")
    for parent in (folder / "images/batch=two", folder / "gallery/batch=two/thumbnails"):
        (parent / "Thumbs.db").write_bytes(b"thumbnails of what is erased")
    (folder / "images/batch=one/Thumbs.db").write_bytes(b"thumbnails")
    (folder / "images/batch=one/notes.txt").write_bytes(b"of a person")
    (folder / "images/batch=two/notes.txt").write_bytes(b"of a person")
    thumbnail = folder / pictures[0].replace("one/", "one/@eaDir/") / "SYNOPHOTO_THUMB_M.jpg"
    thumbnail.parent.mkdir(parents=True)
    thumbnail.write_bytes(b"its thumbnail")
    (folder / "gallery/characters/ada").mkdir(parents=True, exist_ok=True)
    (folder / "gallery/characters/ada/.DS_Store").write_bytes(b"names")
    done = erase(project.settings, descent(project.store, "ada"))
    assert done.left == ()
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert [path for path in left if "conflicted" in path or "/._" in path] == []
    assert "images/batch=two/Thumbs.db" not in left
    assert "gallery/batch=two/thumbnails/Thumbs.db" not in left
    assert "gallery/characters/ada/.DS_Store" not in left
    assert not thumbnail.exists()
    assert "images/batch=one/Thumbs.db" not in left
    assert "images/batch=two/notes.txt" not in left
    assert "images/batch=one/notes.txt" in left
    assert not (folder / "gallery/characters/ada").exists()


def test_a_bucket_with_the_folder_markers_of_a_console_works_as_one_without(project, s3):
    bucket = s3.bucket()
    url = f"s3://{bucket}/pictures"
    project.settings = project.settings.model_copy(update={"store": url})
    project.write(*ROWS)
    project.run()
    store = Store.open(url)
    before = state_of(store)
    paths = {
        "/".join(path.split("/")[:depth])
        for path in (one.path for one in store.objects(""))
        for depth in range(1, 6)
    }
    client = boto3.client("s3")
    objects = {one.path for one in store.objects("")}
    for path in paths - objects:
        client.put_object(Bucket=bucket, Key=f"pictures/{path}/", Body=b"")
        client.put_object(Bucket=bucket, Key=f"pictures/{path}/.DS_Store", Body=b"\x00\x00\x00\x01Bud1")
    again = project.run()
    assert (again.generated, again.reused) == (0, 3)
    rebuild(project.settings)
    assert state_of(store) == before
    assert erase(project.settings, descent(store, "ada")).left == ()

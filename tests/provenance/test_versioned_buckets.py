"""An erasure in a bucket that keeps versions: what it takes back is gone from these too, or it says what isn't."""

import boto3
import pytest
from PIL import Image

from ideogram_pipeline.doctor import examine
from ideogram_pipeline.generation import files
from ideogram_pipeline.provenance.erasing import descent, entomb, remove
from ideogram_pipeline.repair import erase
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.versions import Purged, keeping, purge

ROWS = (
    {"batch": "one", "prompt": "zanzibar lighthouse", "reference_id": "ada", "num_images": 2},
    {"batch": "one", "prompt": "quiet harbour", "reference_id": "bob"},
    {"batch": "two", "prompt": "xylophone market", "reference_id": "ada", "style_reference_ids": "bob"},
    {"batch": "three", "prompt": "plain meadow"},
)


@pytest.fixture(params=["moto", pytest.param("seaweedfs", marks=pytest.mark.slow)])
def s3_server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(s3):
    """A bucket that keeps versions."""
    name = s3.bucket()
    boto3.client("s3").put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return name


def earlier(found):
    return [one for one in found if not one.is_latest]


def versions_in(bucket):
    """Every version of every object, with its bytes; None for a mark of deletion."""
    client = boto3.client("s3")
    found = []
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket):
        found += [
            (
                one["Key"],
                client.get_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])["Body"].read(),
            )
            for one in page.get("Versions", ())
        ]
        found += [(one["Key"], None) for one in page.get("DeleteMarkers", ())]
    return found


def test_versions_go_and_last_of_all_the_marks_that_hid_them(bucket):
    store = Store.open(f"s3://{bucket}/pictures")
    for content in (b"one", b"two"):
        store.put("in/a", content)
        store.put("in/b", content)
    store.delete("in/a")
    assert "versions" in keeping(store)
    purged = purge(store, lambda found: [one for one in found if one.path == "in/a" or not one.is_latest])
    assert (purged.deleted, purged.left) == (4, ())
    assert versions_in(bucket) == [("pictures/in/b", b"two")]


def test_a_bucket_that_keeps_nothing_has_nothing_to_purge(s3):
    store = Store.open(f"s3://{s3.bucket()}/pictures")
    store.put("in/a", b"one")
    assert keeping(store) == ""
    assert purge(store, earlier).left == ()
    assert store.get("in/a") == b"one"


def test_of_google_and_azure_it_is_said_that_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "nobody")
    store = Store.open("az://container/pictures")
    assert "`erase` can't delete them" in keeping(store)
    (left,) = purge(store, list).left
    assert "delete them in the console of az://container/pictures" in left
    here = Store.open(str(tmp_path))
    assert (keeping(here), purge(here, list).left) == ("", ())


@pytest.mark.slow
@pytest.mark.parametrize("s3_server", ["moto"], indirect=True)
def test_versions_go_too_where_an_erasure_was_stopped_before_it_came_to_them(project, bucket):
    project.settings = project.settings.model_copy(update={"store": f"s3://{bucket}/pictures"})
    project.write(*ROWS)
    project.run()
    found = descent(project.store, "ada")
    (digest,) = found.digests
    entomb(project.store, found)
    remove(project.store, found)  # and then the machine stopped
    assert any(b"xylophone market" in (content or b"") for _, content in versions_in(bucket))
    done = erase(project.settings, descent(project.store, digest))
    assert done.left == ()
    told = [
        key
        for key, content in versions_in(bucket)
        if b"xylophone market" in (content or b"") or any(one in key for one in found.fingerprints)
    ]
    assert told == []


@pytest.mark.slow
@pytest.mark.parametrize("denied", ["?versions", "?delete"])
def test_what_nobody_may_list_or_delete_is_said_to_be_left(s3, s3_wire, denied):
    name = s3.bucket()
    boto3.client("s3").put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    store = Store.open(f"s3://{name}/pictures")
    store.put("in/a", b"one")
    store.delete("in/a")
    s3_wire.fail("AccessDenied", target=denied, times=float("inf"))
    purged = purge(store, list)
    assert purged.deleted == 0
    (left,) = purged.left
    assert "AccessDenied" in left
    assert ("s3:ListBucketVersions" in left) == (denied == "?versions")
    assert ("in/a" in left) == (denied == "?delete")
    s3_wire.mend()
    assert purge(store, list) == Purged(2, ())


@pytest.mark.slow
@pytest.mark.parametrize(("answer", "says"), [("AccessDenied", "nobody can tell"), ("NotImplemented", "")])
def test_a_server_that_does_not_tell_of_versions(s3, s3_wire, answer, says):
    name = s3.bucket()
    store = Store.open(f"s3://{name}/pictures")
    store.put("in/a", b"one")
    s3_wire.fail(answer, target="?version", times=float("inf"))
    assert keeping(store)[: len("nobody can tell")] == says
    assert bool(purge(store, earlier).left) == bool(says)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("s3_server", ["seaweedfs"], indirect=True)
def test_an_erasure_in_a_versioned_bucket_leaves_no_version_of_what_it_takes(project, bucket):
    for seed, name in enumerate(("ada", "bob")):
        Image.effect_noise((64, 64), 50 + seed).save(project.folder / f"{name}.png")
    project.settings = project.settings.model_copy(update={"store": f"s3://{bucket}/pictures"})
    project.write(*ROWS)
    project.run()
    project.run("one", regenerate=True, limit=1)
    store = project.store
    found = descent(store, "ada")
    photo = (project.folder / "ada.png").read_bytes()
    secret = [
        *(row["prompt"].encode() for row in (ROWS[0], ROWS[2])),
        photo[60:160],
        *(store.get(path)[1500:1600] for path in found.images),
        *(path.rsplit("/", 1)[-1].encode() for path in found.images),
        b"characters/ada",
        b'"ada"',
    ]
    (doctored,) = [one for one in examine(project.settings) if one.what == "erasing"]
    assert doctored.ok
    assert "`erase` deletes those" in doctored.says
    others = {key: content for key, content in versions_in(bucket) if "/ledger/batch=three/" in key}
    done = erase(project.settings, found)
    assert (done.left, done.payloads_left) == ((), "")
    assert done.versions >= 13
    left = versions_in(bucket)
    told = [
        (key, word[:20])
        for key, content in left
        for word in secret
        if word in (content or b"") or word in key.encode()
    ]
    assert told == []
    assert others.items() <= dict(left).items()
    assert project.run().reused == 2
    assert [row.prompt_id for row in files.images(store, "one") if row.current] == ["p2"]


@pytest.mark.parametrize("s3_server", [pytest.param("seaweedfs", marks=pytest.mark.slow)], indirect=True)
def test_what_a_lock_keeps_is_said(s3):  # moto deletes what is locked
    client, name = boto3.client("s3"), f"{s3.bucket()}-locked"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    store = Store.open(f"s3://{name}/pictures")
    store.put("in/a", b"one")
    (version,) = client.list_object_versions(Bucket=name)["Versions"]
    client.put_object_legal_hold(
        Bucket=name, Key="pictures/in/a", VersionId=version["VersionId"], LegalHold={"Status": "ON"}
    )
    store.delete("in/a")
    assert "object lock may forbid that" in keeping(store)
    purged = purge(store, list)
    assert purged.deleted == 0
    assert [line.split(" of ")[1].split(" ")[0] for line in purged.left] == ["in/a"]
    assert "in/a" in str(client.list_object_versions(Bucket=name)["Versions"])

"""Tables, references and store in S3, behind a wire that fails, and a process that is killed: all is paid once."""

import io
import random

import pytest
from PIL import Image

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.storage import Store

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

ROWS, KILLS = 30, 3


@pytest.fixture
def bucket(s3, s3_wire):
    """A bucket with tables and pictures in it, and nothing else."""
    bucket = Store.open(f"s3://{s3.bucket()}")
    sink = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(sink, "PNG")
    bucket.put("pictures/ada.png", sink.getvalue())
    bucket.put(
        "tables/references.csv",
        f"reference_id,uri\nada,{bucket.url}/pictures/ada.png\nbeth,../pictures/ada.png\n".encode(),
    )
    rows = [f"p{number:02},scene {number},{('ada', 'beth', '')[number % 3]}" for number in range(ROWS)]
    bucket.put("tables/prompts.csv", "\n".join(["prompt_id,prompt,reference_id", *rows]).encode())
    return bucket


def test_everything_in_s3_behind_a_bad_wire_with_kills_is_paid_once(project, bucket, s3_wire):
    project = project(rows=1, latency_scale=0.5)
    project.rows = ROWS
    places = {
        "IDEOGRAM_STORE": f"{bucket.url}/store",
        "IDEOGRAM_PROMPTS": f"{bucket.url}/tables/prompts.csv",
        "IDEOGRAM_REFERENCES": f"{bucket.url}/tables/references.csv",
    }
    chance = random.Random(1)
    for fault in ("lose the answer", "SlowDown", "reset"):
        s3_wire.fail(fault, "PUT", "ledger", times=8)
        goal = ledger_size(bucket) + chance.choice([9, 15, 25])
        process = project.start("run", IDEOGRAM_MAX_IN_FLIGHT="8", **places)
        project.wait_until(process, lambda goal=goal: ledger_size(bucket) >= goal)
        process.kill()
        project.finish(process)
    assert s3_wire.failed == 8 * KILLS
    project.run(**places)
    project("reconcile", "--resubmit-unknown-after", "0s", **places)
    summary = project.run(**places)

    stats = project.sandbox.stats()
    assert (summary["images"], summary["unknown"]) == (ROWS, 0)
    assert (stats.accepted, stats.duplicates, stats.uploads) == (ROWS, 0, 0)
    store = Store.open(places["IDEOGRAM_STORE"])
    pictures = {found.path for found in store.objects("images") if found.path.endswith(".png")}
    rows = files.read_images(store, "default")
    assert pictures == {f"images/batch=default/{row.file_name}" for row in rows}
    for row in rows:
        with Image.open(io.BytesIO(store.get(f"images/batch=default/{row.file_name}"))) as picture:
            picture.load()
    assert {entry.state for entry in Ledger(store, "default").entries.values()} == {"generated"}
    assert secrets_in(store, project) == []


def ledger_size(bucket):
    return len(list(bucket.objects("store/ledger")))


def secrets_in(store, project):
    """Return where a secret or a signature stands: objects of the store, and what the processes said."""
    secrets = ("planted-aws-secret", "X-Amz-Signature", "planted-key-secret")
    said = [
        f"output {number}"
        for number, text in enumerate(project.output)
        if any(one in text for one in secrets)
    ]
    kept = [
        found.path
        for found in store.objects("")
        if any(one.encode() in store.get(found.path) for one in secrets)
    ]
    dagster = [
        str(path)
        for path in project.folder.rglob("*")
        if path.is_file() and any(one.encode() in path.read_bytes() for one in secrets)
    ]
    return said + kept + dagster

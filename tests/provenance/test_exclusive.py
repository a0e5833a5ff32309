"""Erasing is exclusive: runs and erasures of one batch, each a process of its own, and what comes back from backups."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from ideogram_pipeline.generation import files, ledger, lost_ledgers
from ideogram_pipeline.generation.runs import AtWork, BeingErased, beating, erasing, holders, working
from ideogram_pipeline.provenance import traces
from ideogram_pipeline.provenance.erasing import descent, remains
from ideogram_pipeline.provenance.traces import NOT_LOOKED_THROUGH, READ, Gone
from ideogram_pipeline.repair import erase
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from ideogram_pipeline.sandbox.control import Change
from ideogram_pipeline.storage import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMMAND = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()"]
HOLD = """
import sys
import time
from ideogram_pipeline.generation.runs import erasing
from ideogram_pipeline.storage import Store
with erasing(Store.open(sys.argv[1]), sys.argv[2:]):
    print("held", flush=True)
    sys.stdin.read()
"""


class Project:
    """A batch of two references, a standing sandbox, and the command run on it."""

    def __init__(self, folder, sandbox):
        self.folder = folder
        self.sandbox = sandbox
        for name, color in (("ada", "teal"), ("bob", "brown")):
            Image.new("RGB", (64, 64), color).save(folder / f"{name}.png")
        (folder / "references.csv").write_text("reference_id,uri\nada,ada.png\nbob,bob.png\n")
        self.write(("p1", "one", "zanzibar lighthouse", "ada"))
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("IDEOGRAM_", "FAL_"))
        }
        kept.pop("DAGSTER_HOME", None)
        self.environment = {
            **kept,
            "FAL_QUEUE_URL": sandbox.url,
            "IDEOGRAM_STORE": str(folder / "store"),
            "IDEOGRAM_PROMPTS": str(folder / "prompts.csv"),
            "IDEOGRAM_REFERENCES": str(folder / "references.csv"),
        }

    @property
    def store(self):
        return Store.open(str(self.folder / "store"))

    def write(self, *rows):
        with (self.folder / "prompts.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("prompt_id", "batch", "prompt", "reference_id"), *rows])

    def start(self, *arguments):
        """Start the command as a terminal does: Ctrl-C reaches it, also where these tests run in the background."""
        return subprocess.Popen(
            [*COMMAND, *arguments],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it takes no lock
        )

    def __call__(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out + err

    def told(self):
        """Every file of the store that has anything of what was made from `ada`."""
        return {trace.path for trace in descent(self.store, "ada").traces}


@pytest.fixture
def project(tmp_path):
    with running_sandbox(SandboxSettings(latency_scale=0)) as sandbox:
        yield Project(tmp_path, sandbox)


@pytest.fixture
def hold(request):
    """Start processes that hold batches as an erasure does, until they are told to end."""
    started = []

    def start(store, *batches):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, store.url, *batches],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_erase_while_a_run_works_another_reference_of_the_batch(project):
    """It said "erased" and exit 0, and the run wrote prompt and reference back."""
    assert project("run")[0] == 0
    project.write(("p1", "one", "zanzibar lighthouse", "ada"), ("p2", "one", "quiet harbour", "bob"))
    project.sandbox.change(Change(latency_scale=4))
    run = project.start("run")
    while len(list(project.folder.glob("store/ledger/batch=one/*/1-submitted.json"))) < 2:
        assert run.poll() is None, run.communicate()
    run.send_signal(signal.SIGSTOP)  # a process that stands still is alive
    (run_id,) = holders(project.store, "one")
    before = project.told()

    code, said = project("erase", "--reference", "ada", "--yes")
    assert code == 3
    assert f"The run {run_id} works on the batch 'one'" in said
    assert "Nothing was erased" in said
    assert "--wait" in said
    assert project.told() >= before
    assert list(project.store.objects("erased")) == []

    waits = project.start("erase", "--reference", "ada", "--yes", "--wait")
    assert f"waiting: The run {run_id} works" in waits.stderr.readline()
    assert waits.poll() is None
    run.send_signal(signal.SIGCONT)
    out, _ = run.communicate()
    assert run.returncode == 0, out
    out, err = waits.communicate()
    assert waits.returncode == 0, out + err
    store = project.store
    assert remains(store) == []
    assert [row.prompt_id for row in files.images(store, "one")] == ["p2"]
    assert [row.prompt_id for row in files.outcomes(store, "one")] == ["p2"]
    assert project.sandbox.stats().submits == 2


def test_an_erasure_that_waits_can_be_interrupted_and_has_erased_nothing(project):
    assert project("run")[0] == 0
    before = project.told()
    with beating(project.store, "run-1", ["one"]):
        waits = project.start("erase", "--reference", "ada", "--yes", "--wait")
        assert "waiting: The run run-1 works" in waits.stderr.readline()
        waits.send_signal(signal.SIGINT)
        waits.communicate()
        assert waits.returncode == 130
    assert project.told() == before
    assert holders(project.store, "one") == []


def test_a_run_of_a_batch_that_is_being_erased_refuses_and_submits_nothing(project, hold):
    project.write(
        ("p1", "one", "zanzibar lighthouse", "ada"),
        ("p2", "one", "quiet harbour", "bob"),
        ("p3", "two", "plain meadow", "bob"),
    )
    held = hold(project.store, "one")
    code, said = project("run", "--batch", "one")
    assert code == 2
    assert "holds the batch 'one'" in said
    assert "Run it again once `ideogram-pipeline erase` has ended" in said
    assert project.sandbox.stats().submits == 0
    assert project("run", "--batch", "two")[0] == 0
    held.communicate()
    assert project("run")[0] == 0
    held = hold(project.store, "one")
    for command in ("rebuild", "reconcile"):
        code, said = project(command)
        assert (code, "holds the batch 'one'" in said) == (2, True), command


def test_an_eraser_that_was_killed_holds_nothing(project, hold):
    held = hold(project.store, "one")
    held.kill()
    held.communicate()
    assert list(project.store.objects("runs"))
    assert project("run")[0] == 0
    assert project("erase", "--reference", "ada", "--yes")[0] == 0
    assert remains(project.store) == []


def test_two_erasures_at_once_exclude_each_other(project, hold):
    project.write(("p1", "one", "zanzibar lighthouse", "ada"), ("p2", "one", "quiet harbour", "bob"))
    assert project("run")[0] == 0
    held = hold(project.store, "one", "two")
    before = project.told()
    code, said = project("erase", "--reference", "ada", "--yes")
    assert (code, "erasure" in said, "Nothing was erased" in said) == (3, True, True)
    assert project.told() == before
    held.communicate()

    both = [
        project.start("erase", "--reference", reference, "--yes", "--wait") for reference in ("ada", "bob")
    ]
    ended = [(*process.communicate(), process.returncode) for process in both]
    assert [code for *_, code in ended] == [0, 0], ended
    assert remains(project.store) == []
    assert list(files.images(project.store, "one")) == []


def test_of_a_run_and_an_erasure_at_least_one_sees_the_other(store):
    with erasing(store, ["one", "two"]):
        with pytest.raises(BeingErased, match="'two'"), working(store, "run-1", "two"):
            raise AssertionError("the erasure holds it")
        with working(store, "run-1", "three"):
            pass
    with working(store, "run-1", "one"), working(store, "run-2", "one"):
        with pytest.raises(AtWork, match="run run-"), erasing(store, ["two", "one"]):
            raise AssertionError("runs hold it")
        assert holders(store, "one") == ["run-1", "run-2"]
    assert list(store.objects("runs")) == []


def test_a_run_whose_plan_was_made_before_an_erasure_leaves_its_rows_out(project):
    """The plan of the run itself comes back too, as a retry of it would find it."""
    project.write(("p1", "one", "zanzibar lighthouse", "ada"), ("p2", "one", "quiet harbour", "bob"))
    assert project("run")[0] == 0
    backup = project.folder / "backup"
    shutil.copytree(project.folder / "store", backup)
    assert project("erase", "--reference", "ada", "--yes")[0] == 0
    for folder in ("plans", "run_plans", "ledger", "images"):
        shutil.copytree(backup / folder, project.folder / "store" / folder, dirs_exist_ok=True)
    store = project.store
    assert remains(store)
    (run_plan,) = [one.path for one in store.objects("run_plans")]
    for root_run_id in (None, run_plan.rpartition("/")[2].removesuffix(".parquet")):
        plan = files.read_plan(store, "one", root_run_id=root_run_id)
        assert [(row.prompt_id, row.decision) for row in plan.rows] == [("p1", "rejected"), ("p2", "new")]
        assert "was erased on" in next(iter(plan.rows)).reason
    code, _ = project("run")
    assert code == 3
    store = project.store
    assert [(row.prompt_id, row.state) for row in files.outcomes(store, "one")] == [
        ("p1", "rejected"),
        ("p2", "generated"),
    ]
    assert {row.prompt_id for row in files.images(store, "one")} == {"p2"}
    assert project("rebuild")[0] == 0
    assert {row.prompt_id for row in files.images(store, "one")} == {"p2"}
    assert project.sandbox.stats().submits == 2


@pytest.fixture(scope="module")
def worked(make_project, certificate):
    """A store with something in every folder, and a copy of it as a backup."""
    project = make_project()
    signing = {"c2pa_certificate": str(certificate.chain), "c2pa_key": str(certificate.key)}
    project.settings = project.settings.model_copy(update=signing)
    Image.effect_noise((64, 64), 50).save(project.folder / "ada.png")
    project.write(
        {"batch": "one", "prompt": "zanzibar lighthouse", "reference_id": "ada"},
        {"batch": "one", "prompt": "quiet harbour", "reference_id": "bob"},
    )
    project.run()
    project.run("one", regenerate=True, limit=1)
    store = project.store
    fingerprint, digest = sorted(descent(store, "ada").fingerprints)[0], ada(project)
    store.put(f"uploads/{digest}.json", b"{}")
    store.put(f"inbox/batch=one/{fingerprint}-1-{'0' * 16}.json", b"{}")
    lost_ledgers.keep_gaps(store, "one", [fingerprint])
    store.put(f"ledger/batch=one/{fingerprint}/.DS_Store", b"a foreign file in a folder of ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "NOT_COPIED", 0)
        known = ledger.Ledger(store, "one")
        known.keep_copy()
    shutil.copytree(project.folder / "store", project.folder / "backup")
    return project


def ada(project):
    return hashlib.sha256((project.folder / "ada.png").read_bytes()).hexdigest()


def test_every_folder_of_a_store_is_looked_through_or_known_to_need_no_look(worked):
    there = {path.name for path in (worked.folder / "backup").iterdir() if path.is_dir()}
    assert there - NOT_LOOKED_THROUGH == set(READ)


@pytest.mark.parametrize("folder", sorted(READ))
def test_a_backup_that_brings_one_folder_back_is_seen_and_erased_again(worked, folder):
    """A partial restore of images/ brought erased pictures back, and the check passed."""
    store, digest = worked.store, ada(worked)
    erase(worked.settings, descent(store, digest))
    assert remains(store) == []
    kept = {one.path for one in store.objects("images")}

    shutil.copytree(worked.folder / "backup" / folder, worked.folder / "store" / folder, dirs_exist_ok=True)
    assert {trace.path.split("/")[0] for trace in remains(store)} == {folder}
    done = erase(worked.settings, descent(store, digest))
    assert done.left == ()
    assert remains(store) == []
    assert {one.path for one in store.objects("images")} == kept
    assert {row.prompt_id for row in files.images(store, "one")} == {"p2"}
    found = [
        path
        for path in (worked.folder / "store" / folder).rglob("*")
        if path.is_file() and (b"zanzibar" in path.read_bytes() or digest.encode() in path.read_bytes())
    ]
    assert found == []


def test_half_written_files_of_killed_processes_go_too(worked):
    store, digest = worked.store, ada(worked)
    picture = next(path for path in (worked.folder / "backup" / "images").rglob("p1-*.png"))
    folder = worked.folder / "store" / "images" / "batch=one"
    shutil.copy(picture, folder / f"{picture.name}#1")
    (catalog,) = (worked.folder / "backup" / "catalog").glob("*.parquet")
    aside = f"catalog/.{'0' * 32}.new"
    shutil.copy(catalog, worked.folder / "store" / aside)
    half = [f"{aside}#1", f"catalog/{catalog.name}#1"]
    for path in half:
        (worked.folder / "store" / path).write_bytes(catalog.read_bytes()[:-8])
        os.utime(worked.folder / "store" / path, (time.time() - 86_400,) * 2)
    assert [trace.path for trace in remains(store)] == [aside, f"images/batch=one/{picture.name}#1"]
    erase(worked.settings, descent(store, digest))
    assert remains(store) == []
    assert store.leftovers("") == []


@pytest.mark.parametrize("path", ["images/batch=one/notes.parquet", f"catalog/.{'0' * 32}.new"])
def test_a_file_that_is_no_table_keeps_nobody_from_looking_at_the_others(store, path):
    store.put(path, b"something else")
    store.put(f"uploads/{'a' * 64}.json", b"{}")
    gone = Gone(frozenset({"a" * 64}), frozenset())
    assert [trace.path for trace in traces.traces(store, gone)] == [f"uploads/{'a' * 64}.json"]


def test_a_reading_of_a_table_that_another_one_has_replaced_names_the_reference_no_longer(project):
    """Readings are kept for some days, and each said which batches name which references."""
    other = ("p2", "one", "quiet harbour", "bob")
    project.write(("p1", "one", "zanzibar lighthouse", "zelda-of-old"), other)
    (project.folder / "references.csv").write_text("reference_id,uri\nzelda-of-old,ada.png\nbob,bob.png\n")
    assert project("run")[0] == 0
    project.write(other)
    assert project("run")[0] == 0
    assert project("erase", "--reference", "zelda-of-old", "--yes")[0] == 0
    told = [path for path in (project.folder / "store" / "tables").rglob("*") if path.is_file()]
    readings = [json.loads(path.read_text()) for path in told if path.match("readings/prompts/*.json")]
    assert [reading["batches"]["one"]["named"] for reading in readings] == [["bob"], ["bob"]]
    assert [path.name for path in told if b"zelda" in path.read_bytes()] == []

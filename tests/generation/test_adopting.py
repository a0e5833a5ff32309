"""Lost, restored and copied ledgers against the sandbox over loopback HTTP: what is found, and what is paid then."""

import asyncio
import json
import shutil
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.fal import Completed, FalClient, FalHosts, no_waiting
from ideogram_pipeline.generation import catalog, files, ledger, lost_ledgers
from ideogram_pipeline.generation.adopting import adopt
from ideogram_pipeline.generation.batch import WorkOptions, work
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.choice import Choice
from ideogram_pipeline.generation.ledger import Ledger, Reserved, Submitted
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.planner import References, plan_batch, plan_row
from ideogram_pipeline.generation.rebuild import rebuild_batch
from ideogram_pipeline.generation.reconcile import digest
from ideogram_pipeline.generation.rows import EdgeRow
from ideogram_pipeline.generation.runs import beating
from ideogram_pipeline.provenance.erasing import descent, entomb, remove
from ideogram_pipeline.sandbox import Fault, SandboxSettings, forget_uploads, running_sandbox
from ideogram_pipeline.sandbox.control import Change
from ideogram_pipeline.storage import Store, parquet
from ideogram_pipeline.tables.erased import refused
from ideogram_pipeline.tables.references import read_references
from ideogram_pipeline.tables.rows import PromptRow

pytestmark = pytest.mark.slow

BATCH = "drop"
DERIVED = ("images", "outcomes", "lineage", "plans")


class Watcher:
    def ended(self, outcome, spent_usd):
        pass


class Project:
    """A table of one batch with a store, worked as a run works it: planned, guarded, paid, recorded."""

    def __init__(self, folder, sandbox, *, rows=3, inline_bytes=0):
        self.folder, self.sandbox, self.inline_bytes = folder, sandbox, inline_bytes
        self.api = sandbox.url
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), "teal").save(folder / "ada.png")
        (folder / "references.csv").write_text("reference_id,uri\nada,ada.png\n")
        self.table = [self.row(number) for number in range(rows)]

    def row(self, number, **cells):
        cells = {"prompt": f"scene {number}", "reference_ids": ("ada",), **cells}
        return PromptRow(prompt_id=f"p{number}", batch=BATCH, row_number=number, **cells)

    @property
    def store(self):
        return Store.open(str(self.folder / "store"))

    @property
    def references(self):
        store = self.store
        read = read_references(str(self.folder / "references.csv"), store, erased=refused(store))
        return References.of(read.references, read.rejections)

    @property
    def entries(self):
        return Ledger(self.store, BATCH).entries

    def client(self):
        return FalClient("key:secret", FalHosts(queue=self.sandbox.url, rest=self.sandbox.url, api=self.api))

    def run(self, **choice):
        """Work the batch, and return how many of its rows have their pictures."""
        store, entries = self.store, self.entries
        plan = plan_batch(BATCH, self.table, [], self.references, entries, choice=Choice(**choice))
        files.write_plan(store, plan)
        options = WorkOptions(
            run=RunFacts(run_id="a-run", backend="sandbox", code_version="test"),
            budget=Budget(store, run_id="a-run", per_run_usd=None, per_day_usd=None, allow_unknown=False),
            observer=Watcher(),
            marking=Marking(),
            max_in_flight=16,
            max_wait_s=60.0,
            inline_bytes=self.inline_bytes,
            thumbnails=False,
        )
        with no_waiting():
            worked = asyncio.run(work(store, plan, self.client, options))
        return sum(row.state == "generated" for row in worked.results.outcomes)

    def adopt(self):
        firsts = [plan_row(row, self.references) for row in self.table if self.can_be_sent(row)]

        async def look():
            async with self.client() as fal:
                return await adopt(
                    fal,
                    self.store,
                    {BATCH: firsts},
                    run=RunFacts(run_id="adopted", backend="sandbox", code_version="test"),
                    told=lambda _: None,
                )

        with no_waiting():
            return asyncio.run(look())

    def can_be_sent(self, row):
        return set(row.reference_ids) <= self.references.usable.keys()

    def lose(self, *folders):
        for folder in folders:
            shutil.rmtree(self.folder / "store" / folder, ignore_errors=True)

    def copy_to(self, folder):
        """Return the project with a copy of its store, beside the original."""
        other = Project(folder, self.sandbox)
        other.table = self.table
        shutil.copytree(self.folder / "store", folder / "store", dirs_exist_ok=True)
        return other

    @property
    def accepted(self):
        return self.sandbox.stats().accepted


@pytest.fixture
def sandbox():
    with running_sandbox(SandboxSettings(latency_scale=0, concurrency=100)) as running:
        yield running


@pytest.fixture
def project(tmp_path, sandbox):
    return Project(tmp_path / "project", sandbox)


def told(adoption):
    return {(one.prompt_id, one.take): one.says for one in adoption.adopted}


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        ((), "from metadata.parquet; its pictures are there"),
        (("outcomes", "lineage", "plans"), "from metadata.parquet; its pictures are there"),
        (("images/batch=drop/metadata.parquet",), "the next run fetches it"),
        (("images", "lineage", "plans"), "the next run fetches it"),
        (("images", "outcomes", "plans"), "the next run fetches it"),
    ],
)
def test_the_ledger_folder_is_gone(project, lost, found):
    assert project.run() == 3
    project.lose("ledger")
    for path in lost:
        project.lose(path)
        if path.endswith(".parquet"):
            (project.folder / "store" / path).unlink()
    with pytest.raises(ConfigurationError, match=r"lacks 3 requests .*reconcile --adopt"):
        project.run()
    adoption = project.adopt()
    assert (adoption.left_open, adoption.lost, adoption.not_found) == ((), (), 0)
    assert [found in says for says in told(adoption).values()] == [True] * 3
    assert project.run() == 3
    assert project.run() == 3
    assert project.accepted == 3


def test_what_metadata_tells_makes_the_same_metadata_again(project):
    project.run()
    before = files.read_images(project.store, BATCH)
    project.lose("ledger")
    project.adopt()
    project.run()
    assert files.read_images(project.store, BATCH) == before


def test_only_pictures_are_left_and_their_marks_tell_the_rest(project):
    project.run()
    before = {path.name: path.read_bytes() for path in (project.folder / "store/images").rglob("*.png")}
    project.lose("ledger", "outcomes", "lineage", "plans")
    (project.folder / "store/images/batch=drop/metadata.parquet").unlink()
    with pytest.raises(ConfigurationError, match="lacks 3 requests"):
        project.run()
    adoption = project.adopt()
    assert set(told(adoption).values()) == {"from its pictures and their marks"}
    assert project.run() == 3
    project.lose("images")  # and what is fetched again becomes the same files
    assert project.run() == 3
    after = {path.name: path.read_bytes() for path in (project.folder / "store/images").rglob("*.png")}
    assert (after, project.accepted) == (before, 3)


def test_ledger_files_at_0_bytes(project):
    project.run()
    (entry, *_) = sorted((project.folder / "store/ledger/batch=drop").iterdir())
    for path in entry.iterdir():
        path.write_bytes(b"")
    assert project.entries[entry.name].state == "damaged"
    adoption = project.adopt()
    assert len(adoption.adopted) == 1
    assert project.entries[entry.name].state == "generated"
    assert project.run() == 3
    assert project.accepted == 3


def test_a_row_without_an_answer_whose_one_ledger_file_is_at_0_bytes_is_not_paid_for_again(project):
    """Its file was once taken for one that a power cut left before anything was sent, though its outcome says more."""
    api, project.api = project.api, "http://127.0.0.1:9"
    project.sandbox.change(Change(faults=(Fault("drop_after_accept", match="scene 1"),)))
    assert project.run() == 2
    project.sandbox.change(Change(faults=()))
    for path in (project.folder / "store/ledger").rglob("*.json"):
        path.write_bytes(b"" if len(list(path.parent.iterdir())) == 1 else path.read_bytes())
    with pytest.raises(ConfigurationError, match="lacks 1 request that"):
        project.run()
    project.api = api
    assert "from fal's list" in told(project.adopt())["p1", 0]
    assert project.run() == 3
    assert project.accepted == 3


@pytest.mark.parametrize("content", [b"[]", b'{"request":', b"\0" * 500])
def test_a_reservation_that_can_not_be_read_stands_in_the_way_until_it_is_removed_as_it_says(
    project, content
):
    project.run()
    (path, *_) = sorted(project.folder.glob("store/ledger/batch=drop/*/1-reserved.json"))
    path.write_bytes(content)
    assert not project.adopt().adopted
    assert "remove it and have" in project.entries[path.parent.name].damage
    path.unlink()
    assert len(project.adopt().adopted) == 1
    assert project.entries[path.parent.name].state == "generated"
    assert (project.run(), project.accepted) == (3, 3)


def test_the_ledgers_copy_has_the_exact_bytes_of_files_that_are_gone(tmp_path, sandbox):
    project = Project(tmp_path / "project", sandbox, rows=12)  # a copy is kept of more than a few files
    project.run()
    root = project.folder / "store" / "ledger"
    before = {path: path.read_bytes() for path in root.rglob("*.json")}
    project.lose("ledger", *DERIVED)
    adoption = project.adopt()
    assert set(told(adoption).values()) == {"from the ledger's copy"}
    assert {path: path.read_bytes() for path in root.rglob("*.json")} == before
    for number, path in enumerate(before):
        if number % 3:
            path.write_bytes(b"")
    project.adopt()
    assert {path: path.read_bytes() for path in root.rglob("*.json")} == before
    assert project.accepted == 12


def test_yesterdays_backup_stands_in_place_of_the_store(project, tmp_path):
    project.run()
    shutil.copytree(project.folder / "store", tmp_path / "backup")
    project.table = [*project.table, project.row(3), project.row(4, reference_ids=(), num_images=2)]
    project.run()
    shutil.rmtree(project.folder / "store")
    shutil.copytree(tmp_path / "backup", project.folder / "store")
    adoption = project.adopt()
    assert told(adoption).keys() == {("p3", 0), ("p4", 0)}
    assert (adoption.left_open, adoption.not_found) == ((), 0)
    assert project.run() == 5
    assert project.accepted == 5


@pytest.mark.parametrize("fault", ["stuck", "runner_503"])
def test_a_backup_was_made_while_requests_were_with_fal_that_ended_afterwards(project, tmp_path, fault):
    """The retry of each was paid for again: the older ledger held its first request as with fal."""
    project.sandbox.change(Change(faults=(Fault(fault),)))
    first = [plan_row(row, project.references) for row in project.table]
    asyncio.run(submit_and_leave(project, first))
    shutil.copytree(project.folder / "store", tmp_path / "backup")
    if fault == "stuck":
        asyncio.run(cancel_all(project))
    project.sandbox.change(Change(faults=()))
    assert project.run() == 3
    paid = project.accepted
    shutil.rmtree(project.folder / "store")
    shutil.copytree(tmp_path / "backup", project.folder / "store")
    adoption = project.adopt()
    assert told(adoption).keys() == {("p0", 0), ("p1", 0), ("p2", 0)}
    assert adoption.left_open == ()
    assert project.run() == 3
    assert (project.accepted, project.adopt().adopted) == (paid, ())


async def submit_and_leave(project, requests):
    """Submit requests as a run does that dies before anything ends."""
    ledger = Ledger(project.store, BATCH)
    async with project.client() as fal:
        for number, request in enumerate(requests):
            uploaded = await fal.upload(
                project.store.get(request.pictures[0].path), file_name=f"{number}.png"
            )
            urls = {use.token: uploaded.url for use in request.pictures}
            arguments = {
                name: [urls[one] for one in value] if name == "reference_image_urls" else value
                for name, value in request.arguments.items()
            }
            await ledger.reserve(
                Reserved(
                    request=request,
                    sent_sha256=digest(arguments),
                    attempt=1,
                    owner="a-dead-run",
                    reserved_at=datetime.now(UTC),
                    backend="sandbox",
                    code_version="test",
                )
            )
            queued = await fal.submit(request.endpoint_id, arguments)
            await ledger.submitted(request.fingerprint, Submitted.of(queued, datetime.now(UTC)))


async def cancel_all(project):
    """Cancel at fal what is with it, as its dashboard can, and wait until that has taken effect."""
    async with project.client() as fal:
        for entry in Ledger(project.store, BATCH).entries.values():
            queued = fal.attach("fal-ai/ideogram/character", entry.last.submitted.request_id)
            await fal.cancel(queued)
            while not isinstance(await fal.status(queued), Completed):
                pass


def test_a_copied_store_works_beside_the_original(project, tmp_path):
    project.run()
    copy = project.copy_to(tmp_path / "copy")
    project.table = copy.table = [*project.table, project.row(3)]
    assert project.run() == 4
    assert told(copy.adopt()).keys() == {("p3", 0)}
    assert copy.run() == 4
    assert project.accepted == 4


def test_all_takes_are_found(project):
    project.run()
    project.run(regenerate=True)
    project.run(regenerate=True)
    project.lose("ledger", *DERIVED)
    adoption = project.adopt()
    assert told(adoption).keys() == {(f"p{row}", take) for row in range(3) for take in range(3)}
    assert project.run() == 3
    assert project.accepted == 9
    project.run(regenerate=True)
    assert project.accepted == 12
    assert project.sandbox.stats().duplicates == 0


def test_all_takes_are_found_where_metadata_tells_of_some(project):
    project.run()
    project.run(regenerate=True)
    project.lose("ledger")
    assert len(project.adopt().adopted) == 6
    before = project.accepted
    assert project.run() == 3
    assert {request.take for row in project.entries.values() for request in [row.last.reserved.request]} == {
        0,
        1,
    }
    assert project.accepted == before


def test_two_rows_with_the_same_input_get_a_request_each(project):
    project.table = [project.row(number, prompt="the same", seed=7) for number in range(3)]
    project.run()
    sent = {request.request_id for request in project.sandbox.requests()}
    project.lose("ledger", *DERIVED)
    adoption = project.adopt()
    assert len(adoption.adopted) == 3
    assert {entry.last.submitted.request_id for entry in project.entries.values()} == sent
    assert project.run() == 3
    assert project.accepted == 3


def test_a_row_more_than_requests_of_one_input_is_paid_for(project):
    project.table = [project.row(0, prompt="the same", seed=7)]
    project.run()
    project.lose("ledger", *DERIVED)
    project.table.append(project.row(1, prompt="the same", seed=7))
    adoption = project.adopt()
    assert (told(adoption).keys(), adoption.not_found) == ({("p0", 0)}, 1)
    assert project.run() == 2
    assert project.accepted == 2


def test_what_brought_a_picture_is_taken_before_what_failed(project):
    project.sandbox.change(Change(faults=(Fault("runner_503", rate=0.5),)))
    project.run()
    project.sandbox.change(Change(faults=()))
    before = project.accepted
    assert before > 3, "some rows were submitted again"
    project.lose("ledger", *DERIVED)
    project.adopt()
    done = project.sandbox.stats().completed
    project.run()
    assert project.sandbox.stats().completed == max(done, 3)


@pytest.mark.parametrize("uploads", ["remembered", "fetched"])
def test_a_reference_that_was_uploaded_is_known_by_its_bytes(project, uploads):
    project.run()
    project.lose("ledger", *DERIVED)
    if uploads == "fetched":
        project.lose("uploads")
    downloads = project.sandbox.stats().downloads
    assert len(project.adopt().adopted) == 3
    assert project.sandbox.stats().downloads - downloads == (1 if uploads == "fetched" else 0)
    assert project.run() == 3
    assert project.accepted == 3


def test_a_reference_that_travelled_in_the_request_is_known_by_its_bytes(tmp_path, sandbox):
    project = Project(tmp_path / "project", sandbox, inline_bytes=100_000)
    project.run()
    project.lose("ledger", *DERIVED)
    assert len(project.adopt().adopted) == 3
    assert project.run() == 3
    assert (project.accepted, sandbox.stats().uploads) == (3, 0)


@pytest.mark.parametrize("way", ["uploaded", "fetched", "inline"])
def test_a_photo_that_was_sent_upright_is_known_by_its_copy(tmp_path, sandbox, way):
    project = Project(tmp_path / "project", sandbox, inline_bytes=100_000 if way == "inline" else 0)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.effect_noise((64, 48), 50).save(project.folder / "ada.png", exif=tags)
    assert project.run() == 3
    (use,) = next(iter(project.entries.values())).last.reserved.request.pictures
    assert use.sent_sha256
    project.lose("ledger", *DERIVED, *(["uploads", "references"] if way == "fetched" else []))
    assert len(project.adopt().adopted) == 3
    assert project.run() == 3
    assert project.accepted == 3


def test_a_request_with_another_picture_is_another_request(project):
    project.run()
    project.lose("ledger", *DERIVED)
    Image.new("RGB", (64, 48), "orange").save(project.folder / "ada.png")
    adoption = project.adopt()
    assert (adoption.adopted, adoption.left_open, adoption.not_found) == ((), (), 3)


def test_a_request_whose_picture_nobody_can_read_any_more_is_not_paid_for_again(tmp_path):
    memory = tmp_path / "state.sqlite"
    with running_sandbox(SandboxSettings(latency_scale=0, concurrency=100, state=memory)) as sandbox:
        project = Project(tmp_path / "project", sandbox)
        project.run()
        uploads = (project.folder / "store/uploads").rename(tmp_path / "uploads")
        project.lose("ledger", *DERIVED)
        forget_uploads(memory, [uploads.joinpath(path).stem for path in uploads.iterdir()])
        adoption = project.adopt()
        assert (adoption.adopted, adoption.not_found) == ((), 0)
        assert ["pictures that nobody can read any more" in one for one in adoption.left_open] == [True] * 3
        assert {entry.state for entry in project.entries.values()} == {"reserved"}
        assert project.run() == 0
        assert project.accepted == 3
        uploads.rename(project.folder / "store/uploads")  # the records tell what the pictures were
        assert len(project.adopt().adopted) == 3
        assert project.run() == 3
        assert project.accepted == 3


def test_erased_rows_are_not_adopted(project, tmp_path):
    project.table = [*(project.row(number) for number in range(12)), project.row(12, reference_ids=())]
    project.run()
    shutil.copytree(project.folder / "store", tmp_path / "backup")
    store = project.store
    found = descent(store, "ada")
    entomb(store, found)
    remove(store, found)
    for part in (*DERIVED, "ledger_copies"):  # a partial restore brings traces of it back
        if (tmp_path / "backup" / part).exists():
            shutil.copytree(tmp_path / "backup" / part, project.folder / "store" / part, dirs_exist_ok=True)
    assert lost_ledgers.lacking(project.store, BATCH) == {}
    adoption = project.adopt()
    assert (adoption.adopted, adoption.left_open, adoption.lost) == ((), (), ())
    assert [entry.last.reserved.request.prompt_id for entry in project.entries.values()] == ["p12"]


def test_a_damaged_file_beside_a_lost_ledger_costs_nothing_that_tells_of_it(project):
    """What is damaged was made anew from the ledger that was left: from none of it, and over what told of it."""
    assert project.run() == 3
    project.lose("ledger", "ledger_copies")
    store, paths = project.store, (files.outcomes_path(BATCH), files.edges_path(BATCH))
    before = [store.get(path) for path in paths]
    store.put(files.metadata_path(BATCH), b"PAR1")
    with pytest.raises(ConfigurationError, match="reconcile --adopt"):
        catalog.refresh(store)
    assert [store.get(path) for path in paths] == before
    assert len(project.adopt().adopted) == 3
    assert project.run() == 3
    assert project.accepted == 3
    assert catalog.refresh(store).images == 3


def test_what_another_batchs_ledger_holds_is_its_own(project):
    project.table = [project.row(0, seed=7)]
    project.run()
    held = project.folder / "store" / "ledger"
    (held / "batch=drop").rename(held / "batch=other")
    project.lose(*DERIVED)
    adoption = project.adopt()
    assert (adoption.adopted, adoption.not_found) == ((), 1)


def test_what_no_row_asks_for_and_nothing_tells_of_does_not_stop_runs_for_ever(project):
    project.run()
    project.lose("ledger", "plans", "lineage", "images")
    project.table = [project.row(number, prompt="edited") for number in range(3)]
    with pytest.raises(ConfigurationError, match="lacks 3 requests"):
        project.run()
    adoption = project.adopt()
    assert (len(adoption.lost), adoption.not_found) == (3, 3)
    assert project.run() == 3
    assert project.accepted == 6


@pytest.mark.parametrize("left", ["outcomes", "pictures"])
def test_adopting_with_another_table_does_not_have_the_right_one_paid_for_again(project, left):
    """What no row of the wrong table asked for was forgotten: the next run with the right one paid for all of it."""
    project.run()
    project.lose("ledger", "plans", "lineage", f"images/batch={BATCH}/metadata.parquet")
    project.lose("outcomes" if left == "pictures" else "images")
    for path in (project.folder / "store").rglob("metadata.parquet"):
        path.unlink()
    right, project.table = project.table, [project.row(9, prompt="another table's")]
    assert len(project.adopt().lost) == 3
    project.table = right
    with pytest.raises(ConfigurationError, match="3 requests of the batch 'drop' that are to be paid for"):
        project.run()
    assert len(project.adopt().adopted) == 3
    assert project.run() == 3
    assert project.accepted == 3


def test_the_takes_of_an_id_with_train_in_it_are_known_by_their_pictures(project):
    project.table = [project.row(0).model_copy(update={"prompt_id": "steam-train-01"})]
    project.run()
    project.run(regenerate=True)
    pictures = project.folder / f"store/images/batch={BATCH}"
    assert [path.name[:15] for path in pictures.glob("*.png")] == ["steam-Train-01-"] * 2
    project.lose("ledger", "ledger_copies", "plans", "lineage", "outcomes")
    (pictures / "metadata.parquet").unlink()
    adoption = project.adopt()
    assert (adoption.lost, len(project.entries)) == ((), 2)
    project.run()
    assert project.accepted == 2


def test_a_picture_that_an_earlier_version_named_is_fetched_again_under_that_name(project):
    project.table = [project.row(0).model_copy(update={"prompt_id": "steam-train-01"})]
    project.run()
    store = project.folder / "store"
    (picture,) = store.glob("images/*/*.png")
    (settled,) = store.glob("ledger/*/*/1-settled.json")
    settled.write_text(settled.read_text().replace("steam-Train-01", "steam-train-01"))
    project.lose("ledger_copies")
    picture.unlink()
    assert project.run() == 1
    assert project.accepted == 1
    name = picture.name.replace("Train", "train")
    assert [path.name for path in store.glob("images/*/*.png")] == [name]
    assert [row.file_name for row in files.images(project.store, BATCH)] == [name]


def test_a_refusal_is_remembered(project):
    project.sandbox.change(Change(faults=(Fault("policy_refusal", match="scene 1"),)))
    assert project.run() == 2
    project.lose("ledger")
    assert "refused" in told(project.adopt())["p1", 0]
    project.sandbox.change(Change(faults=()))
    assert project.run() == 2
    assert project.accepted == 3


def test_a_submit_that_was_never_answered_stays_unknown(project):
    project.sandbox.change(Change(faults=(Fault("drop_before_accept", match="scene 1"),)))
    assert project.run() == 2
    project.lose("ledger")
    project.sandbox.change(Change(faults=()))
    adoption = project.adopt()
    (one,) = adoption.left_open
    assert "p1: it was paid for" in one
    assert project.run() == 2
    assert project.accepted == 2


class ListDesk:
    """fal's list of requests on 127.0.0.1, as it is told to answer."""

    def __init__(self, **answer):
        self.answer = {"items": [], "next_cursor": None, "has_more": False, **answer}
        self.status = 200
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = json.dumps(desk.answer).encode()
                self.send_response(desk.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def list_desk():
    desk = ListDesk()
    yield desk
    desk.close()


def test_a_list_that_is_cut_short_is_open(project, list_desk):
    project.api = list_desk.url
    list_desk.answer["has_more"] = True
    adoption = project.adopt()
    assert adoption.not_found == 3
    assert "cut short" in adoption.left_open[0]


def test_a_list_that_cannot_be_read_is_open(project, list_desk):
    project.api = list_desk.url
    list_desk.status = 403
    assert "can't be read" in project.adopt().left_open[0]


def test_requests_without_what_was_sent_leave_it_open_whether_they_are_ours(project, list_desk):
    project.api = list_desk.url
    list_desk.answer["items"] = [
        {"request_id": "r-1", "endpoint_id": "fal-ai/ideogram/character", "sent_at": "2026-11-30T12:00:00Z"}
    ]
    (one,) = project.adopt().left_open
    assert "1 requests without what was sent" in one


def test_a_run_that_submits_meanwhile_is_not_overtaken(project):
    project.run()
    request = plan_row(project.table[0], project.references)
    project.lose("ledger", *DERIVED)
    there = Ledger(project.store, BATCH)
    claimed = Reserved(
        request=request,
        sent_sha256="0",
        attempt=1,
        owner="a-live-run",
        reserved_at="2026-11-30T12:00:00Z",
        backend="sandbox",
        code_version="test",
    )
    asyncio.run(there.reserve(claimed))
    project.adopt()
    entry = project.entries[request.fingerprint]
    assert (len(entry.attempts), entry.last.reserved.owner, entry.state) == (1, "a-live-run", "submitted")


def test_what_a_live_run_is_submitting_is_left_to_it(project):
    """Its own request was once lost: the older one of the same input took the place of the answer on its way."""
    project.table = [project.row(0, reference_ids=())]
    project.run()
    [older] = [entry.last.submitted.request_id for entry in project.entries.values()]
    project.lose("ledger", *DERIVED)
    request = plan_row(project.table[0], project.references)
    known = Ledger(project.store, BATCH)

    async def submit():
        claimed = Reserved(
            request=request,
            sent_sha256="0",
            attempt=1,
            owner="a-live-run",
            reserved_at="2026-11-30T12:00:00Z",
            backend="sandbox",
            code_version="test",
        )
        await known.reserve(claimed)
        async with project.client() as fal:
            return await fal.submit(request.endpoint_id, request.arguments)

    with beating(project.store, "a-live-run"):
        queued = asyncio.run(submit())
        adoption = project.adopt()
    assert adoption.adopted == ()
    assert "run a-live-run is submitting it" in adoption.left_open[0]
    answer = Submitted(
        request_id=queued.request_id,
        status_url=queued.status_url,
        response_url=queued.result_url,
        cancel_url=queued.cancel_url,
        submitted_at="2026-11-30T12:00:01Z",
    )
    asyncio.run(known.submitted(request.fingerprint, answer))
    assert project.adopt().adopted == ()
    assert older != queued.request_id
    assert project.entries[request.fingerprint].last.submitted.request_id == queued.request_id
    assert (project.run(), project.accepted) == (1, 2)


def test_a_store_that_is_fine_stops_no_run(project):
    assert project.run() == 3
    project.sandbox.change(Change(faults=(Fault("policy_refusal", match="edited"),)))
    project.table[0] = project.row(0, prompt="edited")
    project.table.append(project.row(3, prompt="not reached"))
    assert project.run(limit=1) == 2
    assert project.run() == 3
    assert lost_ledgers.missing(project.store, BATCH) == ""
    assert ledger.names(project.store, BATCH) == set(project.entries)


def test_foreign_files_among_the_pictures_stop_no_run(project):
    project.run()
    for name in ("Thumbs.db", "holiday-2026.png", "p1-XYZ-0.png"):
        (project.folder / "store/images/batch=drop" / name).write_bytes(b"anything")
    assert project.run() == 3


@pytest.mark.parametrize("step", ["1-reserved", "1-submitted", "1-settled"])
def test_a_run_over_a_damaged_ledger_file_keeps_what_was_recorded_of_its_row(project, step):
    """It once wrote metadata without the row: nothing told of its picture, or of fal's id of it, any more."""
    project.run()
    store, fingerprint = project.store, sorted(project.entries)[0]
    before = (
        {row.fingerprint: row for row in files.images(store, BATCH)},
        {row.fingerprint: row for row in files.outcomes(store, BATCH)}[fingerprint],
        set(parquet.read(store, files.edges_path(BATCH), EdgeRow)),
    )
    damaged = project.folder / f"store/ledger/batch={BATCH}/{fingerprint}/{step}.json"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9])
    assert project.run() == 2
    outcome = {row.fingerprint: row for row in files.outcomes(store, BATCH)}[fingerprint]
    kept = ("request_id", "cost_usd", "cost_source", "attempts", "images")
    assert (outcome.state, damaged.name in outcome.reason) == ("unknown", True)
    assert [getattr(outcome, name) for name in kept] == [getattr(before[1], name) for name in kept]
    assert {row.fingerprint: row for row in files.images(store, BATCH)} == before[0]
    assert set(parquet.read(store, files.edges_path(BATCH), EdgeRow)) >= before[2]
    rebuild_batch(store, BATCH)
    assert {row.fingerprint for row in files.images(store, BATCH)} == set(before[0])

    damaged.unlink()
    project.adopt()
    assert project.run() == 3
    damaged.write_bytes(whole)
    assert project.run() == 3
    assert len(list(files.images(store, BATCH))) == project.accepted == 3

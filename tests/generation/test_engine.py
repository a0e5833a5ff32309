"""The engine against the sandbox over loopback HTTP: what is paid, what is stored, what a later run does."""

import asyncio
import dataclasses
import hashlib
import io
import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import urlsplit

import httpx2
import pytest
import stamina
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from ideogram_pipeline import marks
from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.fal import ErrorDetail, FalClient, FalHosts, ModelRefused, QueuedRequest, no_waiting
from ideogram_pipeline.generation import inbox, polling, uploads
from ideogram_pipeline.generation.books import Books, RunFacts
from ideogram_pipeline.generation.brake import BRAKE_AFTER
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.engine import Engine
from ideogram_pipeline.generation.fetching import thumbnail_path
from ideogram_pipeline.generation.inbox import Address, Letter, put_letter
from ideogram_pipeline.generation.ledger import MAX_ATTEMPTS, UNFETCHED, Ledger, Reserved
from ideogram_pipeline.generation.marking import Marking, marks_of, signature_path
from ideogram_pipeline.generation.outcomes import (
    Failed,
    Generated,
    NotReached,
    Outcomes,
    Refused,
    Reused,
    Unknown,
    is_missing,
)
from ideogram_pipeline.generation.planner import References, plan_row
from ideogram_pipeline.generation.reconcile import give_up, reconcile_batch, unanswered
from ideogram_pipeline.generation.runs import beating
from ideogram_pipeline.generation.uploads import LIFETIME, MARGIN, Upload, is_within_reach
from ideogram_pipeline.marks import credentials
from ideogram_pipeline.marks.credentials import Signer
from ideogram_pipeline.receiver import build_app
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.sandbox.control import Change
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.references import read_references
from ideogram_pipeline.tables.rows import PromptRow

BATCH = "drop"


@pytest.fixture
def store(request, tmp_path):
    """A folder, or S3 behind a wire that can fail for the tests that are `on_s3`."""
    if getattr(request, "param", "") != "on S3":
        return Store.open(str(tmp_path / "store"))
    request.getfixturevalue("s3_wire")
    return Store.open(f"s3://{request.getfixturevalue('s3').bucket()}/prefix")


on_s3 = pytest.mark.parametrize("store", ["on S3"], indirect=True)


@pytest.fixture
def sandbox():
    with running_sandbox(SandboxSettings(latency_scale=0, concurrency=100)) as running:
        yield running


@pytest.fixture
def references(store, tmp_path):
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "ada.png")
    table = tmp_path / "references.csv"
    table.write_text("reference_id,uri\nada,ada.png\n")
    read = read_references(str(table), store)
    return References.of(read.references, read.rejections)


@pytest.fixture
def rows(references):
    """Make requests of rows: eight with a character by default."""

    def make(count=8, **cells):
        cells = {"reference_ids": ("ada",), **cells}
        return [
            plan_row(
                PromptRow(
                    prompt_id=f"p{number}", batch=BATCH, row_number=number, prompt=f"scene {number}", **cells
                ),
                references,
            )
            for number in range(count)
        ]

    return make


def reserved(request, owner):
    return Reserved(
        request=request,
        sent_sha256="0",
        attempt=1,
        owner=owner,
        reserved_at=datetime.now(UTC),
        backend="sandbox",
        code_version="test",
    )


class Watcher:
    """Counts how rows end."""

    def __init__(self):
        self.seen = []

    def ended(self, outcome, spent_usd):
        self.seen.append((outcome, spent_usd))


class Run:
    """One run of an engine on a batch, as a process would make it: with a ledger read from the store."""

    def __init__(
        self, store, sandbox, *, run_id="run-1", max_in_flight=16, per_run_usd=None, api=None, **limits
    ):
        self.ledger = Ledger(store, BATCH)
        self.hosts = FalHosts(queue=sandbox.url, rest=sandbox.url, api=api or sandbox.url)
        self.watcher = Watcher()
        self.store, self.sandbox, self.run_id = store, sandbox, run_id
        self.budget = Budget(
            store, run_id=run_id, per_run_usd=per_run_usd, per_day_usd=None, allow_unknown=False
        )
        self.limits = {
            "max_in_flight": max_in_flight,
            "max_wait_s": 3600.0,
            "inline_bytes": 0,
            "thumbnails": True,
            "marking": Marking(),
            **limits,
        }

    async def work(self, requests, meanwhile=None):
        async with FalClient("key:secret", self.hosts) as fal:
            facts = RunFacts(run_id=self.run_id, backend="sandbox", code_version="test")
            self.engine = Engine(
                fal,
                self.store,
                self.ledger,
                run=facts,
                observer=self.watcher,
                budget=self.budget,
                **self.limits,
            )
            return await (meanwhile(self.engine, requests) if meanwhile else self.engine.run(requests))

    def __call__(self, requests, meanwhile=None):
        with no_waiting():
            ended = asyncio.run(self.work(requests, meanwhile))
        return list(ended) if isinstance(ended, Outcomes) else ended


def kinds(outcomes):
    """How often each kind of outcome stands in a run's."""
    return Counter(type(outcome) for outcome in outcomes)


def test_every_row_is_paid_once_and_its_picture_stored_whole(store, sandbox, rows):
    run = Run(store, sandbox)
    outcomes = run(rows())
    assert kinds(outcomes) == {Generated: 8}
    assert sandbox.stats().accepted == 8
    for outcome in outcomes:
        image = outcome.entry.last.settled.images[0]
        with Image.open(store.folder / image.path) as picture:
            picture.load()
            assert picture.size == (image.width, image.height) == (1024, 1024)
        assert store.exists(thumbnail_path(image.path))
    assert run.engine.spent_usd == Decimal("1.20")


def test_the_outcomes_stand_in_the_order_of_the_requests(store, sandbox, rows):
    requests = rows(12)
    assert [outcome.request for outcome in Run(store, sandbox)(requests)] == requests


def test_the_observer_hears_of_every_row_and_of_the_money(store, sandbox, rows):
    run = Run(store, sandbox)
    outcomes = run(rows())
    heard = [outcome for outcome, _ in run.watcher.seen]
    assert sorted(outcome.request.prompt_id for outcome in heard) == sorted(
        o.request.prompt_id for o in outcomes
    )
    assert run.watcher.seen[-1][1] == Decimal("1.20")


def test_a_second_run_pays_for_nothing(store, sandbox, rows):
    Run(store, sandbox)(rows())
    again = Run(store, sandbox, run_id="run-2")
    assert kinds(again(rows())) == {Reused: 8}
    assert sandbox.stats().submits == 8
    assert again.engine.spent_usd == 0


def test_an_added_row_is_the_only_one_paid_for(store, sandbox, rows):
    Run(store, sandbox)(rows(8))
    assert kinds(Run(store, sandbox)(rows(9))) == {Reused: 8, Generated: 1}
    assert sandbox.stats().accepted == 9


def test_several_pictures_of_one_request_are_stored_apart(store, sandbox, rows):
    (outcome,) = Run(store, sandbox)(rows(1, num_images=3))
    images = outcome.entry.last.settled.images
    assert [image.index for image in images] == [0, 1, 2]
    assert len({image.sha256 for image in images}) == 3
    assert outcome.entry.last.settled.cost_usd == Decimal("0.45")


def test_pictures_sent_inline_are_stored_like_others(store, sandbox, rows):
    (outcome,) = Run(store, sandbox)(rows(1, sync_mode=True))
    assert isinstance(outcome, Generated)
    assert store.exists(outcome.entry.last.settled.images[0].path)


def test_a_reference_is_uploaded_once_and_not_once_a_row(store, sandbox, rows):
    Run(store, sandbox)(rows(8))
    assert sandbox.stats().uploads == 1


def test_an_upload_is_remembered_by_later_runs(store, sandbox, rows):
    Run(store, sandbox)(rows(2))
    Run(store, sandbox, run_id="run-2")(rows(4))
    assert sandbox.stats().uploads == 1


def test_an_upload_made_to_another_fal_is_not_used(store, sandbox, rows):
    Run(store, sandbox)(rows(2))
    with running_sandbox(SandboxSettings(latency_scale=0)) as other:
        assert kinds(Run(store, other, run_id="run-2")(rows(4))) == {Reused: 2, Generated: 2}
        assert other.stats().uploads == 1


@pytest.mark.parametrize(
    "left", [MARGIN / 2, LIFETIME * 5], ids=["about to expire", "noted by a wrong clock"]
)
def test_an_upload_that_may_be_gone_when_fal_fetches_it_is_made_anew(store, sandbox, rows, left):
    Run(store, sandbox)(rows(1))
    (path,) = [found.path for found in store.objects("uploads")]
    upload = Upload.model_validate_json(store.get(path))
    doubtful = upload.model_copy(update={"expires_at": datetime.now(UTC) + left})
    store.put(path, doubtful.model_dump_json().encode())
    Run(store, sandbox, run_id="run-2")(rows(2))
    assert sandbox.stats().uploads == 2


def test_an_upload_that_fal_has_lost_is_made_anew(store, sandbox, rows):
    Run(store, sandbox)(rows(1))
    sandbox.reset()
    assert kinds(Run(store, sandbox, run_id="run-2")(rows(2))) == {Reused: 1, Generated: 1}
    assert sandbox.stats().uploads == 1


def test_small_references_travel_inside_the_request_where_that_was_chosen(store, sandbox, rows):
    outcomes = Run(store, sandbox, inline_bytes=10_000)(rows(2))
    assert kinds(outcomes) == {Generated: 2}
    assert sandbox.stats().uploads == 0
    assert all(
        url.startswith("data:image/png;base64,")
        for url in sandbox.requests()[0].arguments["reference_image_urls"]
    )


def test_what_is_sent_is_what_was_planned_with_urls_for_pictures(store, sandbox, rows):
    (request,) = rows(1)
    Run(store, sandbox)([request])
    (recorded,) = sandbox.requests()
    urls = recorded.arguments["reference_image_urls"]
    assert all(url.startswith(sandbox.url) for url in urls)
    assert {
        **recorded.arguments,
        "reference_image_urls": request.arguments["reference_image_urls"],
    } == request.arguments


async def interrupted_when_all_are_submitted(engine, requests):
    task = asyncio.create_task(engine.run(requests))
    while sum(bool(entry.last.submitted) for entry in engine._books.ledger.entries.values()) < len(requests):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


def test_an_interrupted_run_is_taken_up_without_paying_again(store, sandbox, rows):
    sandbox.change(Change(latency_scale=2))
    Run(store, sandbox)(rows(), interrupted_when_all_are_submitted)
    outcomes = kinds(Run(store, sandbox, run_id="run-2")(rows()))
    assert outcomes[Generated] + outcomes[Reused] == 8
    assert sandbox.stats().accepted == 8


def test_a_submit_whose_answer_was_lost_is_found_at_fal_and_fetched(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("drop_after_accept"),)))
    assert kinds(Run(store, sandbox)(rows())) == {Generated: 8}
    stats = sandbox.stats()
    assert (stats.submits, stats.accepted) == (8, 8)


def test_a_submit_whose_answer_was_lost_at_the_very_end_is_found_once_its_request_has_ended(
    store, sandbox, rows
):
    sandbox.change(Change(latency_scale=1))
    assert kinds(Run(store, sandbox)(rows(4))) == {Generated: 4}
    sandbox.change(Change(faults=(Fault("drop_after_accept", match="scene 4"),)))
    outcomes = asyncio.run(Run(store, sandbox, run_id="run-2").work(rows(5)))  # nothing else is waited for
    assert kinds(outcomes) == {Reused: 4, Generated: 1}
    assert sandbox.stats().accepted == 5


def test_a_submit_that_fal_does_not_know_stays_unknown_and_is_never_sent_again_by_itself(
    store, sandbox, rows
):
    sandbox.change(Change(faults=(Fault("drop_before_accept", match="scene 3"),)))
    outcomes = Run(store, sandbox)(rows())
    assert kinds(outcomes) == {Generated: 7, Unknown: 1}
    assert "fal's list" in outcomes[3].reason
    assert kinds(Run(store, sandbox, run_id="run-2")(rows())) == {Reused: 7, Unknown: 1}
    assert sandbox.stats().submits == 8


def reconcile(run):
    async def look():
        async with FalClient("key:secret", run.hosts) as fal:
            return await reconcile_batch(fal, run.store, run.ledger)

    with no_waiting():
        return asyncio.run(look())


def test_a_submit_that_may_be_either_of_two_requests_at_fal_stays_unknown(store, sandbox, rows):
    (request,) = rows(1, reference_ids=())

    async def submit_by_hand():
        async with FalClient("key:secret", Run(store, sandbox).hosts) as fal:
            await fal.submit(request.endpoint_id, request.arguments)

    asyncio.run(submit_by_hand())
    sandbox.change(Change(faults=(Fault("drop_after_accept"),)))
    (outcome,) = Run(store, sandbox, api=NOWHERE)([request])
    assert isinstance(outcome, Unknown)
    while sandbox.stats().completed < 2:
        pass  # fal lists what has ended, and nothing before
    (found,) = reconcile(Run(store, sandbox))
    assert (found.found, found.reason) == (None, "fal's list holds 2 requests with the same input")
    assert kinds(Run(store, sandbox, run_id="run-2")([request])) == {Unknown: 1}
    assert sandbox.stats().accepted == 2


def test_a_list_of_fals_that_is_cut_short_is_not_believed(store, sandbox, rows, monkeypatch):
    requests = rows(110, reference_ids=())  # of which fal's first page holds 100
    sandbox.change(Change(faults=(Fault("drop_after_accept", match="scene 107"),)))
    with monkeypatch.context() as patch:
        patch.setattr("ideogram_pipeline.generation.reconcile.MAX_LISTED", 50)
        outcomes = Run(store, sandbox, thumbnails=False)(requests)
    assert kinds(outcomes) == {Generated: 109, Unknown: 1}
    assert "more than 50 requests" in outcomes[107].reason
    assert kinds(Run(store, sandbox, run_id="run-2")(requests)) == {Reused: 109, Generated: 1}
    assert sandbox.stats().accepted == 110


def test_an_unanswered_submit_is_sent_again_once_somebody_gave_it_up(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("drop_before_accept", match="scene 3"),)))
    run = Run(store, sandbox)
    run(rows())
    (fingerprint,) = unanswered(run.ledger.entries)
    asyncio.run(give_up(run.ledger, fingerprint))
    outcomes = Run(store, sandbox, run_id="run-2")(rows())
    assert kinds(outcomes) == {Reused: 7, Generated: 1}
    assert outcomes[3].entry.paid_attempts == 2


def test_a_row_that_a_live_run_is_submitting_is_left_to_it(store, sandbox, rows):
    (request,) = rows(1)

    async def reserve():
        await Ledger(store, BATCH).reserve(reserved(request, "other"))
        with beating(store, "other") as beat:
            while not store.exists(beat):
                await asyncio.sleep(0)
            return await Run(store, sandbox).work([request])

    (outcome,) = asyncio.run(reserve())
    assert isinstance(outcome, NotReached)
    assert "other" in outcome.reason
    assert not is_missing(outcome)
    assert isinstance(Run(store, sandbox)([request])[0], Unknown)
    assert sandbox.stats().submits == 0


def test_a_row_that_the_same_run_left_in_doubt_in_a_process_that_died_is_looked_for_at_fal(
    store, sandbox, rows
):
    (request,) = rows(1)
    asyncio.run(Ledger(store, BATCH).reserve(reserved(request, "run-1")))
    (outcome,) = Run(store, sandbox, run_id="run-1")([request])
    assert isinstance(outcome, Unknown)
    assert "fal's list" in outcome.reason
    assert sandbox.stats().submits == 0


def test_the_brake_stops_a_batch_whose_first_rows_all_end_alike(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("policy_refusal"),)))
    outcomes = Run(store, sandbox, max_in_flight=2)(rows(40))
    assert kinds(outcomes)[NotReached] >= 20
    assert "content_policy_violation" in outcomes[-1].reason or "content" in outcomes[-1].reason
    assert BRAKE_AFTER <= sandbox.stats().accepted <= 20


@pytest.mark.slow
def test_the_brake_takes_back_what_fal_has_only_queued(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("policy_refusal"),), concurrency=1, latency_scale=0.1))
    outcomes = Run(store, sandbox, max_in_flight=40)(rows(40))
    ended = kinds(outcomes)
    assert sandbox.stats().accepted == 40
    assert ended[NotReached] >= 5
    assert ended[NotReached] + ended[Refused] == 40
    assert {
        outcome.entry.last.settled.cost_usd for outcome in outcomes if isinstance(outcome, NotReached)
    } == {0}


def test_one_good_picture_releases_the_brake(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("policy_refusal", match="scene 1"),)))
    outcomes = Run(store, sandbox, max_in_flight=1)(rows(20))
    assert kinds(outcomes) == {Generated: 9, Refused: 11}


def test_a_submit_that_was_surely_not_accepted_is_sent_again(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("submit_429"),)))
    outcomes = Run(store, sandbox)(rows())
    assert kinds(outcomes) == {Generated: 8}
    assert {outcome.entry.paid_attempts for outcome in outcomes} == {1}
    stats = sandbox.stats()
    assert (stats.accepted, stats.duplicates) == (8, 0)
    assert stats.submits > 8


def test_a_locked_account_stops_the_batch_and_leaves_nothing_owed(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("locked_balance"),)))
    outcomes = Run(store, sandbox, max_in_flight=2)(rows())
    assert kinds(outcomes) == {NotReached: 8}
    assert "fal.ai/dashboard/billing" in outcomes[-1].reason
    assert sandbox.stats().submits <= 2
    sandbox.change(Change(faults=()))
    assert kinds(Run(store, sandbox, run_id="run-2")(rows())) == {Generated: 8}


def test_a_refused_row_costs_the_others_nothing_and_is_not_asked_again(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("policy_refusal", match="scene 3"),)))
    outcomes = Run(store, sandbox)(rows())
    assert kinds(outcomes) == {Generated: 7, Refused: 1}
    assert "content_policy_violation" in outcomes[3].reason or "content" in outcomes[3].reason
    assert kinds(Run(store, sandbox)(rows())) == {Reused: 7, Refused: 1}
    assert sandbox.stats().accepted == 8


def test_a_request_that_fal_lost_is_submitted_again_a_limited_number_of_times(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("runner_503", match="scene 3"),)))
    outcomes = Run(store, sandbox)(rows())
    assert kinds(outcomes) == {Generated: 7, Failed: 1}
    assert outcomes[3].entry.paid_attempts == MAX_ATTEMPTS
    assert sandbox.stats().accepted == 7 + MAX_ATTEMPTS
    assert kinds(Run(store, sandbox)(rows())) == {Reused: 7, Failed: 1}
    assert sandbox.stats().accepted == 7 + MAX_ATTEMPTS


@pytest.mark.parametrize("thumbnails", [True, False])
@pytest.mark.parametrize("kind", ["truncated_download", "corrupt_download"])
def test_a_damaged_download_is_fetched_again_and_not_stored(store, sandbox, rows, kind, thumbnails):
    sandbox.change(Change(faults=(Fault(kind),)))
    outcomes = Run(store, sandbox, thumbnails=thumbnails)(rows(4))
    assert kinds(outcomes) == {Generated: 4}
    for outcome in outcomes:
        with Image.open(store.folder / outcome.entry.last.settled.images[0].path) as picture:
            picture.load()
    assert sandbox.stats().downloads > 4


def test_a_request_that_takes_too_long_is_left_with_fal_and_the_others_go_on(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("stuck", match="scene 3"),)))
    outcomes = Run(store, sandbox, max_wait_s=0.5)(rows())
    assert kinds(outcomes) == {Generated: 7, NotReached: 1}
    assert outcomes[3].entry.last.submitted.request_id in outcomes[3].reason
    again = Run(store, sandbox, run_id="run-2", max_wait_s=0.5)(rows())
    assert kinds(again) == {Reused: 7, NotReached: 1}
    assert sandbox.stats().submits == 8


def test_without_thumbnails_only_the_pictures_are_stored(store, sandbox, rows):
    (outcome,) = Run(store, sandbox, thumbnails=False)(rows(1))
    image = outcome.entry.last.settled.images[0]
    assert store.exists(image.path)
    assert not store.exists(thumbnail_path(image.path))
    with Image.open(store.folder / image.path) as picture:
        assert picture.size == (image.width, image.height)


def test_what_is_with_fal_already_is_asked_about_before_anything_new_is_sent(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("stuck"),)))
    Run(store, sandbox)(rows(9)[8:], interrupted_when_all_are_submitted)
    asked = sandbox.stats().status_calls

    async def until_one_is_asked_about(engine, requests):
        task = asyncio.create_task(engine.run(requests))
        while await asyncio.to_thread(lambda: sandbox.stats().status_calls) == asked:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    Run(store, sandbox, run_id="run-2", max_in_flight=1)(rows(9), until_one_is_asked_about)
    assert sandbox.stats().submits == 1


def test_a_picture_that_cannot_be_fetched_is_fetched_by_the_next_run(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("missing_download", match="scene 3"),)))
    outcomes = Run(store, sandbox)(rows())
    assert kinds(outcomes) == {Generated: 7, Failed: 1}
    assert "next run" in outcomes[3].reason
    sandbox.change(Change(faults=()))
    assert kinds(Run(store, sandbox, run_id="run-2")(rows())) == {Reused: 7, Generated: 1}
    assert sandbox.stats().accepted == 8


def test_an_expired_result_is_taken_from_fals_list(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("expired_result", match="scene 3"),)))
    assert kinds(Run(store, sandbox)(rows())) == {Generated: 8}
    assert sandbox.stats().accepted == 8


def test_a_result_that_is_gone_leaves_its_row_open_where_fals_list_says_nothing(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("expired_result", match="scene 3"),)))
    left = Run(store, sandbox, api=NOWHERE)(rows())[3]
    assert isinstance(left, NotReached)
    assert f"{left.entry.last.submitted.request_id} is with fal, could not be read yet" in left.reason
    assert isinstance(Run(store, sandbox)(rows())[3], Generated)
    assert sandbox.stats().accepted == 8


def test_two_runs_on_one_batch_at_once_pay_for_every_row_once(store, sandbox, rows):
    requests = rows(30)

    async def both():
        first, second = Run(store, sandbox, run_id="a"), Run(store, sandbox, run_id="b")
        return await asyncio.gather(first.work(requests), second.work(list(reversed(requests))))

    with no_waiting():
        one, other = asyncio.run(both())
    assert sandbox.stats().accepted == 30
    assert kinds(one)[Generated] + kinds(other)[Generated] == 30
    assert kinds(Run(store, sandbox)(requests)) == {Reused: 30}


def test_what_is_cancelled_is_submitted_again_only_by_a_later_run(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("stuck"),), concurrency=1))

    async def cancel(engine, requests):
        await interrupted_when_all_are_submitted(engine, requests)
        return await engine.cancel_queued()

    assert Run(store, sandbox)(rows(4), cancel) == 3
    assert sandbox.stats().accepted == 4
    sandbox.change(Change(faults=(), concurrency=10))
    assert kinds(Run(store, sandbox, run_id="run-2")(rows(4))) == {Generated: 4}
    assert sandbox.stats().accepted == 8


def test_a_store_that_fails_ends_the_run_and_what_was_submitted_is_fetched_later(store, sandbox, rows):
    (store.folder / "images").write_text("in the way")
    with pytest.raises(StoreError, match="images"):
        Run(store, sandbox)(rows())
    (store.folder / "images").unlink()
    accepted = sandbox.stats().accepted
    outcomes = Run(store, sandbox, run_id="run-2")(rows())
    assert kinds(outcomes) == {Generated: 8}
    assert sandbox.stats().accepted == 8 >= accepted


def test_two_runs_that_take_up_the_same_rows_both_end_with_their_pictures(store, sandbox, rows):
    sandbox.change(Change(latency_scale=1))
    Run(store, sandbox)(rows(), interrupted_when_all_are_submitted)

    async def both():
        return await asyncio.gather(*(Run(store, sandbox, run_id=name).work(rows()) for name in "ab"))

    with no_waiting():
        outcomes = [outcome for run in asyncio.run(both()) for outcome in run]
    assert kinds(outcomes)[Generated] + kinds(outcomes)[Reused] == 16
    assert sandbox.stats().accepted == 8


def test_the_budget_of_a_run_holds_and_the_next_run_goes_on(store, sandbox, rows):
    outcomes = Run(store, sandbox, per_run_usd=Decimal("0.50"))(rows())
    assert kinds(outcomes) == {Generated: 3, NotReached: 5}
    assert "IDEOGRAM_BUDGET_USD" in outcomes[-1].reason
    assert sandbox.stats().accepted == 3
    assert kinds(Run(store, sandbox, run_id="run-2")(rows())) == {Reused: 3, Generated: 5}


def test_what_turns_out_free_is_given_back_to_the_budget(store, sandbox, rows):
    sandbox.change(Change(faults=(Fault("runner_503", match="scene 0"),)))
    outcomes = Run(store, sandbox, per_run_usd=Decimal("0.60"), max_in_flight=1)(rows(4))
    assert kinds(outcomes) == {Failed: 1, Generated: 3}


@on_s3
def test_on_s3_every_row_is_paid_once_and_a_second_run_pays_for_nothing(store, sandbox, rows):
    assert kinds(Run(store, sandbox)(rows())) == {Generated: 8}
    assert kinds(Run(store, sandbox, run_id="run-2")(rows())) == {Reused: 8}
    assert sandbox.stats().submits == 8


def fetched(s3_wire):
    """The signed URLs by which references were fetched."""
    return [target for method, target in s3_wire.seen if method == "GET" and "X-Amz-Signature" in target]


@on_s3
def test_a_reference_in_s3_is_fetched_by_a_signed_url_that_nothing_keeps(
    store, sandbox, rows, s3_wire, caplog
):
    assert kinds(Run(store, sandbox)(rows())) == {Generated: 8}
    assert sandbox.stats().uploads == 0
    assert fetched(s3_wire)
    assert {urlsplit(target).path.rpartition("/")[2] for target in fetched(s3_wire)} == {
        found.path.rpartition("/")[2] for found in store.objects("references")
    }
    assert not any(b"X-Amz" in store.get(found.path) for found in store.objects(""))
    assert "X-Amz" not in caplog.text


@on_s3
def test_a_photo_that_exif_turns_is_signed_for_as_its_upright_copy(store, sandbox, tmp_path, s3_wire):
    tags = Image.Exif()
    tags[0x0112] = 8
    Image.effect_noise((64, 48), 50).save(tmp_path / "phone.jpg", exif=tags)
    (tmp_path / "phones.csv").write_text("reference_id,uri\nphone,phone.jpg\n")
    phone = read_references(str(tmp_path / "phones.csv"), store).references
    row = PromptRow(prompt_id="p", batch=BATCH, row_number=1, prompt="x", reference_ids=("phone",))
    request = plan_row(row, References.of(phone, ()))
    assert kinds(Run(store, sandbox)([request])) == {Generated: 1}
    (path,) = {urlsplit(target).path for target in fetched(s3_wire)}
    (use,) = request.pictures
    assert path.endswith(f"/references/{use.sha256}.{use.sent_sha256}.jpg")
    assert hashlib.sha256(store.get(use.sent[1])).hexdigest() == use.sent_sha256
    assert sandbox.stats().uploads == 0


def test_the_address_of_a_photo_that_exif_turns_is_not_passed_on(references):
    turned = references.usable["ada"].model_copy(
        update={"uri": "https://example.org/ada.png", "sent_sha256": "0" * 64, "sent_bytes": 100}
    )
    row = PromptRow(prompt_id="p", batch=BATCH, row_number=1, prompt="x", reference_ids=("ada",))
    request = plan_row(row, References.of([turned], ()), pass_urls=True)
    assert [use.by_address for use in request.pictures] == [False]
    assert "IDEOGRAM_PASS_URLS" not in " ".join(request.advice)
    straight = turned.model_copy(update={"sent_sha256": None})
    assert plan_row(row, References.of([straight], ()), pass_urls=True).fingerprint == request.fingerprint


@on_s3
def test_a_signed_url_serves_several_requests_and_not_for_ever(store, sandbox, rows, s3_wire, monkeypatch):
    def looked_at():
        return sum("/references/" in target and "X-Amz" not in target for _, target in s3_wire.seen)

    requests = rows(9)
    before = looked_at()
    Run(store, sandbox)(requests[:6])
    assert looked_at() - before == 1
    monkeypatch.setattr(uploads, "SIGN_AGAIN_S", 0.0)
    Run(store, sandbox, run_id="run-2", max_in_flight=1)(requests)
    assert looked_at() - before == 1 + 3


@on_s3
def test_what_fal_cannot_fetch_by_its_signed_url_is_uploaded(store, sandbox, rows, s3_wire):
    s3_wire.fail("AccessDenied", "GET", "X-Amz-Signature", times=float("inf"))
    (outcome,) = Run(store, sandbox)(rows(1))
    assert isinstance(outcome, Generated)
    assert [attempt.settled.state for attempt in outcome.entry.attempts] == ["refused", "generated"]
    assert sandbox.stats().uploads == 1
    assert not any(b"X-Amz" in store.get(found.path) for found in store.objects(""))


@on_s3
def test_a_bucket_whose_signed_urls_fal_cannot_read_stops_no_batch_and_is_remembered(
    store, sandbox, rows, s3_wire, caplog
):
    s3_wire.fail("AccessDenied", "GET", "X-Amz-Signature", times=float("inf"))
    assert kinds(Run(store, sandbox)(rows(30))) == {Generated: 30}
    assert sandbox.stats().uploads == 1
    assert f"fal can't read from {store.url} at {s3_wire.url}" in caplog.text
    signed, accepted = len(fetched(s3_wire)), sandbox.stats().accepted
    assert kinds(Run(store, sandbox, run_id="run-2")(rows(40))) == {Reused: 30, Generated: 10}
    assert (len(fetched(s3_wire)), sandbox.stats().uploads) == (signed, 1)
    assert sandbox.stats().accepted == accepted + 10
    (note,) = [found.path for found in store.objects("uploads/unreadable")]
    store.delete(note)
    s3_wire.mend()
    assert kinds(Run(store, sandbox, run_id="run-3")(rows(41))) == {Reused: 40, Generated: 1}
    assert len(fetched(s3_wire)) == signed + 1


@on_s3
def test_a_row_that_was_refused_for_good_because_fal_could_not_read_it_is_made(store, sandbox, rows, s3_wire):
    (request,) = rows(1)
    ledger = Ledger(store, BATCH)
    unread = ModelRefused(message="422 (file_download_error)", details=(ErrorDetail(UNFETCHED, "no"),))

    async def refuse():
        books = Books(ledger, Run(store, sandbox).budget, RunFacts("run-0", "sandbox", "test"))
        for attempt in range(MAX_ATTEMPTS):
            await books.reserve(request, {}, uploaded=False)
            queued = QueuedRequest(request.endpoint_id, f"id-{attempt}", *["https://queue.example/x"] * 3)
            await books.submitted(request, queued)
            await books.ended(request, unread, again=True, attempt=attempt + 1)

    asyncio.run(refuse())
    assert ledger.entries[request.fingerprint].state == "retryable"
    (outcome,) = Run(store, sandbox)([request])
    assert isinstance(outcome, Generated)


@pytest.mark.parametrize("by_address", [False, True])
def test_a_reference_on_the_web_is_uploaded_unless_its_address_is_to_be_passed_on(
    store, sandbox, references, by_address
):
    address = "https://intranet.invalid/ada.png"
    ada = references.usable["ada"].model_copy(update={"uri": address})
    row = PromptRow(prompt_id="p", batch=BATCH, row_number=1, prompt="x", reference_ids=("ada",))
    requests = [
        plan_row(
            row.model_copy(update={"prompt_id": f"p{number}"}), References.of([ada], ()), pass_urls=by_address
        )
        for number in range(8)
    ]
    advice = " ".join(requests[0].advice)
    assert ("reference_id: fal is given the address (IDEOGRAM_PASS_URLS)" in advice) is by_address
    assert kinds(Run(store, sandbox)(requests)) == {Generated: 8}
    sent = [tuple(one.arguments["reference_image_urls"]) for one in sandbox.requests()]
    assert ((address,) in sent) is by_address  # and as it can't be fetched there, it is uploaded next
    assert sandbox.stats().uploads == 1
    again = plan_row(row, References.of([ada], ()), pass_urls=by_address)
    assert kinds(Run(store, sandbox, run_id="run-2")([again])) == {Generated: 1}
    assert sandbox.requests()[-1].arguments["reference_image_urls"] != [address]
    assert bool(list(store.objects("uploads/unreadable"))) is by_address


def test_an_upload_that_fal_has_lost_stops_no_batch_and_is_made_anew_once(store, sandbox, rows):
    Run(store, sandbox)(rows(1))
    sandbox.reset()
    assert kinds(Run(store, sandbox, run_id="run-2")(rows(30))) == {Reused: 1, Generated: 29}
    assert sandbox.stats().uploads == 1


def test_the_brake_stops_a_batch_whose_uploads_fal_can_not_read_either(store, sandbox, rows, serve):
    async def forgetful(request):
        url = str(request.base_url)
        there = request.method != "GET"
        return JSONResponse({"upload_url": f"{url}put", "file_url": f"{url}gone.png"}, 200 if there else 404)

    run = Run(store, sandbox, max_in_flight=2)
    run.hosts = dataclasses.replace(
        run.hosts,
        rest=serve(Starlette(routes=[Route("/{path:path}", forgetful, methods=["GET", "POST", "PUT"])])),
    )
    outcomes = run(rows(40))
    assert kinds(outcomes)[NotReached] >= 20
    assert UNFETCHED in outcomes[-1].reason
    assert BRAKE_AFTER <= sandbox.stats().accepted <= 40


@on_s3
def test_where_the_credentials_end_before_the_queue_may_references_are_uploaded(
    s3, s3_wire, sandbox, rows, store, monkeypatch
):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a token whose end nobody knows")
    assert kinds(Run(Store.open(store.url), sandbox)(rows(3))) == {Generated: 3}
    assert (sandbox.stats().uploads, fetched(s3_wire)) == (1, [])


@on_s3
def test_a_reference_that_was_changed_in_the_store_is_not_sent(store, sandbox, rows, s3_wire):
    requests = rows(2)
    store.put(requests[0].pictures[0].path, b"other bytes")
    outcomes = Run(store, sandbox)(requests)
    assert kinds(outcomes) == {NotReached: 2}
    assert "is damaged" in outcomes[0].reason
    assert (sandbox.stats().submits, fetched(s3_wire)) == (0, [])


@on_s3
def test_a_lost_answer_to_a_submit_with_a_signed_url_is_found_at_fal(store, sandbox, rows, s3_wire):
    sandbox.change(Change(faults=(Fault("drop_after_accept"),)))
    assert kinds(Run(store, sandbox)(rows())) == {Generated: 8}
    assert sandbox.stats().accepted == 8
    assert fetched(s3_wire)


@on_s3
@pytest.mark.parametrize("fault", ["lose the answer", "SlowDown", "reset"])
@pytest.mark.parametrize("step", ["reserved", "submitted", "settled", "images"])
def test_a_store_that_fails_at_every_other_write_pays_nothing_twice(
    store, sandbox, rows, s3_wire, fault, step
):
    s3_wire.fail(fault, "PUT", step, times=4)
    assert kinds(Run(store, sandbox)(rows(4, reference_ids=()))) == {Generated: 4}
    assert (sandbox.stats().accepted, s3_wire.failed) == (4, 4)
    assert kinds(Run(store, sandbox, run_id="run-2")(rows(4, reference_ids=()))) == {Reused: 4}


@on_s3
def test_a_bucket_that_denies_everything_ends_the_run_and_the_next_one_finds_what_was_paid(
    store, sandbox, rows, s3_wire
):
    s3_wire.fail("AccessDenied", "PUT", "settled", times=float("inf"))
    with stamina.set_testing(True, attempts=2), pytest.raises(StoreError, match="access is denied"):
        Run(store, sandbox)(rows())
    s3_wire.mend()
    accepted = sandbox.stats().accepted
    assert accepted > 0
    outcomes = kinds(Run(store, sandbox, run_id="run-2")(rows()))
    assert outcomes == {Generated: 8}
    assert sandbox.stats().accepted == 8


@pytest.mark.parametrize(
    ("url", "queue", "reached"),
    [
        ("https://8.8.8.8", "https://queue.fal.run", True),
        ("http://8.8.8.8", "https://queue.fal.run", False),
        ("https://10.0.0.1:9000", "https://queue.fal.run", False),
        ("https://localhost:9000", "https://queue.fal.run", False),
        ("https://minio.invalid", "https://queue.fal.run", False),
        ("http://localhost:9000", "http://127.0.0.1:7", True),
    ],
)
def test_fal_fetches_from_public_servers_by_https_and_a_stand_in_here_from_any(url, queue, reached):
    assert asyncio.run(is_within_reach(url, FalHosts(queue=queue))) is reached


NOWHERE = "http://127.0.0.1:9"
"""An address where nobody listens."""


@pytest.fixture
def receiver(store, sandbox, serve, monkeypatch):
    """The address of a receiver that puts the sandbox's deliveries into the store."""
    monkeypatch.setattr(inbox, "LOOK_EVERY_S", 0.05)
    return serve(build_app(Settings(backend="sandbox", store=store.url, fal_queue_url=sandbox.url)))


def letters(store):
    return list(store.objects(f"inbox/batch={BATCH}"))


def wait_until(true):
    while not true():
        asyncio.run(asyncio.sleep(0.01))


def test_what_fal_delivers_is_not_asked_for(store, sandbox, rows, receiver):
    sandbox.change(Change(latency_scale=0.5))
    outcomes = Run(store, sandbox, webhook_url=receiver)(rows())
    assert kinds(outcomes) == {Generated: 8}
    stats = sandbox.stats()
    assert (stats.submits, stats.status_calls, stats.result_calls, stats.downloads) == (8, 0, 0, 8)
    assert {outcome.entry.last.settled.inference_s for outcome in outcomes} == {None}
    assert {outcome.entry.last.settled.cost_usd for outcome in outcomes} == {Decimal("0.15")}
    assert letters(store) == []


def test_what_is_delivered_twice_late_or_out_of_order_changes_nothing(store, sandbox, rows, receiver):
    faults = (Fault("webhook_twice"), Fault("webhook_late", match="scene 3"))
    sandbox.change(Change(latency_scale=0.5, faults=faults))
    assert kinds(Run(store, sandbox, webhook_url=receiver)(rows())) == {Generated: 8}
    wait_until(lambda: sandbox.stats().webhooks == 16)
    assert kinds(Run(store, sandbox, run_id="run-2", webhook_url=receiver)(rows())) == {Reused: 8}
    assert letters(store) == []
    stats = sandbox.stats()
    assert (stats.accepted, stats.images, stats.status_calls) == (8, 8, 0)


def test_what_is_not_delivered_is_asked_for(store, sandbox, rows, receiver, monkeypatch):
    monkeypatch.setattr(polling, "SWEEP_S", 1.0)
    sandbox.change(Change(faults=(Fault("webhook_lost", match="scene 3"),)))
    assert kinds(Run(store, sandbox, webhook_url=receiver)(rows())) == {Generated: 8}
    stats = sandbox.stats()
    assert (stats.accepted, stats.webhooks, stats.result_calls) == (8, 7, 1)
    assert stats.status_calls == 1


def test_without_a_receiver_a_run_takes_longer_and_pays_the_same(store, sandbox, rows, monkeypatch):
    monkeypatch.setattr(polling, "SWEEP_S", 0.5)
    assert kinds(Run(store, sandbox, webhook_url=NOWHERE)(rows(24))) == {Generated: 24}
    assert sandbox.stats().accepted == 24


@pytest.mark.parametrize("max_in_flight", [16, 1])
def test_a_lost_answer_is_found_by_the_address_it_gave_where_fals_list_says_nothing(
    store, sandbox, rows, receiver, max_in_flight
):
    sandbox.change(Change(latency_scale=0.5, faults=(Fault("drop_after_accept"),)))
    run = Run(store, sandbox, webhook_url=receiver, api=NOWHERE, max_in_flight=max_in_flight)
    outcomes = run(rows(4))
    assert kinds(outcomes) == {Generated: 4}
    stats = sandbox.stats()
    assert (stats.submits, stats.accepted, stats.duplicates) == (4, 4, 0)
    answered = {one.request_id: one.arguments["prompt"] for one in sandbox.requests()}
    assert [answered[outcome.entry.last.submitted.request_id] for outcome in outcomes] == [
        outcome.request.arguments["prompt"] for outcome in outcomes
    ]
    assert letters(store) == []


def test_a_delivery_after_the_run_is_found_by_reconciling(store, sandbox, rows, receiver, monkeypatch):
    monkeypatch.setattr(polling, "SWEEP_S", 0.0)
    sandbox.change(Change(latency_scale=0.5, faults=(Fault("drop_after_accept"), Fault("webhook_late"))))
    assert kinds(Run(store, sandbox, webhook_url=receiver, api=NOWHERE)(rows(3))) == {Unknown: 3}
    wait_until(lambda: len(letters(store)) == 3)
    found = reconcile(Run(store, sandbox, run_id="later", api=NOWHERE))
    assert {one.found for one in found} == {one.request_id for one in sandbox.requests()}
    again = Run(store, sandbox, run_id="run-2", webhook_url=receiver, api=NOWHERE)
    assert kinds(again(rows(3))) == {Generated: 3}
    stats = sandbox.stats()
    assert (stats.submits, stats.accepted, stats.result_calls) == (3, 3, 0)
    assert letters(store) == []


def post_foreign_letter(store, request, request_id):
    letter = Letter(
        request_id=request_id,
        user_id="somebody",
        payload={"images": [{"url": f"{NOWHERE}/foreign.png"}], "seed": 1},
    )
    asyncio.run(put_letter(store, Address(BATCH, request.fingerprint, 1), letter))


def test_what_is_delivered_of_a_request_of_somebody_else_is_nobodys(store, sandbox, rows, receiver):
    requests = rows(4)
    for request in requests:
        post_foreign_letter(store, request, "019e161b-386c-7d33-8106-f2de1a3ff595")
    sandbox.change(Change(faults=(Fault("drop_before_accept", match="scene 3"),)))
    run = Run(store, sandbox, webhook_url=receiver)
    outcomes = run(requests[:3])
    assert kinds(outcomes) == {Generated: 3}
    for outcome in outcomes:
        with Image.open(store.folder / outcome.entry.last.settled.images[0].path) as picture:
            picture.load()
    own = outcomes[0].entry.last.submitted.request_id
    post_foreign_letter(store, requests[3], own)
    alone = Run(store, sandbox, run_id="run-2")
    assert isinstance(alone(requests[3:])[0], Unknown)
    assert [one.found for one in reconcile(alone)] == [None]


def test_what_was_delivered_while_no_run_was_there_is_not_asked_for(store, sandbox, rows, receiver):
    sandbox.change(Change(latency_scale=1))
    Run(store, sandbox, webhook_url=receiver)(rows(), interrupted_when_all_are_submitted)
    wait_until(lambda: len(letters(store)) == 8)
    assert kinds(Run(store, sandbox, run_id="run-2", webhook_url=receiver)(rows())) == {Generated: 8}
    stats = sandbox.stats()
    assert (stats.submits, stats.status_calls, stats.result_calls) == (8, 0, 0)


def test_a_delivered_refusal_is_read_in_full_from_fal(store, sandbox, rows, receiver):
    sandbox.change(Change(faults=(Fault("policy_refusal", match="scene 3"),)))
    outcomes = Run(store, sandbox, webhook_url=receiver)(rows())
    assert kinds(outcomes) == {Generated: 7, Refused: 1}
    assert "content_policy_violation" in outcomes[3].reason
    stats = sandbox.stats()
    assert (stats.status_calls, stats.result_calls) == (1, 3)  # an end counts once it was told three times


def test_a_request_whose_end_never_comes_is_left_with_fal_in_time(store, sandbox, rows, receiver):
    sandbox.change(Change(faults=(Fault("stuck", match="scene 3"),)))
    outcomes = Run(store, sandbox, webhook_url=receiver, max_wait_s=1.0)(rows())
    assert kinds(outcomes) == {Generated: 7, NotReached: 1}


def test_pictures_say_what_made_them_and_both_digests_are_kept(store, sandbox, rows):
    (outcome,) = Run(store, sandbox)(rows(1))
    last, request = outcome.entry.last, outcome.request
    (image,) = last.settled.images
    content = store.get(image.path)
    said = marks.read(content)
    assert said == marks.Marks(
        source_type=marks.ALGORITHM,
        system="ideogram_pipeline sandbox: a drawing, not a model's picture",
        system_version=f"test, for {request.endpoint_id}",
        prompt_sha256=hashlib.sha256(request.arguments["prompt"].encode()).hexdigest(),
        prompt_id=request.prompt_id,
        fingerprint=request.fingerprint,
        request_id=last.submitted.request_id,
        seed=last.settled.seed,
        image_index=0,
        backend="sandbox",
    )
    assert hashlib.sha256(content).hexdigest() == image.sha256
    url = result_of(sandbox, request, last.submitted)["images"][0]["url"]
    received = httpx2.get(url).content
    assert hashlib.sha256(received).hexdigest() == image.sha256_received
    with Image.open(io.BytesIO(content)) as ours, Image.open(io.BytesIO(received)) as theirs:
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("told", [True, False])
def test_a_lost_picture_comes_back_with_the_marks_it_had(store, sandbox, rows, told):
    (outcome,) = Run(store, sandbox, marking=Marking(told))(rows(1))
    (image,) = outcome.entry.last.settled.images
    before = store.get(image.path)
    assert (marks.read(before).prompt == outcome.request.arguments["prompt"]) is told
    store.delete(image.path)
    (again,) = Run(store, sandbox, marking=Marking(not told))(rows(1))
    assert isinstance(again, Reused)
    assert store.get(image.path) == before
    assert sandbox.stats().accepted == 1


@pytest.fixture(scope="module")
def signing(certificate):
    return Marking(signer=Signer.load(str(certificate.chain), str(certificate.key)))


def test_pictures_are_signed_with_what_they_were_made_from(store, sandbox, rows, signing):
    (outcome,) = Run(store, sandbox, marking=signing)(rows(1))
    last = outcome.entry.last
    (image,) = last.settled.images
    content = store.get(image.path)
    assert hashlib.sha256(content).hexdigest() == image.sha256
    assert marks.read(content).request_id == last.submitted.request_id
    found = credentials.read(content)
    assert (found.state, found.manifest_id) == ("valid", image.manifest_id)
    assert (found.request_id, found.source_type) == (last.submitted.request_id, marks.ALGORITHM)
    digests = {use.sha256 for use in outcome.request.pictures}
    assert found.ingredients == tuple(f"inputTo sha256:{digest}" for digest in digests)
    assert digests


def test_a_lost_picture_comes_back_as_it_was_signed(store, sandbox, rows, signing):
    (outcome,) = Run(store, sandbox, marking=signing)(rows(1))
    (image,) = outcome.entry.last.settled.images
    before = store.get(image.path)
    store.delete(image.path)
    (again,) = Run(store, sandbox)(rows(1))
    assert isinstance(again, Reused)
    assert store.get(image.path) == before
    assert sandbox.stats().accepted == 1


def test_a_picture_that_is_lost_with_its_signature_is_reported(store, sandbox, rows, signing):
    (outcome,) = Run(store, sandbox, marking=signing)(rows(1))
    (image,) = outcome.entry.last.settled.images
    store.delete(image.path)
    store.delete(signature_path(image.path))
    (again,) = Run(store, sandbox, marking=signing)(rows(1))
    assert isinstance(again, Failed)
    assert "is gone from the store and can't be had again" in again.reason
    assert f"`ideogram-pipeline replay {outcome.entry.last.submitted.request_id} --send`" in again.reason
    assert not store.exists(image.path)
    assert sandbox.stats().accepted == 1


def test_a_picture_whose_reference_is_gone_is_signed_all_the_same(store, sandbox, rows, signing):
    (request,) = rows(1)
    sandbox.change(Change(latency_scale=1))
    Run(store, sandbox, marking=signing)([request], interrupted_when_all_are_submitted)
    for use in request.pictures:
        store.delete(use.path)
    (outcome,) = Run(store, sandbox, run_id="run-2", marking=signing)([request])
    assert isinstance(outcome, Generated)
    (image,) = outcome.entry.last.settled.images
    assert len(credentials.read(store.get(image.path)).ingredients) == len(request.pictures)


@pytest.mark.parametrize("signed", [False, True])
def test_a_lost_picture_of_an_older_program_comes_back_with_the_marks_of_that_time(
    store, sandbox, rows, signing, monkeypatch, signed
):
    """Its ledger entry knows no version: it is the first one, whose namespace exiv2 spoilt."""
    marking = signing if signed else Marking(True)
    with monkeypatch.context() as older:
        older.setitem(marks_of.__kwdefaults__, "version", 1)
        (outcome,) = Run(store, sandbox, marking=marking)(rows(1))
    settled = store.folder / f"ledger/batch={BATCH}/{outcome.request.fingerprint}/1-settled.json"
    entry = json.loads(settled.read_text())
    (image,) = entry["images"]
    assert image.pop("marks_version") == 1
    settled.write_text(json.dumps(entry))
    before = store.get(image["path"])
    assert marks.read(before).version == 1
    store.delete(image["path"])
    (again,) = Run(store, sandbox, marking=signing)(rows(1))
    assert isinstance(again, Reused)
    assert store.get(image["path"]) == before
    assert sandbox.stats().accepted == 1


def test_a_picture_that_was_stored_without_marks_comes_back_without(store, sandbox, rows):
    (outcome,) = Run(store, sandbox)(rows(1))
    settled = store.folder / f"ledger/batch={BATCH}/{outcome.request.fingerprint}/1-settled.json"
    entry = json.loads(settled.read_text())
    (image,) = entry["images"]
    image["sha256"] = image.pop("sha256_received")
    url = result_of(sandbox, outcome.request, outcome.entry.last.submitted)["images"][0]["url"]
    image["bytes"] = len(received := httpx2.get(url).content)
    settled.write_text(json.dumps(entry))
    store.delete(image["path"])
    (again,) = Run(store, sandbox)(rows(1))
    assert isinstance(again, Reused)
    assert store.get(image["path"]) == received


def result_of(sandbox, request, submitted):
    """What the sandbox's queue has of a request."""
    return httpx2.get(submitted.response_url, headers={"Authorization": "Key key:secret"}).json()

"""Requests that hang at fal: what is cancelled or given up, and what never is, over loopback HTTP."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from ideogram_pipeline.fal import Completed, FalClient, FalHosts, no_waiting
from ideogram_pipeline.generation.cancelling import cancel, look, oldest, with_fal
from ideogram_pipeline.generation.giving_up import give_up_batch
from ideogram_pipeline.generation.ledger import Ledger, Reserved, Submitted
from ideogram_pipeline.generation.planner import References, plan_row
from ideogram_pipeline.generation.runs import working
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.rows import PromptRow

BATCH = "drop"


@pytest.fixture
def store(tmp_path):
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def sandbox():
    """The first request of three runs and never ends, the others wait behind it."""
    faults = (Fault("stuck", match="scene 0"), Fault("missing_download", match="scene 1"))
    with running_sandbox(SandboxSettings(concurrency=1, latency_scale=0, faults=faults)) as running:
        yield running


def with_client(hosts, call):
    async def work():
        async with FalClient("key:secret", hosts) as fal:
            return await call(fal)

    with no_waiting():
        return asyncio.run(work())


@pytest.fixture
def submitted(store, sandbox):
    """The ledger of three requests that fal has accepted one after the other, p0 first, and whose run is gone."""

    async def submit(fal):
        ledger = Ledger(store, BATCH)
        for number in range(3):
            row = PromptRow(prompt_id=f"p{number}", batch=BATCH, row_number=number, prompt=f"scene {number}")
            request = plan_row(row, References({}, {}))
            await ledger.reserve(
                Reserved(
                    request=request,
                    sent_sha256="0",
                    attempt=1,
                    owner="gone",
                    reserved_at=datetime.now(UTC),
                    backend="sandbox",
                    code_version="test",
                )
            )
            queued = await fal.submit(request.endpoint_id, request.arguments)
            await ledger.submitted(
                request.fingerprint,
                Submitted(
                    request_id=queued.request_id,
                    status_url=queued.status_url,
                    response_url=queued.result_url,
                    cancel_url=queued.cancel_url,
                    submitted_at=datetime.now(UTC) - timedelta(hours=3 - number),
                ),
            )
        return ledger

    return with_client(FalHosts.at(sandbox.url), submit)


def states(store):
    """The state and cost of each row, by prompt id."""
    entries = Ledger(store, BATCH).entries.values()
    return {entry.last.reserved.request.prompt_id: (entry.state, entry.cost.usd) for entry in entries}


OPEN = ("submitted", None)
CANCELLED = ("retryable", Decimal(0))
GIVEN_UP = ("retryable", None)


def test_what_is_with_fal_is_listed_with_since_when_and_where_it_stands(store, sandbox, submitted):
    found = with_client(
        FalHosts.at(sandbox.url), lambda fal: look(fal, store, with_fal(Ledger(store, BATCH)))
    )
    assert [one.request.request.prompt_id for one in found] == ["p0", "p1", "p2"]
    assert [one.status for one in found] == [
        "fal works on it",
        "it waits in fal's queue, 0 ahead of it",
        "it waits in fal's queue, 1 ahead of it",
    ]
    assert "(3 h)" in found[0].request.told
    assert found[0].request == oldest(submitted.entries.values())
    old = with_fal(submitted, older_than=timedelta(minutes=90))
    assert [one.request.prompt_id for one in old] == ["p0", "p1"]


def test_a_request_that_never_ends_can_be_cancelled_and_only_fals_ok_settles_it(store, sandbox, submitted):
    ledger = Ledger(store, BATCH)
    ended = with_client(FalHosts.at(sandbox.url), lambda fal: cancel(fal, store, ledger, with_fal(ledger)))
    left = {one.request.request.prompt_id: one.left for one in ended}
    assert (left["p1"], left["p2"]) == ("", "")
    assert "if it still ends well" in left["p0"]
    assert states(store) == {"p0": OPEN, "p1": CANCELLED, "p2": CANCELLED}


@pytest.mark.parametrize("by", ["gone", "another-run"])
def test_what_a_live_run_works_on_is_neither_cancelled_nor_given_up(store, sandbox, submitted, by):
    """Its own run, or one that may have taken it up."""
    ledger = Ledger(store, BATCH)

    async def both(fal):
        with working(store, by, BATCH):
            return (
                await look(fal, store, with_fal(ledger)),
                await cancel(fal, store, ledger, with_fal(ledger)),
                await give_up_batch(fal, store, ledger, with_fal(ledger)),
            )

    found, cancelled, given_up = with_client(FalHosts.at(sandbox.url), both)
    assert {one.worked_by for one in found} == {by}
    assert all(f"the run {by} works on it" in one.left for one in cancelled)
    assert not any(one.is_decided for one in given_up)
    assert set(states(store).values()) == {OPEN}
    assert sandbox.stats().cancels == 0


def test_a_request_whose_end_was_recorded_since_it_was_listed_is_left_alone(store, sandbox, submitted):
    listed = with_fal(Ledger(store, BATCH))
    ledger = Ledger(store, BATCH)
    with_client(FalHosts.at(sandbox.url), lambda fal: cancel(fal, store, Ledger(store, BATCH), listed[2:]))
    before = sandbox.stats().cancels
    [again] = with_client(FalHosts.at(sandbox.url), lambda fal: cancel(fal, store, ledger, listed[2:]))
    assert (again.left, sandbox.stats().cancels) == ("", before)


def give_up(store, hosts):
    ledger = Ledger(store, BATCH)
    ended = with_client(hosts, lambda fal: give_up_batch(fal, store, ledger, with_fal(ledger)))
    return {one.request.request.prompt_id: (one.is_decided, one.says) for one in ended}


def test_giving_up_cancels_what_waits_and_leaves_what_fal_says_has_ended(store, sandbox, submitted):
    ended = give_up(store, FalHosts.at(sandbox.url))
    assert states(store) == {"p0": OPEN, "p1": CANCELLED, "p2": CANCELLED}
    assert ended["p0"] == (True, "fal says how it ended: the next run records it")


def test_what_fal_still_gives_is_not_given_up_and_what_it_does_not_give_is_at_an_unknown_cost(
    store, sandbox, submitted
):
    ledger = Ledger(store, BATCH)

    async def freed(fal):
        hangs, *_, last = with_fal(ledger)
        await fal.cancel(fal.attach(hangs.request.endpoint_id, hangs.request_id))
        while not isinstance(
            await fal.status(fal.attach(last.request.endpoint_id, last.request_id)), Completed
        ):
            pass

    with_client(FalHosts.at(sandbox.url), freed)
    ended = give_up(store, FalHosts.at(sandbox.url))
    assert ended["p2"] == (True, "fal has it: the next run fetches it")
    assert states(store) == {"p0": OPEN, "p1": GIVEN_UP, "p2": OPEN}
    assert "may then be paid twice" in ended["p1"][1]
    [entry] = [one for one in Ledger(store, BATCH).entries.values() if one.last.settled]
    assert entry.last.settled.reason == "given up by choice; it may have been paid"


@pytest.mark.parametrize("trouble", ["nobody answers", "a wrong key"])
def test_nothing_is_given_up_where_fal_could_not_be_asked(store, sandbox, submitted, trouble, billing_desk):
    billing_desk.status = 401
    hosts = FalHosts.at("http://127.0.0.1:1" if trouble == "nobody answers" else billing_desk.url)
    ended = give_up(store, hosts)
    assert not any(is_decided for is_decided, _ in ended.values())
    assert set(states(store).values()) == {OPEN}

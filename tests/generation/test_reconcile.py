"""Submits without an answer, looked for in the sandbox's list: rows and batches that ask for one and the same."""

import asyncio
from datetime import UTC, datetime

import pytest

from ideogram_pipeline.fal import FalClient, FalHosts, no_waiting
from ideogram_pipeline.generation.ledger import Ledger, Reserved
from ideogram_pipeline.generation.planner import References, plan_row
from ideogram_pipeline.generation.reconcile import digest, reconcile_batch
from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox
from ideogram_pipeline.tables.erased import Tombstone, path
from ideogram_pipeline.tables.rows import PromptRow

SAME = "fal's list holds 2 requests with the same input"


@pytest.fixture
def sandbox():
    with running_sandbox(SandboxSettings(latency_scale=0, concurrency=100)) as running:
        yield running


@pytest.fixture
def ask(store, sandbox):
    """Reserve rows that ask for one and the same, with so many requests at fal, or the ids that fal gave."""

    async def reserve(batch, names, submits):
        ledger = Ledger(store, batch)
        requests = [
            plan_row(
                PromptRow(prompt_id=name, batch=batch, row_number=number, prompt="a harbour", seed=7),
                References({}, {}),
            )
            for number, name in enumerate(names)
        ]
        for request in requests:
            reserved = Reserved(
                request=request,
                sent_sha256=digest(request.arguments),
                attempt=1,
                owner="a-run-that-died",
                reserved_at=datetime.now(UTC),
                backend="sandbox",
                code_version="test",
            )
            await ledger.reserve(reserved)
        async with FalClient("key:secret", FalHosts.at(sandbox.url)) as fal:
            return [await fal.submit(requests[0].endpoint_id, requests[0].arguments) for _ in range(submits)]

    def make(batch, *names, submits):
        sent = asyncio.run(reserve(batch, names, submits))
        while sandbox.stats().completed < sandbox.stats().accepted:
            pass  # fal lists what has ended, and nothing before
        return [one.request_id for one in sent]

    return make


@pytest.fixture
def look(store, sandbox):
    """Look for a batch's unanswered submits; return fal's ids of those that were found, by row, and why others not."""

    async def search(batch):
        async with FalClient("key:secret", FalHosts.at(sandbox.url)) as fal:
            return await reconcile_batch(fal, store, Ledger(store, batch))

    def make(batch):
        with no_waiting():
            found = asyncio.run(search(batch))
        return {one.prompt_id: one.found or one.reason for one in found}

    return make


def test_rows_with_the_same_input_get_one_request_each(ask, look):
    sent = ask("drop", "a", "b", submits=2)
    found = look("drop")
    assert sorted(found) == ["a", "b"]
    assert sorted(found.values()) == sorted(sent)


def test_of_two_rows_with_the_same_input_one_gets_the_only_request(ask, look):
    """Both once got it: one was paid, two were recorded, and what fal had of the other was never fetched."""
    (sent,) = ask("drop", "a", "b", submits=1)
    assert look("drop") == {"a": sent, "b": "fal's list of requests does not hold it, or not yet"}
    assert look("drop") == {"b": "fal's list of requests does not hold it, or not yet"}


def test_more_requests_than_rows_with_the_same_input_stay_unknown(ask, look):
    ask("drop", "a", submits=2)
    assert look("drop") == {"a": SAME}


def test_a_request_that_another_batchs_ledger_holds_is_not_the_answer_that_was_lost(store, ask, look):
    """A row that moves to another batch asks for the same there."""
    (before,) = ask("summer", "a", submits=1)
    assert look("summer") == {"a": before}
    ask("autumn", "a", submits=0)
    assert look("autumn") == {"a": "fal's list of requests does not hold it, or not yet"}
    (own,) = ask("winter", "a", submits=1)
    assert look("winter") == {"a": own}


def test_a_request_that_was_erased_is_not_the_answer_that_was_lost(store, ask, look):
    (before,) = ask("drop", "a", submits=1)
    stone = Tombstone(
        sha256="0" * 64,
        erased_at=datetime.now(UTC),
        fingerprints=(),
        images=(),
        request_ids=(before,),
        cost_usd=None,
    )
    store.put(path("0" * 64), stone.model_dump_json().encode())
    assert look("drop") == {"a": "fal's list of requests does not hold it, or not yet"}

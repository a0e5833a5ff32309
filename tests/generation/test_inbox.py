"""The inbox: one listing for all rows, letters that are read once, and none that stay."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from ideogram_pipeline.generation import inbox as module
from ideogram_pipeline.generation.inbox import Address, Inbox, Letter, letters_about, put_letter, read_letter
from ideogram_pipeline.generation.ledger import Entry, Ledger, Released, Reserved, Settled, Submitted
from ideogram_pipeline.generation.planner import References, plan_row
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage import store as storage
from ideogram_pipeline.tables.rows import PromptRow

BATCH = "drop"
NOW = datetime.now(UTC)


class CountingStore(Store):
    """A store that counts the requests which reading from it takes."""

    listings = reads = 0

    async def objects_async(self, folder):
        self.listings += 1
        return await super().objects_async(folder)

    async def get_async(self, path):
        self.reads += 1
        return await super().get_async(path)


@pytest.fixture
def store(tmp_path):
    return CountingStore.open(str(tmp_path / "store"))


@pytest.fixture
def ledger(store):
    return Ledger(store, BATCH)


async def reserved(ledger, number, *, submitted=True, at=NOW):
    """An attempt in the ledger."""
    row = PromptRow(prompt_id=f"p{number}", batch=BATCH, row_number=number, prompt=f"scene {number}")
    request = plan_row(row, References({}, {}))
    attempt = Reserved(
        request=request,
        sent_sha256="0",
        attempt=len(ledger.entries.get(request.fingerprint, Entry()).attempts) + 1,
        owner="run-1",
        reserved_at=at,
        backend="sandbox",
        code_version="test",
    )
    await ledger.reserve(attempt)
    if submitted:
        url = "https://queue.example"
        answer = Submitted(
            request_id=f"r{number}", status_url=url, response_url=url, cancel_url=url, submitted_at=at
        )
        await ledger.submitted(request.fingerprint, answer)
    return attempt


def settled():
    return Settled(state="failed", completed_at=NOW, cost_usd=Decimal(0), cost_source="price_list")


async def deliver(store, attempt, number, payload=None):
    letter = Letter(request_id=f"r{number}", user_id="user", payload=payload or {"seed": number})
    await put_letter(store, Address.of(attempt), letter)
    return Address.of(attempt).path(letter.request_id)


def paths(store):
    return sorted(found.path for found in store.objects(f"inbox/batch={BATCH}"))


def test_one_look_serves_all_rows_and_reads_none(store, ledger):
    async def watch():
        attempts = [await reserved(ledger, number) for number in range(30)]
        inbox = Inbox(store, ledger, "https://hooks.example.org")
        for number in range(0, 30, 2):
            await deliver(store, attempts[number], number)
        store.listings = store.reads = 0
        async with inbox.watched(lambda: None):
            held = [inbox.holds(one, f"r{number}") for number, one in enumerate(attempts)]
            assert (store.listings, store.reads) == (1, 0)
            assert await inbox.payload(attempts[2], "r2") == {"seed": 2}
            assert store.reads == 1
        return held

    assert asyncio.run(watch()) == [True, False] * 15


def test_what_comes_while_it_is_watched_is_noticed(store, ledger, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)

    async def watch():
        attempt = await reserved(ledger, 1)
        inbox = Inbox(store, ledger, "https://hooks.example.org")
        looked = asyncio.Event()
        async with inbox.watched(looked.set):
            assert not inbox.holds(attempt, "r1")
            await deliver(store, attempt, 1)
            while not inbox.holds(attempt, "r1"):
                looked.clear()
                await looked.wait()

    asyncio.run(watch())


def test_letters_of_what_has_ended_are_removed_and_all_others_stay(store, ledger):
    async def work():
        ended, waiting, unanswered = [
            await reserved(ledger, number, submitted=number < 3) for number in (1, 2, 3)
        ]
        await ledger.settle(ended.request.fingerprint, settled())
        foreign = Address(BATCH, "f" * 64, 1)
        await put_letter(store, foreign, Letter(request_id="r9", user_id="user", payload=None))
        gone = [await deliver(store, ended, number) for number in (1, 7)]
        kept = [await deliver(store, waiting, 2), await deliver(store, unanswered, 3), foreign.path("r9")]
        store.put(f"inbox/batch={BATCH}/notes.txt", b"somebody's own")
        found = await letters_about(store, ledger)
        assert sorted(path for letters in found.values() for path in letters) == sorted(kept)
        assert paths(store) == sorted([*kept, f"inbox/batch={BATCH}/notes.txt"])
        assert not set(gone) & set(paths(store))

    asyncio.run(work())


def test_an_attempt_that_ended_does_not_take_the_letter_of_the_next_one(store, ledger):
    async def work():
        first = await reserved(ledger, 1, submitted=False)
        await ledger.release(first.request.fingerprint, Released(released_at=NOW, reason="429"))
        second = await reserved(ledger, 1)
        assert second.attempt == 2
        path = await deliver(store, second, 1)
        await letters_about(store, ledger)
        assert paths(store) == [path]

    asyncio.run(work())


@pytest.mark.parametrize("content", [b"", b"{", b'{"request_id": "r1"}'])
def test_a_letter_that_is_not_whole_is_none(store, ledger, content):
    async def work():
        attempt = await reserved(ledger, 1)
        path = Address.of(attempt).path("r1")
        store.put(path, content)
        assert await read_letter(store, path) is None
        inbox = Inbox(store, ledger, "https://hooks.example.org")
        assert await inbox.payload(attempt, "r1") is None

    asyncio.run(work())


def test_a_letter_is_written_once(store, ledger):
    async def work():
        attempt = await reserved(ledger, 1)
        for seed in (1, 2, 1):
            await deliver(store, attempt, 1, {"seed": seed})
        return (await read_letter(store, Address.of(attempt).path("r1"))).payload

    assert asyncio.run(work()) == {"seed": 1}
    assert len(paths(store)) == 1


def test_a_store_that_fails_for_a_while_is_looked_at_again(store, ledger, monkeypatch, caplog):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(storage, "REPEAT_FOR_S", 0.1)

    async def watch():
        attempt = await reserved(ledger, 1)
        inbox = Inbox(store, ledger, "https://hooks.example.org")
        async with inbox.watched(lambda: None):
            folder = store.folder / "inbox"
            folder.rename(store.folder / "away")
            folder.write_text("in the way")
            while "fal is asked instead" not in caplog.text:
                await asyncio.sleep(0)
            folder.unlink()
            await deliver(store, attempt, 1)
            while not inbox.holds(attempt, "r1"):
                await asyncio.sleep(0)

    asyncio.run(watch())


@pytest.mark.parametrize("age_s", [0, -3600])
def test_a_letter_is_waited_for_as_long_as_it_may_take_and_no_longer(store, ledger, monkeypatch, age_s):
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.01)
    at = NOW - timedelta(seconds=age_s)

    async def watch():
        attempt = await reserved(ledger, 1, submitted=False, at=at)
        inbox = Inbox(store, ledger, "https://hooks.example.org")
        async with inbox.watched(lambda: None):
            await inbox.wait_for([attempt], patience_s=0.2)
            waiting = asyncio.create_task(inbox.wait_for([attempt], patience_s=10_000_000))
            await deliver(store, attempt, 1)
            await waiting

    asyncio.run(watch())


def test_a_submit_of_long_ago_is_not_waited_for(store, ledger):
    async def watch():
        attempt = await reserved(ledger, 1, submitted=False, at=NOW - timedelta(hours=1))
        inbox = Inbox(store, ledger, "https://hooks.example.org")
        await asyncio.wait_for(inbox.wait_for([attempt], patience_s=60), 5)

    asyncio.run(watch())

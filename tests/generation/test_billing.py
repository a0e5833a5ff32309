"""fal's bills: read for what was accepted, kept once, and beside what was expected; against the sandbox and a desk."""

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from ideogram_pipeline.fal import FalClient, FalHosts, Forbidden, no_waiting
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.billing import Bill, bill, read_bills
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.engine import Engine
from ideogram_pipeline.generation.ledger import Ledger, Reserved, Submitted
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.planner import References, plan_row
from ideogram_pipeline.generation.rebuild import rebuild_batch, refresh_results
from ideogram_pipeline.sandbox import Fault, FaultKind, SandboxSettings, running_sandbox
from ideogram_pipeline.tables.rows import PromptRow

BATCH = "drop"
DAY = timedelta(days=1)


def row(number, **cells):
    prompt = {
        "prompt_id": f"p{number:02}",
        "batch": BATCH,
        "row_number": number,
        "prompt": f"scene {number:02}",
    }
    return plan_row(PromptRow(**prompt, **cells), References({}, {}))


def read(url, ledger):
    """Read the bills of a ledger from whoever serves them there."""

    async def ask():
        async with FalClient("key:secret", FalHosts.at(url)) as fal:
            await read_bills(fal, ledger)

    with no_waiting():
        asyncio.run(ask())


def work(store, sandbox, requests):
    """Run an engine as the paid asset does."""

    class Nobody:
        def ended(self, outcome, spent_usd):
            pass

    async def run():
        async with FalClient("key:secret", FalHosts.at(sandbox.url)) as fal:
            await Engine(
                fal,
                store,
                Ledger(store, BATCH),
                run=RunFacts(run_id="run-1", backend="sandbox", code_version="test"),
                max_in_flight=16,
                max_wait_s=3600.0,
                inline_bytes=0,
                marking=Marking(),
                thumbnails=False,
                budget=Budget(store, run_id="run-1", per_run_usd=None, per_day_usd=None, allow_unknown=False),
                observer=Nobody(),
            ).run(requests)

    with no_waiting():
        asyncio.run(run())


def attempts(ledger):
    return [attempt for entry in ledger.entries.values() for attempt in entry.attempts]


def bills(ledger):
    """The dollars of every bill, by request id."""
    return {one.billed.request_id: one.billed.usd for one in attempts(ledger) if one.billed}


FAULTS = (
    FaultKind.SUBMIT_429,
    FaultKind.DROP_AFTER_ACCEPT,
    FaultKind.POLICY_REFUSAL,
    FaultKind.NO_MEDIA,
    FaultKind.MODEL_500,
    FaultKind.RUNNER_503,
    FaultKind.EXPIRED_RESULT,
)


def test_the_bills_of_a_batch_in_trouble_add_up_to_what_was_charged(store):
    """Each fault strikes the rows that end in its number; three rows in ten meet none."""
    rules = tuple(
        Fault(kind, match=f"scene {ten}{number}") for number, kind in enumerate(FAULTS) for ten in range(4)
    )
    with running_sandbox(SandboxSettings(latency_scale=0, faults=rules)) as sandbox:
        work(store, sandbox, [row(number, num_images=1 + number % 3) for number in range(40)])
        ledger = Ledger(store, BATCH)
        assert not any(one.cost.source == "unknown" for one in attempts(ledger) if one.submitted)
        read(sandbox.url, ledger)
        charged = sandbox.stats()
    assert (charged.completed, charged.duplicates > 0) == (24, True)
    assert len(bills(ledger)) == charged.completed
    assert sum(bills(ledger).values()) == charged.usd > 0
    assert not any(one.cost.usd is None for one in attempts(ledger) if one.submitted)
    told = bill(BATCH, ledger.entries)
    assert (told.billed, told.billed_usd, told.difference_usd) == (24, charged.usd, 0)
    assert (told.requests, told.unforeseen) == (charged.accepted, 0)
    assert Ledger(store, BATCH).entries == ledger.entries


@pytest.fixture
def worked(work_batch):
    """Three rows, of which one was refused and one never answered."""
    records = [{"prompt_id": name, "prompt": f"scene {name}", "num_images": "2"} for name in "abc"]
    return work_batch(records, endings={"b": "refused", "c": "unknown"})


def test_a_bill_takes_the_place_of_the_list_price(worked, billing_desk):
    billing_desk.book("request-a", output_units=2, unit_price=0.06, cost_total=0.108)
    read(billing_desk.url, worked.ledger)
    assert bill(BATCH, worked.ledger.entries) == Bill(
        batch=BATCH,
        requests=2,
        billed=1,
        billed_usd=Decimal("0.108"),
        expected_usd=Decimal("0.12"),
        unforeseen=0,
        unforeseen_usd=Decimal(0),
    )
    assert bill(BATCH, worked.ledger.entries).difference_usd == Decimal("-0.012")
    [attempt] = worked.ledger.entries[worked.request("a").fingerprint].attempts
    assert (attempt.billed.units, attempt.billed.unit_price_usd) == (2, Decimal("0.06"))
    assert attempt.billed.billed_at == datetime(2026, 11, 22, 12, 0, 5, tzinfo=UTC)


def test_only_accepted_requests_without_a_bill_are_asked_for(worked, billing_desk):
    billing_desk.book("request-a")
    read(billing_desk.url, worked.ledger)
    read(billing_desk.url, worked.ledger)
    assert [sorted(asked["request_id"]) for asked in billing_desk.asked] == [
        ["request-a", "request-b"],
        ["request-b"],
    ]
    billing_desk.book("request-b", cost_total=0)
    read(billing_desk.url, worked.ledger)
    read(billing_desk.url, worked.ledger)
    assert len(billing_desk.asked) == 3
    assert bills(worked.ledger) == {"request-a": Decimal("0.1"), "request-b": 0}


def test_an_absence_proves_nothing_and_an_event_without_an_amount_neither(worked, billing_desk):
    billing_desk.book("request-a", cost_total=None)
    before = dict(worked.ledger.entries)
    read(billing_desk.url, worked.ledger)
    assert worked.ledger.entries == before


def test_a_listing_that_is_cut_short_counts_for_what_it_holds(worked, billing_desk):
    billing_desk.cut_short = True
    billing_desk.book("request-a")
    read(billing_desk.url, worked.ledger)
    assert bills(worked.ledger) == {"request-a": Decimal("0.1")}


def test_what_fal_lists_beyond_what_was_asked_for_is_left_alone(worked, billing_desk):
    billing_desk.book("request-a")
    billing_desk.answer = lambda _: (200, {"billing_events": [*billing_desk.events], "has_more": False})
    billing_desk.book("request-of-somebody-else")
    read(billing_desk.url, worked.ledger)
    assert bills(worked.ledger) == {"request-a": Decimal("0.1")}


def test_several_events_of_a_request_add_up_and_a_repeated_one_counts_once(worked, billing_desk):
    billing_desk.book("request-a")
    billing_desk.book("request-a")
    billing_desk.book("request-a", timestamp="2026-11-22T12:01:00Z", cost_total=-0.02, output_units=None)
    read(billing_desk.url, worked.ledger)
    [billed] = [one.billed for one in attempts(worked.ledger) if one.billed]
    assert (billed.usd, billed.units, billed.unit_price_usd) == (Decimal("0.08"), None, Decimal("0.1"))
    assert billed.billed_at.minute == 1


def test_an_answer_of_the_older_form_names_the_amount_too(worked, billing_desk):
    billing_desk.book("request-a", cost_total=None, cost_estimate_nano_usd=54_000_000)
    read(billing_desk.url, worked.ledger)
    assert bills(worked.ledger) == {"request-a": Decimal("0.054")}


def test_a_key_that_may_not_know_costs_nothing_but_the_knowledge(worked, billing_desk):
    billing_desk.status = 403
    before = dict(worked.ledger.entries)
    with pytest.raises(Forbidden, match="ADMIN"):
        read(billing_desk.url, worked.ledger)
    assert worked.ledger.entries == before
    assert len(billing_desk.asked) == 1


def test_who_reads_the_same_bill_later_leaves_it_as_it_is(store, worked, billing_desk):
    late = Ledger(store, BATCH)
    billing_desk.book("request-a")
    read(billing_desk.url, worked.ledger)
    billing_desk.events[0]["cost_total"] = 9.99
    read(billing_desk.url, late)
    assert bills(late) == {"request-a": Decimal("0.1")}


def test_questions_keep_to_fals_limits(store, billing_desk):
    first = datetime(2026, 1, 1, tzinfo=UTC)
    days = [*([0] * 60), 40, 44, 46, 200]
    ledger = Ledger(store, BATCH)

    async def submit_all():
        for number, day in enumerate(days):
            request = row(number)
            await ledger.reserve(
                Reserved(
                    request=request,
                    sent_sha256="0",
                    attempt=1,
                    owner="run-1",
                    reserved_at=first + day * DAY,
                    backend="fal",
                    code_version="1",
                )
            )
            urls = dict.fromkeys(("status_url", "response_url", "cancel_url"), "https://queue.example/r")
            submitted = Submitted(request_id=f"r{number}", submitted_at=first + day * DAY, **urls)
            await ledger.submitted(request.fingerprint, submitted)
            billing_desk.book(f"r{number}")

    asyncio.run(submit_all())
    read(billing_desk.url, ledger)
    assert len(bills(ledger)) == len(days)
    assert [len(asked["request_id"]) for asked in billing_desk.asked] == [50, 12, 1, 1]
    for asked in billing_desk.asked:
        [start], [end] = asked["start"], asked["end"]
        assert datetime.fromisoformat(end) - datetime.fromisoformat(start) <= 90 * DAY


def test_the_rows_of_a_batch_take_over_what_was_billed_and_nothing_else_changes(store, worked, billing_desk):
    images, outcomes = files.read_images(store, BATCH), files.read_outcomes(store, BATCH)
    assert not refresh_results(store, worked.ledger, BATCH)
    billing_desk.book("request-a", cost_total=0.108)
    read(billing_desk.url, worked.ledger)
    assert refresh_results(store, worked.ledger, BATCH)
    billed = {"cost_source": "billing_event"}
    assert files.read_images(store, BATCH) == [
        image.model_copy(update={**billed, "cost_usd": 0.054}) for image in images
    ]
    assert files.read_outcomes(store, BATCH) == [
        one.model_copy(update={**billed, "cost_usd": 0.108}) if one.prompt_id == "a" else one
        for one in outcomes
    ]
    assert not refresh_results(store, worked.ledger, BATCH)


def test_rebuilt_rows_cost_what_was_billed(store, worked, billing_desk):
    billing_desk.book("request-a", cost_total=0.108)
    read(billing_desk.url, worked.ledger)
    rebuild_batch(store, BATCH)
    assert {(one.cost_usd, one.cost_source) for one in files.read_images(store, BATCH)} == {
        (0.054, "billing_event")
    }


def test_a_batch_without_results_has_no_rows_to_bring_up_to_date(store):
    assert not refresh_results(store, Ledger(store, BATCH), BATCH)
    assert not store.exists(files.outcomes_path(BATCH))

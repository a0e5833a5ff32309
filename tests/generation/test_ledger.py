"""The ledger: each transition happens once, whoever tries, and is there when the ledger is opened again."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ideogram_pipeline.generation.ledger import (
    MAX_ATTEMPTS,
    AlreadyWritten,
    Attempt,
    Billed,
    Cost,
    Entry,
    Ledger,
    Released,
    Reserved,
    Settled,
    Submitted,
    batches,
)
from ideogram_pipeline.generation.planner import References, plan_row
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.rows import PromptRow

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
RELEASED = Released(released_at=NOON, reason="connection refused")
SUBMITTED = Submitted(
    request_id="r-1",
    status_url="https://queue.example/r-1/status",
    response_url="https://queue.example/r-1",
    cancel_url="https://queue.example/r-1/cancel",
    submitted_at=NOON,
)


def request(prompt_id: str = "a") -> GenerationRequest:
    row = PromptRow(prompt_id=prompt_id, row_number=2, prompt="a lighthouse")
    return plan_row(row, References({}, {}))


def reserved(asked: GenerationRequest, attempt: int = 1, owner: str = "run-1") -> Reserved:
    return Reserved(
        request=asked,
        sent_sha256="0" * 64,
        attempt=attempt,
        owner=owner,
        reserved_at=NOON,
        backend="fal",
        code_version="1.2.3",
    )


def released(reason: str) -> Released:
    return Released(released_at=NOON, reason=reason)


def settled(state: str = "failed", *, retryable: bool = False, reason: str = "") -> Settled:
    return Settled(
        state=state,
        reason=reason,
        retryable=retryable,
        completed_at=NOON,
        cost_usd=Decimal("0.15"),
        cost_source="price_list",
    )


def submitted(request_id: str) -> Submitted:
    return SUBMITTED.model_copy(update={"request_id": request_id})


def billed(request_id: str = "r-1", usd: str = "0.12") -> Billed:
    return Billed(
        request_id=request_id,
        units=Decimal(1),
        unit_price_usd=Decimal("0.15"),
        usd=Decimal(usd),
        billed_at=NOON,
        read_at=NOON,
    )


@pytest.fixture(params=["on disk", "on S3"])
def store(request, tmp_path):
    if request.param == "on disk":
        return Store.open(str(tmp_path / "store"))
    return Store.open(f"s3://{request.getfixturevalue('s3').bucket()}/prefix")


class LedgerMachine(RuleBasedStateMachine):
    """A ledger on disk against a list of what happened to each request, in words."""

    requests = tuple(request(name) for name in ("a", "b"))

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.ledger = Ledger(Store.open(self.folder.name), "drop")
        self.history: dict[str, list[str]] = {asked.fingerprint: [] for asked in self.requests}
        self.unbilled: dict[str, str] = {}
        self.bills: dict[str, Billed] = {}

    def teardown(self) -> None:
        self.reopening_changes_nothing()
        self.folder.cleanup()

    def last(self, asked: GenerationRequest) -> str:
        return self.history[asked.fingerprint][-1] if self.history[asked.fingerprint] else "new"

    def those(self, *lasts: str) -> list[GenerationRequest]:
        return [asked for asked in self.requests if self.last(asked) in lasts]

    @precondition(lambda self: self.those("new", "released", "failed for now"))
    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.those("new", "released", "failed for now")))
        attempt = self.history[asked.fingerprint].count("reserved") + 1
        asyncio.run(self.ledger.reserve(reserved(asked, attempt)))
        self.history[asked.fingerprint].append("reserved")

    @precondition(lambda self: self.those("reserved"))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.those("reserved")))
        asyncio.run(self.ledger.release(asked.fingerprint, RELEASED))
        self.history[asked.fingerprint].append("released")

    @precondition(lambda self: self.those("reserved"))
    @rule(data=st.data())
    def submit(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.those("reserved")))
        attempt = self.history[asked.fingerprint].count("reserved")
        request_id = f"{asked.prompt_id}-{attempt}"
        asyncio.run(self.ledger.submitted(asked.fingerprint, submitted(request_id)))
        self.history[asked.fingerprint].append("submitted")
        self.unbilled[request_id] = asked.fingerprint

    @precondition(lambda self: self.those("reserved", "submitted"))
    @rule(data=st.data(), end=st.sampled_from(["generated", "refused", "failed", "failed for now"]))
    def settle(self, data: st.DataObject, end: str) -> None:
        asked = data.draw(st.sampled_from(self.those("reserved", "submitted")))
        again = end == "failed for now"
        how = settled("failed" if again else end, retryable=again)
        asyncio.run(self.ledger.settle(asked.fingerprint, how))
        self.history[asked.fingerprint].append(end)

    @precondition(lambda self: self.unbilled)
    @rule(data=st.data(), cents=st.integers(0, 99))
    def bill(self, data: st.DataObject, cents: int) -> None:
        """Whatever came after the submit, other attempts included."""
        request_id = data.draw(st.sampled_from(sorted(self.unbilled)))
        fingerprint = self.unbilled.pop(request_id)
        self.bills[request_id] = billed(request_id, f"0.{cents:02}")
        state = self.ledger.entries[fingerprint].state
        asyncio.run(self.ledger.billed(fingerprint, self.bills[request_id]))
        assert self.ledger.entries[fingerprint].state == state

    @precondition(lambda self: self.bills)
    @rule(data=st.data())
    def nothing_is_billed_twice(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.bills)))
        [fingerprint] = [asked.fingerprint for asked in self.requests if asked.prompt_id == request_id[0]]
        with pytest.raises(AlreadyWritten):
            asyncio.run(self.ledger.billed(fingerprint, billed(request_id, "9.99")))

    @precondition(lambda self: any(self.history.values()))
    @rule(data=st.data())
    def nothing_happens_twice(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from([asked for asked in self.requests if self.last(asked) != "new"]))
        fingerprint = asked.fingerprint
        before = self.ledger.entries[fingerprint]
        match self.last(asked):
            case "reserved":
                again = self.ledger.reserve(reserved(asked, len(before.attempts), "run-2"))
            case "released":
                again = self.ledger.release(fingerprint, released("another reason"))
            case "submitted":
                again = self.ledger.submitted(fingerprint, submitted("another"))
            case _:
                again = self.ledger.settle(fingerprint, settled(reason="another reason"))
        with pytest.raises(AlreadyWritten):
            asyncio.run(again)
        assert self.ledger.entries[fingerprint] == before

    @rule()
    def reopening_changes_nothing(self) -> None:
        known = self.ledger.entries
        self.ledger = Ledger(Store.open(self.folder.name), "drop")
        assert self.ledger.entries == known

    @invariant()
    def the_state_follows_from_the_history(self) -> None:
        for asked in self.requests:
            entry = self.ledger.entries.get(asked.fingerprint, Entry())
            history = self.history[asked.fingerprint]
            paid = history.count("reserved") - history.count("released")
            assert entry.paid_attempts == paid
            assert entry.state == {
                "released": "retryable" if paid else "new",
                "failed for now": "retryable" if paid < MAX_ATTEMPTS else "failed",
            }.get(self.last(asked), self.last(asked))

    @invariant()
    def every_attempt_costs_what_was_billed_or_else_what_it_was_settled_at(self) -> None:
        attempts = [attempt for entry in self.ledger.entries.values() for attempt in entry.attempts]
        assert {one.billed.request_id: one.billed for one in attempts if one.billed} == self.bills
        for attempt in attempts:
            if attempt.submitted and attempt.submitted.request_id in self.bills:
                assert attempt.cost == Cost(self.bills[attempt.submitted.request_id].usd, "billing_event")
            elif attempt.settled:
                assert attempt.cost == Cost(Decimal("0.15"), "price_list")
            else:
                assert attempt.cost.usd == (0 if attempt.released else None)

    @invariant()
    def what_a_request_costs_is_the_sum_of_its_attempts(self) -> None:
        for entry in self.ledger.entries.values():
            each = [attempt.cost.usd for attempt in entry.attempts]
            assert entry.cost.usd == (None if None in each else sum(each))
            assert (entry.cost.source == "unknown") == (None in each)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=25, stateful_step_count=20)


def test_of_two_ledgers_that_reserve_the_same_request_one_wins(store):
    first, second = Ledger(store, "drop"), Ledger(store, "drop")
    asked = request()

    async def race() -> list[object]:
        return await asyncio.gather(
            first.reserve(reserved(asked, owner="first")),
            second.reserve(reserved(asked, owner="second")),
            return_exceptions=True,
        )

    ends = asyncio.run(race())
    assert [type(end) for end in ends].count(AlreadyWritten) == 1
    [loser, winner] = (second, first) if ends[0] is None else (first, second)
    assert loser.entries == winner.entries
    assert Ledger(store, "drop").entries == winner.entries


RESERVE_ALL = """
import asyncio, sys
from datetime import UTC, datetime
from ideogram_pipeline.generation.ledger import AlreadyWritten, Ledger, Reserved
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.storage import Store

ledger = Ledger(Store.open(sys.argv[1]), "drop")
requests = [GenerationRequest.model_validate_json(line) for line in sys.stdin.readline().split("\\t")]
now = datetime.now(UTC)

async def reserve_all():
    for request in requests:
        reserved = Reserved(
            request=request, sent_sha256="0", attempt=1, owner=sys.argv[2], reserved_at=now, backend="fal",
            code_version="1",
        )
        try:
            await ledger.reserve(reserved)
        except AlreadyWritten:
            continue
        print(request.fingerprint)

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(reserve_all())
"""


def test_of_two_processes_that_reserve_the_same_requests_one_wins_each(store):
    requests = {asked.fingerprint: asked for asked in map(request, map(str, range(100)))}
    lines = "\t".join(asked.model_dump_json() for asked in requests.values())
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", RESERVE_ALL, store.url, owner],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for owner in ("run-1", "run-2")
    ]
    for run in runs:
        run.stdin.write(f"{lines}\n")
        run.stdin.flush()
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    won = [run.communicate()[0].split() for run in runs]
    assert sorted(won[0] + won[1]) == sorted(requests)
    owners = {name: entry.last.reserved.owner for name, entry in Ledger(store, "drop").entries.items()}
    assert owners == dict.fromkeys(won[0], "run-1") | dict.fromkeys(won[1], "run-2")


@pytest.mark.parametrize(
    "step",
    [
        lambda ledger, name, who: ledger.release(name, released(who)),
        lambda ledger, name, who: ledger.submitted(name, submitted(who)),
        lambda ledger, name, who: ledger.settle(name, settled(reason=who)),
    ],
    ids=["release", "submitted", "settle"],
)
def test_of_two_ledgers_that_know_a_reservation_one_takes_it_further(
    store, step: Callable[[Ledger, str, str], object]
):
    asked = request()
    asyncio.run(Ledger(store, "drop").reserve(reserved(asked)))
    first, second = Ledger(store, "drop"), Ledger(store, "drop")
    asyncio.run(step(first, asked.fingerprint, "first"))
    with pytest.raises(AlreadyWritten, match=asked.fingerprint):
        asyncio.run(step(second, asked.fingerprint, "second"))
    assert Ledger(store, "drop").entries == first.entries


def test_of_two_ledgers_that_read_the_same_bill_one_records_it(store):
    ledger, asked = Ledger(store, "drop"), request()
    asyncio.run(ledger.reserve(reserved(asked)))
    asyncio.run(ledger.submitted(asked.fingerprint, SUBMITTED))
    first, second = Ledger(store, "drop"), Ledger(store, "drop")
    asyncio.run(first.billed(asked.fingerprint, billed(usd="0.12")))
    with pytest.raises(AlreadyWritten, match="1-billed"):
        asyncio.run(second.billed(asked.fingerprint, billed(usd="0.13")))
    assert second.entries == first.entries == Ledger(store, "drop").entries


def test_the_source_of_a_requests_cost_is_the_weakest_of_the_attempts_that_cost_any(store):
    ledger, asked = Ledger(store, "drop"), request()
    for attempt, usd in ((1, "0"), (2, "0.15")):
        asyncio.run(ledger.reserve(reserved(asked, attempt)))
        asyncio.run(ledger.submitted(asked.fingerprint, submitted(f"r-{attempt}")))
        free = settled(retryable=True).model_copy(update={"cost_usd": Decimal(usd)})
        asyncio.run(ledger.settle(asked.fingerprint, free))
    assert ledger.entries[asked.fingerprint].cost == Cost(Decimal("0.15"), "price_list")
    asyncio.run(ledger.billed(asked.fingerprint, billed("r-2", "0.12")))
    assert ledger.entries[asked.fingerprint].cost == Cost(Decimal("0.12"), "billing_event")
    assert Entry().cost == Cost(Decimal(0), "price_list")


def test_after_the_last_attempt_a_failure_that_may_pass_is_final(store):
    ledger, asked = Ledger(store, "drop"), request()
    states = []
    for attempt in range(1, MAX_ATTEMPTS + 1):
        asyncio.run(ledger.reserve(reserved(asked, attempt)))
        asyncio.run(ledger.settle(asked.fingerprint, settled(retryable=True)))
        states.append(ledger.entries[asked.fingerprint].state)
    assert states == ["retryable", "retryable", "failed"]


def test_an_attempt_that_never_reached_fal_costs_no_attempt(store):
    ledger, asked = Ledger(store, "drop"), request()
    for attempt in range(1, MAX_ATTEMPTS + 2):
        asyncio.run(ledger.reserve(reserved(asked, attempt)))
        asyncio.run(ledger.release(asked.fingerprint, RELEASED))
    assert (ledger.entries[asked.fingerprint].state, ledger.entries[asked.fingerprint].paid_attempts) == (
        "new",
        0,
    )


def test_what_was_written_stands_under_the_documented_names(store):
    asked = request()

    async def work() -> None:
        ledger = Ledger(store, "drop")
        await ledger.reserve(reserved(asked))
        await ledger.release(asked.fingerprint, RELEASED)
        await ledger.reserve(reserved(asked, 2))
        await ledger.submitted(asked.fingerprint, SUBMITTED)
        await ledger.settle(asked.fingerprint, settled("generated"))
        await ledger.billed(asked.fingerprint, billed())

    asyncio.run(work())
    folder = f"ledger/batch=drop/{asked.fingerprint}"
    steps = ("1-released", "1-reserved", "2-billed", "2-reserved", "2-settled", "2-submitted")
    assert sorted(found.path for found in store.objects("")) == [f"{folder}/{step}.json" for step in steps]
    first, second = Ledger(store, "drop").entries[asked.fingerprint].attempts
    assert first == Attempt(reserved(asked), released=RELEASED)
    assert second == Attempt(
        reserved(asked, 2), submitted=SUBMITTED, settled=settled("generated"), billed=billed()
    )


def test_a_batch_knows_nothing_of_another_whose_name_it_begins(store):
    asyncio.run(Ledger(store, "drop-2").reserve(reserved(request())))
    assert Ledger(store, "drop").entries == {}


STEPS = {"reserved": reserved(request()), "submitted": SUBMITTED, "settled": settled("generated")}


def whole(store, prompt_id: str = "a") -> tuple[str, str]:
    """Write a request's ledger up to its settlement; return its fingerprint and where its first attempt's files lie."""
    ledger, asked = Ledger(store, "drop"), request(prompt_id)

    async def write() -> None:
        await ledger.reserve(reserved(asked))
        await ledger.submitted(asked.fingerprint, SUBMITTED)
        await ledger.settle(asked.fingerprint, settled("generated"))

    asyncio.run(write())
    return asked.fingerprint, f"ledger/batch=drop/{asked.fingerprint}/1-"


@pytest.mark.parametrize("harm", ["cut", "empty", "other JSON", "gone"])
@pytest.mark.parametrize("step", STEPS)
def test_one_bad_ledger_file_makes_its_own_row_unknown_and_blocks_no_other(store, step, harm):
    fingerprint, place = whole(store)
    path, (other, _) = f"{place}{step}.json", whole(store, "b")
    if harm == "gone":
        store.delete(path)
    else:
        store.put(path, {"cut": store.get(path)[:-10], "empty": b"", "other JSON": b"[]"}[harm])
    entries = Ledger(store, "drop").entries
    assert entries[other].state == "generated"
    if step != "reserved" and harm == "gone":
        assert not entries[fingerprint].damage  # a step that was never made looks just so
    elif (step, harm) == ("settled", "empty"):
        assert entries[fingerprint].state == "submitted"  # a power cut after the submit: one step back
    else:
        assert entries[fingerprint].state == "damaged"
        assert entries[fingerprint].cost == Cost(None, "unknown")
        assert store.where(path) in entries[fingerprint].damage
        assert ("reconcile --adopt" in entries[fingerprint].damage) == (step == "reserved")


def test_a_row_whose_ledger_files_are_all_empty_is_not_sent_again(store):
    fingerprint, place = whole(store)
    for step in STEPS:
        store.put(f"{place}{step}.json", b"")
    assert Ledger(store, "drop").entries[fingerprint].state == "damaged"


def test_a_reservation_of_another_request_or_attempt_is_damage(store):
    fingerprint, place = whole(store)
    other, _ = whole(store, "b")
    store.put(f"{place}reserved.json", reserved(request("b")).model_dump_json().encode())
    store.put(
        f"ledger/batch=drop/{other}/1-reserved.json", reserved(request("b"), 2).model_dump_json().encode()
    )
    entries = Ledger(store, "drop").entries
    assert [entries[one].state for one in (fingerprint, other)] == ["damaged", "damaged"]


def test_an_attempt_that_is_gone_below_a_later_one_is_damage(store):
    store.put(
        f"ledger/batch=drop/{request().fingerprint}/2-reserved.json",
        reserved(request(), 2).model_dump_json().encode(),
    )
    [entry] = Ledger(store, "drop").entries.values()
    assert "1-reserved.json" in entry.damage


def test_a_damaged_row_stays_damaged_in_the_copy_and_is_whole_again_once_its_file_is_back(store, copied):
    _, path = copied
    content = store.get(path)
    store.put(path, content[:-10])
    damaged = Ledger(store, "drop")
    damaged._not_copied = 100
    damaged.keep_copy()
    states = [entry.state for entry in Ledger(store, "drop").entries.values()]
    assert sorted(states) == ["damaged", *["reserved"] * 39]
    store.put(path, content)
    assert {entry.state for entry in Ledger(store, "drop").entries.values()} == {"reserved"}


@pytest.mark.parametrize(
    "foreign",
    [
        "README.txt",
        ".DS_Store",
        "Thumbs.db",
        "{fingerprint} copy/1-reserved.json",
        "{fingerprint}/1-reserved (copy).json",
        "{fingerprint}/1-settled.json.bak",
        "{fingerprint}/01-reserved.json",
        "{fingerprint}/.DS_Store",
        "old/{fingerprint}/1-reserved.json",
    ],
)
def test_a_file_that_is_none_of_the_ledgers_is_left_alone(store, foreign):
    fingerprint, _ = whole(store)
    path = f"ledger/batch=drop/{foreign.format(fingerprint=fingerprint)}"
    store.put(path, b"hands off")
    entries = Ledger(store, "drop").entries
    assert [entry.state for entry in entries.values()] == ["generated"]
    assert store.get(path) == b"hands off"


def test_a_foreign_or_copied_folder_is_no_batch(store):
    whole(store)
    for folder in ("batch=drop (copy)", "batch=.drop", "old", "batch="):
        store.put(f"ledger/{folder}/{'0' * 64}/1-reserved.json", b"{}")
    store.put("ledger/.DS_Store", b"")
    assert batches(store) == ["drop"]


def test_a_transition_that_another_run_made_first_is_known_afterwards(store):
    asked = request()
    asyncio.run(Ledger(store, "drop").reserve(reserved(asked)))
    first, second = Ledger(store, "drop"), Ledger(store, "drop")
    asyncio.run(first.settle(asked.fingerprint, settled("generated")))
    with pytest.raises(AlreadyWritten):
        asyncio.run(second.settle(asked.fingerprint, settled("failed")))
    assert second.entries == first.entries


def test_the_end_of_an_attempt_that_another_run_has_retried_meanwhile_does_not_settle_the_retry(store):
    asked = request()
    first = Ledger(store, "drop")
    asyncio.run(first.reserve(reserved(asked)))
    asyncio.run(first.submitted(asked.fingerprint, submitted("r-1")))
    second = Ledger(store, "drop")
    asyncio.run(first.settle(asked.fingerprint, settled(retryable=True), attempt=1))
    asyncio.run(first.reserve(reserved(asked, 2)))
    asyncio.run(first.submitted(asked.fingerprint, submitted("r-2")))
    for _ in ("its cancel is answered", "its result says that it was cancelled"):
        with pytest.raises(AlreadyWritten, match="1-settled"):
            asyncio.run(second.settle(asked.fingerprint, settled(reason="cancelled"), attempt=1))
    assert Ledger(store, "drop").entries[asked.fingerprint].state == "submitted"


def test_a_transition_that_a_power_cut_left_empty_did_not_happen(store):
    ledger, asked = Ledger(store, "drop"), request()
    asyncio.run(ledger.reserve(reserved(asked)))
    store.put(f"ledger/batch=drop/{asked.fingerprint}/1-submitted.json", b"")
    again = Ledger(store, "drop")
    assert again.entries[asked.fingerprint].state == "reserved"
    asyncio.run(again.submitted(asked.fingerprint, SUBMITTED))
    assert Ledger(store, "drop").entries[asked.fingerprint].state == "submitted"


def test_a_reservation_that_a_power_cut_left_empty_was_never_sent(store):
    asked = request()
    store.put(f"ledger/batch=drop/{asked.fingerprint}/1-reserved.json", b"")
    first, second = Ledger(store, "drop"), Ledger(store, "drop")
    assert first.entries == {}
    asyncio.run(first.reserve(reserved(asked)))
    with pytest.raises(AlreadyWritten):
        asyncio.run(second.reserve(reserved(asked, owner="run-2")))
    assert Ledger(store, "drop").entries[asked.fingerprint].last.reserved.owner == "run-1"


def test_an_end_that_a_power_cut_left_empty_beside_a_bill_did_not_happen(store):
    fingerprint, place = whole(store)
    asyncio.run(Ledger(store, "drop").billed(fingerprint, billed()))
    store.put(f"{place}settled.json", b"")
    assert Ledger(store, "drop").entries[fingerprint].state == "submitted"


@pytest.fixture
def copied(store):
    """A ledger of forty reserved requests, of which a copy is kept, and the file of the first."""
    ledger, asked = Ledger(store, "drop"), [request(str(number)) for number in range(40)]

    async def reserve_all() -> None:
        for one in asked:
            await ledger.reserve(reserved(one))

    asyncio.run(reserve_all())
    ledger.keep_copy()
    return ledger, f"ledger/batch=drop/{asked[0].fingerprint}/1-reserved.json"


def test_a_ledger_with_a_copy_is_opened_with_three_requests(store, copied):
    ledger, _ = copied
    before = store.requests.copy()
    assert Ledger(store, "drop").entries == ledger.entries
    assert store.requests - before == {"list": 2, "read": 1}  # the ledger's files, what was erased, the copy


def test_what_is_not_in_the_copy_or_was_changed_since_is_read(store, copied):
    ledger, path = copied
    other = reserved(request("0"), owner="somebody else")
    store.put(path, other.model_dump_json().encode())
    asyncio.run(ledger.reserve(reserved(request("new"))))
    again = Ledger(store, "drop").entries
    assert len(again) == 41
    assert again[other.request.fingerprint].last.reserved == other


def test_what_was_deleted_since_is_not_known_from_the_copy(store, copied):
    _, path = copied
    store.delete(path)
    assert len(Ledger(store, "drop").entries) == 39


@pytest.mark.parametrize("content", [b"", b"no copy", None], ids=["empty", "another", "cut"])
def test_a_copy_that_is_damaged_is_not_used(store, copied, content):
    ledger, _ = copied
    place = "ledger_copies/batch=drop.gz"
    store.put(place, store.get(place)[:-100] if content is None else content)
    assert Ledger(store, "drop").entries == ledger.entries


def test_a_ledger_that_learnt_little_since_keeps_no_new_copy(store, copied):
    again = Ledger(store, "drop")
    before = store.requests.copy()
    again.keep_copy()
    assert store.requests == before

"""What proves an end, and what is read of odd answers: a wire before the sandbox lies about requests."""

import asyncio
import json
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.utils import format_datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ideogram_pipeline import marks
from ideogram_pipeline.fal import FalClient, FalHosts, no_waiting
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.brake import BRAKE_AFTER
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.edges import edge_rows
from ideogram_pipeline.generation.engine import Engine
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.outcomes import Failed, Generated, NotReached, Reused, Unknown
from ideogram_pipeline.generation.planner import Plan, References, plan_batch
from ideogram_pipeline.generation.rebuild import rebuild_batch
from ideogram_pipeline.generation.reconcile import reconcile_batch
from ideogram_pipeline.generation.records import image_rows, outcome_rows
from ideogram_pipeline.generation.runs import beating
from ideogram_pipeline.marks.credentials import Signer
from ideogram_pipeline.pictures import inspect
from ideogram_pipeline.sandbox import Fault, SandboxSettings, running_sandbox
from ideogram_pipeline.sandbox.control import Change
from ideogram_pipeline.tables.rows import PromptRow

BATCH = "drop"
NOWHERE = "http://127.0.0.1:9"
"""Nothing listens on the discard port: fal's list can't be read."""


class Lie:
    """An answer in place of fal's."""

    def __init__(self, status, body=b"", headers=None):
        self.status, self.headers = status, {"x-fal-request-id": "of-this-answer", **(headers or {})}
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


class Wire:
    """Passes everything on to the sandbox on 127.0.0.1, and lies about what it is told to."""

    def __init__(self, url):
        self._rules = []
        self.lied = Counter()
        wire, behind = self, url.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                connection = HTTPConnection(behind)
                connection.request(self.command, self.path, body, dict(self.headers))
                found = connection.getresponse()
                content, headers = found.read(), dict(found.getheaders())
                connection.close()
                status, headers, content = wire._told(self.command, self.path, found.status, headers, content)
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = pass_on

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def lie(self, about, lie, *, times=10**9):
        """Tell a `Lie`, or what a function makes of the true body, so many times for each path of a kind."""
        self._rules.append((about, lie, times, Counter()))

    def be_honest(self):
        self._rules.clear()

    def _told(self, method, target, status, headers, content):
        path = target.partition("?")[0]
        for about, lie, times, told in self._rules:
            if about != _kind(method, path) or told[path] >= times:
                continue
            told[path] += 1
            self.lied[about] += 1
            found = lie if isinstance(lie, Lie) else lie(json.loads(content))
            if isinstance(found, Lie):
                return found.status, found.headers, found.body
            return status, headers, json.dumps(found).encode()
        return status, headers, content

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def _kind(method, path):
    if "/requests/" not in path or path.startswith("/v1/"):
        return "submit" if method == "POST" and path.startswith("/fal-ai/") else "other"
    if method == "PUT":
        return "cancel"
    return "status" if path.endswith("/status") else "result"


@pytest.fixture
def sandbox():
    with running_sandbox(SandboxSettings(latency_scale=0, concurrency=100)) as running:
        yield running


@pytest.fixture
def wire(sandbox):
    wire = Wire(sandbox.url)
    yield wire
    wire.close()


def planned(store, count=8, **cells):
    """Plan rows as a run would."""
    rows = [
        PromptRow(prompt_id=f"p{number}", batch=BATCH, row_number=number, prompt=f"scene {number}", **cells)
        for number in range(count)
    ]
    return plan_batch(BATCH, rows, (), References({}, {}), Ledger(store, BATCH).entries)


class Run:
    """One run of an engine on a batch, as a process would make it."""

    def __init__(self, store, wire, *, api=None, run_id="run", marking=None, per_day_usd=None, in_flight=16):
        self.store, self.run_id, self.marking, self.in_flight = store, run_id, marking or Marking(), in_flight
        self.hosts = FalHosts(queue=wire.url, rest=wire.url, api=api or wire.url)
        self.ledger = Ledger(store, BATCH)
        self.budget = Budget(
            store, run_id=run_id, per_run_usd=None, per_day_usd=per_day_usd, allow_unknown=False
        )

    def ended(self, outcome, spent_usd):
        pass

    async def work(self, plan: Plan):
        async with FalClient("key:secret", self.hosts) as fal:
            engine = Engine(
                fal,
                self.store,
                self.ledger,
                run=RunFacts(run_id=self.run_id, backend="sandbox", code_version="test"),
                max_in_flight=self.in_flight,
                max_wait_s=3600.0,
                inline_bytes=0,
                thumbnails=False,
                budget=self.budget,
                observer=self,
                marking=self.marking,
            )
            return list(await engine.run(plan.requests))

    def __call__(self, plan: Plan):
        with no_waiting():
            outcomes = asyncio.run(self.work(plan))
        entries = self.ledger.entries
        files.write_plan(self.store, plan)
        files.write_results(
            self.store, BATCH, image_rows(plan, entries), outcome_rows(plan, outcomes, entries)
        )
        files.write_edges(self.store, BATCH, edge_rows(entries))
        return outcomes


def kinds(outcomes):
    return Counter(type(outcome) for outcome in outcomes)


def typed(error_type="runner_disconnected", status=503):
    return Lie(status, {"detail": "it broke", "error_type": error_type})


def nameless(lie):
    """Make it an answer that doesn't tell whose it is, so that it may be the request's own."""
    lie.headers.clear()
    return lie


PASSING = {
    "500 with an id": Lie(500, {"detail": "Internal Server Error"}),
    "500 without a word": Lie(500),
    "502 page": Lie(502, b"<html>nginx</html>"),
    "404": Lie(404, {"detail": "Request not found"}),
    "404 status": Lie(404, {"status": "NOT_FOUND"}),
    "404 page": Lie(404, b"<html>"),
    "400": Lie(400, {"detail": "Bad request"}),
    "still in progress": Lie(400, {"detail": "Request is still in progress"}),
    "422 without a type": Lie(422, {"detail": "no"}),
    "499": Lie(499, {"detail": "gone"}),
    "200 page": Lie(200, b"<html>"),
    "200 of another kind": Lie(200, {"pictures": []}),
    "200 without pictures": Lie(200, {"images": [], "seed": 1}),
    "typed 503": typed(),
    "typed 422": Lie(422, {"detail": [{"type": "content_policy_violation", "msg": "no", "loc": ["body"]}]}),
    "typed 499": typed("client_cancelled", 499),
    "typed 503 without an id": nameless(typed()),
    "typed 422 without an id": nameless(
        Lie(422, {"detail": [{"type": "content_policy_violation", "msg": "no", "loc": ["body"]}]})
    ),
}


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("lie", PASSING.values(), ids=PASSING)
def test_a_wrong_answer_to_the_question_for_a_result_passes(store, sandbox, wire, lie, times):
    """One 500 with a request id on the first GET of a finished result: 3 rows were paid 9 times, 0 pictures arrived."""
    wire.lie("result", lie, times=times)
    outcomes = Run(store, wire, per_day_usd=Decimal("0.18"))(planned(store, 3))
    assert kinds(outcomes) == {Generated: 3}
    assert wire.lied["result"] == 3 * times
    assert sandbox.stats().accepted == 3
    assert sum(one.entry.cost.usd for one in outcomes) == sandbox.stats().usd == Decimal("0.18")


def test_an_end_that_two_asks_of_three_tell_is_none(store, sandbox, wire):
    wire.lie("result", PASSING["404"], times=1)
    wire.lie("result", PASSING["typed 503 without an id"], times=2)
    limit = {"per_day_usd": Decimal("0.18"), "api": NOWHERE}
    Run(store, wire, **limit)(planned(store, 3))
    assert wire.lied["result"] == 9
    wire.be_honest()
    last = Run(store, wire, run_id="later", **limit)(planned(store, 3))
    assert all(isinstance(one, Generated | Reused) for one in last)
    assert (sandbox.stats().accepted, sandbox.stats().usd) == (3, Decimal("0.18"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSING)
def test_a_wrong_answer_to_the_question_for_a_status_passes(store, sandbox, wire, name):
    wire.lie("status", PASSING[name], times=1)
    assert kinds(Run(store, wire)(planned(store, 3))) == {Generated: 3}
    assert wire.lied["status"] == sandbox.stats().accepted == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PASSING if "typed" not in name and "still" not in name])
def test_a_result_that_can_not_be_read_leaves_its_row_open_and_its_money_reserved(store, sandbox, wire, name):
    wire.lie("result", PASSING[name])
    limit = {"per_day_usd": Decimal("0.12")}
    first = Run(store, wire, api=NOWHERE, **limit)(planned(store, 3))
    assert kinds(first) == {NotReached: 3}
    assert sum("is with fal, could not be read yet" in one.reason for one in first) == 2
    assert sum("budget" in one.reason for one in first) == 1
    again = Run(store, wire, api=NOWHERE, run_id="again", **limit)(planned(store, 3))
    assert kinds(again) == {NotReached: 3}
    assert (sandbox.stats().accepted, sandbox.stats().usd) == (2, Decimal("0.12"))
    wire.be_honest()
    last = Run(store, wire, api=NOWHERE, run_id="last", **limit)(planned(store, 3))
    assert kinds(last) == {Generated: 2, NotReached: 1}
    assert sandbox.stats().accepted == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "told",
    [
        {"seed": None},
        {"seed": 10**30},
        {"seed": 2**63},
        {"seed": "seven"},
        {"seed": -1.5},
        {"images": "with an odd size"},
        {"timings": {"inference": 1}, "has_nsfw_concepts": [False]},
    ],
    ids=str,
)
def test_an_odd_field_of_a_result_costs_no_picture(store, sandbox, wire, told):
    """A null seed, a huge one, or file_size "huge" once settled the row as failed, or broke every later run."""

    def change(body):
        odd = [{**one, "file_size": "huge", "content_type": None} for one in body["images"]]
        return {**body, **told, "images": odd}

    wire.lie("result", change)
    assert kinds(Run(store, wire)(planned(store, 3))) == {Generated: 3}
    wire.be_honest()
    assert kinds(Run(store, wire)(planned(store, 3))) == {Reused: 3}
    assert rebuild_batch(store, BATCH).images == 3
    assert sandbox.stats().accepted == 3


@pytest.mark.parametrize("times", [1, 2, 10**9])
def test_a_result_with_too_few_pictures_is_asked_for_again(store, sandbox, wire, times):
    """One answer that lacked three of four pictures once made the row generated, with one."""
    wire.lie("result", lambda told: {**told, "images": told["images"][:1]}, times=times)
    (outcome,) = Run(store, wire)(planned(store, 1, num_images=4))
    assert type(outcome) is Generated
    assert len(outcome.entry.last.settled.images) == (4 if times < 3 else 1)
    assert wire.lied["result"] == min(times, 3)


@pytest.mark.parametrize("size", [(9, 9), (1024, 1024)])
def test_another_picture_in_the_place_of_a_paid_one_is_not_taken_for_it(store, sandbox, wire, picture, size):
    """It once stood in the ledger as what was paid for, with the size of what fal had sent."""
    plan = planned(store, 1)
    (request,) = plan.requests
    store.put(f"images/batch={BATCH}/p0-{request.fingerprint[:8]}-0.png", picture(size=size))
    (outcome,) = Run(store, wire)(plan)
    (image,) = outcome.entry.last.settled.images
    found = inspect(store.get(image.path))
    assert (found.sha256, found.width, found.height) == (image.sha256, 1024, 1024)
    assert marks.read(store.get(image.path)).fingerprint == request.fingerprint


def test_a_missing_seed_costs_no_picture(store, sandbox, wire):
    wire.lie("result", lambda body: {"images": body["images"]})
    assert kinds(Run(store, wire)(planned(store, 3))) == {Generated: 3}
    assert {one.seed_returned for one in files.read_images(store, BATCH)} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1e300, -1e12, "1e15", "nan", None, {}, 10**400])
def test_an_odd_inference_time_costs_no_picture(store, sandbox, wire, seconds):
    """A time of 1e300 once stood in the ledger for good: a traceback on every later run, and no rebuild."""
    wire.lie("status", lambda body: {**body, "metrics": {"inference_time": seconds}, "queue_position": 1e300})
    assert kinds(Run(store, wire)(planned(store, 3))) == {Generated: 3}
    assert kinds(Run(store, wire)(planned(store, 3))) == {Reused: 3}
    assert rebuild_batch(store, BATCH).images == 3
    assert {one.inference_s for one in files.read_images(store, BATCH)} == {None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"), [("seed", 10**30), ("seed", 2**63), ("inference_s", 1e300), ("inference_s", -1e12)]
)
def test_a_ledger_with_numbers_beyond_reason_is_read_recorded_and_rebuilt(store, sandbox, wire, field, value):
    Run(store, wire)(planned(store, 3))
    for found in [one.path for one in store.objects(f"ledger/batch={BATCH}") if "settled" in one.path]:
        store.put(found, json.dumps(json.loads(store.get(found)) | {field: value}).encode())
    store.delete(f"ledger_copies/batch={BATCH}.gz")
    assert kinds(Run(store, wire)(planned(store, 4))) == {Reused: 3, Generated: 1}
    assert rebuild_batch(store, BATCH).images == 4
    rows = files.read_images(store, BATCH)
    assert [row.seed_returned if field == "seed" else row.inference_s for row in rows][:3] == [None] * 3


def test_answers_that_nobody_can_read_stop_the_batch_and_a_later_run_reads_them(store, sandbox, wire):
    """A changed field in fal's answer would burn a whole batch, and no brake stopped it."""
    wire.lie("result", lambda body: {"pictures": body["images"]})
    outcomes = Run(store, wire, api=NOWHERE, in_flight=4)(planned(store, 40))
    assert kinds(outcomes) == {NotReached: 40}
    paid = sandbox.stats().accepted
    assert BRAKE_AFTER <= paid <= BRAKE_AFTER + 2 * 4
    assert sum("could not be read; run again later" in one.reason for one in outcomes) == 40 - paid
    wire.be_honest()
    assert kinds(Run(store, wire)(planned(store, 40))) == {Generated: 40}
    assert sandbox.stats().accepted == 40


def test_answers_to_submits_that_nobody_can_read_stop_the_batch(store, sandbox, wire):
    wire.lie("submit", lambda body: {"id": body["request_id"]})
    plan = planned(store, 40)
    outcomes = Run(store, wire, api=NOWHERE, in_flight=4)(plan)
    paid = sandbox.stats().accepted
    assert kinds(outcomes) == {Unknown: paid, NotReached: 40 - paid}
    assert BRAKE_AFTER <= paid <= BRAKE_AFTER + 4
    wire.be_honest()
    assert kinds(Run(store, wire)(plan)) == {Generated: 40}
    assert sandbox.stats().accepted == 40


def test_an_error_without_a_type_is_an_end_once_fals_list_says_so(store, sandbox, wire):
    sandbox.change(Change(faults=(Fault("runner_503", match="scene 1"),)))
    wire.lie("result", lambda body: body if "images" in body else PASSING["500 with an id"])
    first, second, third = Run(store, wire)(planned(store, 3))
    assert kinds((first, third)) == {Generated: 2}
    assert isinstance(second, Failed)
    assert "fal lists the request" in second.reason
    assert second.entry.cost.usd == 0
    assert second.entry.paid_attempts == 3


def test_an_error_without_a_type_is_no_end_where_the_list_can_not_be_read(store, sandbox, wire):
    sandbox.change(Change(faults=(Fault("runner_503", match="scene 1"),)))
    wire.lie("result", lambda body: body if "images" in body else PASSING["500 with an id"])
    _, second, _ = Run(store, wire, api=NOWHERE)(planned(store, 3))
    assert isinstance(second, NotReached)
    assert (second.entry.state, second.entry.paid_attempts) == ("submitted", 1)


def test_a_result_that_the_queue_never_gives_is_taken_from_fals_list(store, sandbox, wire):
    wire.lie("result", Lie(404, {"detail": "Request not found"}))
    assert kinds(Run(store, wire)(planned(store, 3))) == {Generated: 3}


@pytest.mark.parametrize(("days", "kind"), [(29, NotReached), (31, Failed)])
def test_a_request_that_fal_does_not_know_is_gone_after_thirty_days_of_its_own_clock(
    store, sandbox, wire, days, kind
):
    then = format_datetime(datetime.now(UTC) + timedelta(days=days), usegmt=True)
    wire.lie("result", Lie(404, {"detail": "Request not found"}, {"Date": then}))
    (outcome,) = Run(store, wire, api=NOWHERE)(planned(store, 1))
    assert type(outcome) is kind
    assert outcome.entry.last.submitted.accepted_at is not None
    assert Run(store, wire, api=NOWHERE)(planned(store, 1))[0].entry.paid_attempts == 1
    assert sandbox.stats().accepted == 1


def test_a_clock_that_is_wrong_by_a_month_makes_no_request_gone(store, sandbox, wire):
    """An answer that did not tell the time was once measured by the clock of this machine."""
    wire.lie("result", Lie(404, {"detail": "Request not found"}))
    (outcome,) = Run(store, wire, api=NOWHERE)(planned(store, 1))
    [submitted] = (store.folder / "ledger").rglob("1-submitted.json")
    told = json.loads(submitted.read_text())
    before = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    submitted.write_text(json.dumps({**told, "accepted_at": before, "submitted_at": before}))
    (outcome,) = Run(store, wire, api=NOWHERE)(planned(store, 1))
    assert type(outcome) is NotReached
    wire.be_honest()
    assert kinds(Run(store, wire)(planned(store, 1))) == {Generated: 1}
    assert sandbox.stats().accepted == 1


@pytest.mark.parametrize("name", [name for name in PASSING if "404" not in name])
def test_a_picture_that_is_lost_is_not_said_to_be_gone_at_fal_where_fal_did_not_say_so(
    store, sandbox, wire, name
):
    """The reason once advised to pay for a new take after any answer that could not be read."""
    plan = planned(store, 1)
    (outcome,) = Run(store, wire)(plan)
    store.delete(outcome.entry.last.settled.images[0].path)
    wire.lie("result", PASSING[name])
    (outcome,) = Run(store, wire, api=NOWHERE)(plan)
    assert (type(outcome), outcome.entry.state) == (Failed, "generated")
    assert "the next run tries again" in outcome.reason
    assert "replay" not in outcome.reason
    wire.be_honest()
    assert kinds(Run(store, wire)(plan)) == {Reused: 1}
    assert sandbox.stats().accepted == 1


def test_the_answer_of_another_row_is_not_taken_for_ones_own(store, sandbox, wire):
    seen = []

    def swapped(body):
        seen.append(body)
        return Lie(200, seen[0])

    wire.lie("result", swapped, times=2)
    Run(store, wire)(planned(store, 4))
    rows = files.read_images(store, BATCH)
    assert len({row.sha256_received for row in rows}) == 4
    assert all(row.seed_returned == row.seed for row in rows)


@pytest.mark.slow
def test_a_cancellation_that_is_answered_by_nonsense_proves_nothing(store, sandbox, wire):
    sandbox.change(Change(faults=(Fault("policy_refusal"),), concurrency=1, latency_scale=0.01))
    wire.lie("cancel", Lie(200, b"<html>"))
    plan = planned(store, 12)
    outcomes = Run(store, wire, in_flight=12)(plan)
    cancelled = [one for one in outcomes if one.entry and "cancelled" in getattr(one, "reason", "")]
    assert cancelled == []
    assert sandbox.stats().accepted == len([one for one in outcomes if one.entry and one.entry.attempts])


def test_two_runs_that_fetch_and_sign_the_same_requests_record_the_same_files(
    store, sandbox, wire, certificate
):
    """Paid once, both runs ended well, and afterwards every picture differed from its ledger entry."""
    plan = planned(store, 6)
    wire.lie("result", Lie(500))
    Run(store, wire, api=NOWHERE, run_id="first")(plan)
    wire.be_honest()
    signers = [Marking(signer=Signer.load(str(certificate.chain), str(certificate.key))) for _ in range(2)]
    runs = [Run(store, wire, run_id=f"{number}", marking=one) for number, one in enumerate(signers)]

    async def both():
        return await asyncio.gather(*(run.work(plan) for run in runs))

    with no_waiting():
        ended = asyncio.run(both())
    assert all(kinds(outcomes) == {Generated: 6} for outcomes in ended)
    assert sandbox.stats().accepted == 6
    assert rebuild_batch(store, BATCH).damaged == ()
    images = [one for entry in Ledger(store, BATCH).entries.values() for one in entry.last.settled.images]
    for image in images:
        store.delete(image.path)
    assert kinds(Run(store, wire, run_id="later", marking=signers[0])(plan)) == {Reused: 6}
    assert rebuild_batch(store, BATCH).damaged == ()


def test_reconciling_finds_a_submit_whose_answer_could_not_be_read(store, sandbox, wire):
    wire.lie("submit", Lie(200, b"<html>"))
    assert kinds(Run(store, wire, api=NOWHERE)(planned(store, 2))) == {Unknown: 2}

    async def look():
        async with FalClient("key:secret", FalHosts.at(sandbox.url)) as fal:
            return await reconcile_batch(fal, store, Ledger(store, BATCH))

    assert all(one.found for one in asyncio.run(look()))


def test_reconciling_leaves_alone_what_a_live_run_is_submitting(store, sandbox, wire):
    """It once took a retry of the live run for the answer to the attempt before."""
    wire.lie("submit", Lie(200, b"<html>"))
    assert kinds(Run(store, wire, api=NOWHERE, run_id="alive")(planned(store, 2))) == {Unknown: 2}

    async def look():
        async with FalClient("key:secret", FalHosts.at(sandbox.url)) as fal:
            return await reconcile_batch(fal, store, Ledger(store, BATCH), resubmit_after=timedelta(0))

    with beating(store, "alive"):
        found = asyncio.run(look())
    assert not any(one.found or one.given_up for one in found)
    assert {one.reason for one in found} == {"run alive is submitting it at this moment"}
    assert all(one.found for one in asyncio.run(look()))

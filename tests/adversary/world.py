"""One history: a table, a store, fal, and runs that come and go; what is done to them, and what must hold after it."""

import asyncio
import hashlib
import logging
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from urllib.parse import urlsplit

from ideogram_pipeline.fal import FalClient, WebhookRejected
from ideogram_pipeline.fal.webhooks import Delivery, read_delivery
from ideogram_pipeline.generation import files, readings, runs
from ideogram_pipeline.generation.adopting import adopt
from ideogram_pipeline.generation.batch import WorkOptions, work
from ideogram_pipeline.generation.books import RunFacts
from ideogram_pipeline.generation.budget import Budget
from ideogram_pipeline.generation.cancelling import cancel, with_fal
from ideogram_pipeline.generation.choice import Choice, Decisions
from ideogram_pipeline.generation.giving_up import give_up_batch
from ideogram_pipeline.generation.inbox import Address, Letter, Secret, put_letter
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.marking import Marking
from ideogram_pipeline.generation.planner import References, plan_batch, plan_row
from ideogram_pipeline.generation.reconcile import reconcile_batch
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.references import ReferencesTable, picture_path
from ideogram_pipeline.tables.rows import PromptRow, Reference
from tests.adversary.disk import Disk, Life
from tests.adversary.fal import Fal, Wire, picture
from tests.adversary.virtual_time import VirtualLoop, virtual

BATCH = "drop"
TABLE = "prompts.csv"
MOST_ROWS = 4
IN_FLIGHT = 3
FARTHEST_S = 20 * 3600.0
"""So far clocks jump: with a clock that is a day off, a submit that was not answered is not found in fal's list."""
PATIENCE_S = 300.0
"""How long a run waits for a request, in virtual seconds."""
ENDED_AFTER_S = 600.0
"""By then everything has ended that ends at all."""
CALM_RUNS = 3
"""So many runs after everything has calmed down bring all that fal has."""
ADA = picture("ada")
RECEIVER = "https://receiver.example"


class Broken(AssertionError):
    """Something that must hold doesn't."""


@dataclass
class Run:
    """A run of the batch, as a process of its own."""

    life: Life
    table: dict
    choice: Choice
    budget_usd: Decimal | None
    task: asyncio.Task | None = None
    cancel_queued: Callable[[], Awaitable[object]] | None = None

    @asynccontextmanager
    async def leaving(self, cancel_queued):
        """Let whoever terminates the run cancel what fal still queues."""
        self.cancel_queued = cancel_queued
        yield


class World:
    """All of it. Every step of a history is a method."""

    def __init__(self, rows, seed, day_usd, delivers):
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.disk = Disk(self.loop)
        self.fal = Fal(self.loop, self.rng, self._receive)
        self.webhook_url = RECEIVER if delivers else None
        self.table = {f"p{row}": 0 for row in range(rows)}
        """By row: the version of its prompt."""
        self.day_usd = day_usd
        self.offset_s = 0.0
        self.runs = []
        self.backup = None
        self.lives = []
        self.is_budget_whole = True
        """Whether the store knows of all that was spent."""
        self._slow = seed % 2 == 1
        self._write_reference()

    # The steps

    def start(self, *, dies_at=None, **choice):
        """Start a run of the table as it is, unless two are at work."""
        if len(self._working()) < 2:
            life = self._life("run", dies_at)
            run = Run(life, dict(self.table), Choice(**choice), self.day_usd)
            self.runs.append(run)
            run.task = self.loop.owned(life, self._run(run))
            self.loop.run_for(0)

    def wait(self, seconds):
        """Let time pass."""
        self.loop.run_for(seconds)

    def crash(self):
        """Kill the newest run."""
        if working := self._working():
            working[-1].life.die()
            self.loop.run_for(0)

    def detach(self):
        """Interrupt the newest run, so that it leaves what it has with fal."""
        if working := self._working():
            working[-1].task.cancel()
            self.loop.run_for(0)

    def terminate(self):
        """Interrupt the newest run as a person who wants nothing of what fal still queues."""
        if working := self._working():
            run = working[-1]

            async def cancelled():
                if run.cancel_queued:
                    await run.cancel_queued()
                run.task.cancel()

            self.loop.owned(run.life, cancelled())
            self.loop.run_for(0)

    def edit(self, row, version):
        """Write a row's prompt in one of its versions, or take the row out of the table."""
        if version is not None:
            self.table[f"p{row}"] = version
        elif len(self.table) > 1:
            self.table.pop(f"p{row}", None)

    def lie(self, kind, *lies):
        """Have fal answer so the next calls of a kind."""
        self.fal.lies[kind].extend(lies)

    def fate(self, *fates):
        """Decide how the next requests end that fal accepts."""
        self.fal.fates.extend(fates)

    def jump(self, seconds):
        """Set all clocks but fal's, which is at most a day apart from them."""
        self.offset_s = min(max(self.offset_s + seconds, -FARTHEST_S), FARTHEST_S)

    def reconcile(self):
        """Have somebody run `reconcile`."""
        self._person(lambda life: self._reconcile(life, gives_up=False))

    def give_up(self):
        """Have somebody give up what fal doesn't give and what was never answered, though it may then be paid twice."""
        self._person(lambda life: self._reconcile(life, gives_up=True))

    def cancel(self):
        """Have somebody cancel all that is with fal and no run works on."""
        self._person(self._cancel)

    def back_up(self):
        """Copy the store."""
        self.backup = self.disk.copy()

    def restore(self):
        """Have the last backup in place of the store, when nothing works any more, and do what people are told then."""
        if self.backup is not None:
            self._stop_all()
            self.disk.restore(self.backup)
            self._adopt()

    def lose_ledger(self, *, with_copies=False):
        """Lose the ledger, and its copies too, and do what people are told then."""
        self._stop_all()
        store = self._look()
        for folder in ("ledger", *(["ledger_copies"] if with_copies else [])):
            for found in list(store.objects(folder)):
                store.delete(found.path)
        self._adopt()

    # The end

    def calm_down(self):
        """Let fal tell the truth, all runs end, and people do what they are told until there is nothing left to do."""
        self.fal.lies.clear()
        self.fal.fates.clear()
        self.day_usd = None
        self.offset_s = 0.0
        for run in self._working():
            self._finish(run)
        self.fal.lies.clear()
        for _ in range(CALM_RUNS):
            self.start()
            self._finish(self.runs[-1])
            if all(row.state not in ("unknown", "not_reached") for row in self._outcomes()):
                return
            self.loop.run_for(60)
            self.reconcile()

    def check_the_bill(self):
        """Raise `PaidTwice` if something was."""
        if self.fal.problem:
            raise self.fal.problem

    def check(self):
        """Raise `Broken` or `PaidTwice` for what doesn't hold now."""
        self.check_the_bill()
        ledger = Ledger(self._look(), BATCH)
        self._check_that_nothing_is_given_up(ledger)
        self._check_the_pictures(ledger)
        self._check_the_budget(ledger)
        return ledger

    def check_the_end(self):
        """Raise `Broken` for what doesn't hold although everything has calmed down."""
        ledger = self.check()
        self._check_the_rows(ledger)
        self._check_that_all_was_fetched(ledger)

    def close(self):
        """End everything that still runs."""
        for life, tasks in self.loop.tasks.items():
            life.die()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(list(tasks)))
        self.loop.close()

    # How it is done

    def _life(self, name, dies_at=None):
        life = Life(self.loop, f"{name}-{len(self.lives)}", latency_s=self._latency_s, dies_at=dies_at)
        self.lives.append(life)
        return life

    def process(self, pid):
        """Return the name of the process with this id, as `runs` does; that of the one that asks, for the real id."""
        running = asyncio.current_task(self.loop)
        if pid == os.getpid():
            return f"-{self.lives.index(running.owner) + 1}@" if running and running.owner else ""
        life = self.lives[-pid - 1]
        return f"{pid}@" if self.loop.tasks[life] and not life.dead else ""

    def _latency_s(self):
        return self.rng.choice((0.0, 0.001, 0.1)) if self._slow else 0.001

    def _working(self):
        return [run for run in self.runs if not run.task.done()]

    def _finish(self, run):
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(run.task)

    def _outcomes(self):
        return files.read_outcomes(self._look(), BATCH)

    def _person(self, command):
        """Run a command of a person's to its end."""
        life = self._life("person")
        self.loop.run_until_complete(self.loop.owned(life, command(life)))

    def _look(self):
        return self.disk.seen_by(self._life("look"))

    def _stop_all(self):
        for run in self._working():
            run.life.die()
        self.loop.run_for(0)

    def _adopt(self):
        """Enter what was paid for once fal lists all that can end, when fal tells the truth.

        Nobody can find what no row of the table asks for any more, nor what fal doesn't list because it never ends.
        """
        self.is_budget_whole = False
        self.fal.lies.clear()
        self.loop.run_for(ENDED_AFTER_S)
        rows = self._rows(self.table)
        prompts = {row.prompt for row in rows}
        for request in self.fal.requests.values():
            if request.body["prompt"] not in prompts or not request.has_ended(self.loop.now_s):
                self.fal.excused.add(request.asks_for)
        asked = {BATCH: [plan_row(row, References({"ada": self._ada}, {})) for row in rows]}

        async def adopted(life):
            store = self.disk.seen_by(life)
            with runs.working(store, life.name, BATCH):
                async with self._client(life) as client:
                    facts = RunFacts(run_id=life.name, backend="fal", code_version="1")
                    await adopt(client, store, asked, run=facts, told=lambda _: None)

        self._person(adopted)

    def _write_reference(self):
        self._ada = Reference(
            reference_id="ada",
            role="character",
            uri="ada.png",
            kind="png",
            sha256=hashlib.sha256(ADA).hexdigest(),
            bytes=len(ADA),
            width=2,
            height=2,
            row_number=1,
        )
        self._look().put(picture_path(self._ada), ADA)

    def _rows(self, table):
        return [
            PromptRow(
                prompt_id=name,
                batch=BATCH,
                row_number=number,
                prompt=f"{name} v{version}",
                reference_ids=("ada",) if name == "p1" else (),
                num_images=2 if name == "p2" else 1,
                rendering_speed="TURBO",
            )
            for number, (name, version) in enumerate(sorted(table.items()))
        ]

    async def _run(self, run):
        """Do what the command does: read the table, plan the batch and work it."""
        store, name = self.disk.seen_by(run.life), run.life.name
        readings.write_references(store, ReferencesTable((self._ada,), (), TABLE))
        readings.write_prompts(store, PromptsTable(tuple(self._rows(run.table)), (), TABLE))
        read = readings.newest_tables(store, TABLE, TABLE)
        rows, rejections = read.read_prompts(BATCH)
        plan = plan_batch(
            BATCH,
            rows,
            rejections,
            read.read_references(files.named_by(rows)),
            Ledger(store, BATCH).entries,
            choice=run.choice,
            left_without=files.left_without_picture(store, BATCH),
            decisions=Decisions(store, BATCH, name),
        )
        plan = replace(plan, reading=read.prompts_reading)
        files.write_plan(store, plan, root_run_id=name)
        budget = Budget(store, run_id=name, per_run_usd=None, per_day_usd=run.budget_usd, allow_unknown=False)
        options = WorkOptions(
            run=RunFacts(run_id=name, backend="fal", code_version="1"),
            budget=budget,
            observer=_Nobody(),
            marking=Marking(),
            max_in_flight=IN_FLIGHT,
            max_wait_s=PATIENCE_S,
            inline_bytes=0,
            thumbnails=False,
            webhook_url=self.webhook_url,
        )
        await work(store, plan, lambda: self._client(run.life), options, leaving=run.leaving)

    async def _receive(self, url, body):
        """Do what the receiver does with a delivery that fal has signed."""
        store = self.disk.seen_by(self._life("receiver"))
        batch, fingerprint, attempt, token = urlsplit(url).path.split("/")[1:]
        address = Address(batch, fingerprint, int(attempt))
        if address.is_ours(token, Secret.of(store)):
            with suppress(WebhookRejected):
                request_id, outcome = read_delivery(body)
                delivery = Delivery(request_id, "account", outcome, repeated=False)
                await put_letter(store, address, Letter.of(delivery))

    def _client(self, life):
        return FalClient("id:secret", transport=Wire(self.fal, life))

    async def _reconcile(self, life, *, gives_up):
        store = self.disk.seen_by(life)
        with runs.working(store, life.name, BATCH):
            ledger = Ledger(store, BATCH)
            open_before = {name for name, entry in ledger.entries.items() if not entry.last.settled}
            async with self._client(life) as client:
                if gives_up:
                    await give_up_batch(client, store, ledger, with_fal(ledger), life.name)
                await reconcile_batch(
                    client, store, ledger, resubmit_after=timedelta(0) if gives_up else None
                )
        for name in open_before:
            last = ledger.entries[name].last
            if last.settled:
                self.fal.excused |= self.fal.asked_by(last.reserved.request.arguments)

    async def _cancel(self, life):
        store = self.disk.seen_by(life)
        with runs.working(store, life.name, BATCH):
            ledger = Ledger(store, BATCH)
            async with self._client(life) as client:
                await cancel(client, store, ledger, with_fal(ledger), own_id=life.name)

    # What must hold

    def _check_that_nothing_is_given_up(self, ledger):
        for entry in ledger.entries.values():
            for attempt in entry.attempts:
                if not attempt.submitted or not attempt.settled or attempt.settled.state == "generated":
                    continue
                request = self.fal.requests.get(attempt.submitted.request_id)
                if request and request.still_gives(self.loop.now_s) and not self._is_excused(request):
                    raise Broken(
                        f"{request.body['prompt']!r} is given up ({attempt.settled.reason}), "
                        f"and fal still has what {request.id[:8]} made"
                    )

    def _is_excused(self, request):
        return request.asks_for in self.fal.excused

    def _check_the_pictures(self, ledger):
        store, named = self._look(), {}
        for fingerprint, entry in ledger.entries.items():
            for attempt in entry.attempts:
                for image in attempt.settled.images if attempt.settled else ():
                    named[image.path] = fingerprint
                    if hashlib.sha256(store.get(image.path)).hexdigest() != image.sha256:
                        raise Broken(f"{image.path} is not the picture that the ledger names")
        open_ones = {name[:8] for name, entry in ledger.entries.items() if entry.state == "submitted"}
        pictures = {one.path for one in store.objects(f"images/batch={BATCH}") if one.path.endswith(".png")}
        for path in pictures - named.keys():
            if path.rsplit("-", 2)[1] not in open_ones:
                raise Broken(f"{path} is in the store, and no ledger entry names it")

    def _check_the_budget(self, ledger):
        """No day's bill is above the budget: what was reserved for a request stays so until its end is proven."""
        if self.day_usd is None or not self.is_budget_whole:
            return
        bills = Counter()
        for entry in ledger.entries.values():
            for attempt in entry.attempts:
                if attempt.released:
                    continue
                asked = attempt.reserved.request
                known = attempt.submitted and self.fal.requests.get(attempt.submitted.request_id)
                if known.is_paid if known else self.fal.holds(asked.arguments, lambda one: one.is_paid):
                    bills[attempt.reserved.reserved_at.date()] += asked.price_usd
        for day, usd in bills.items():
            if usd > self.day_usd:
                raise Broken(f"fal bills ${usd} for {day}, and the budget is ${self.day_usd}")

    def _check_the_rows(self, ledger):
        """Each row of the table has one outcome, and metadata, outcomes, ledger and files agree."""
        store, rows = self._look(), self._outcomes()
        if sorted(row.prompt_id for row in rows) != sorted(self.table):
            raise Broken(
                f"outcomes of {[row.prompt_id for row in rows]}, and the table has {list(self.table)}"
            )
        for row in rows:
            entry = ledger.entries.get(row.fingerprint)
            has_pictures = entry is not None and entry.state == "generated"
            if (row.state == "generated") != has_pictures:
                raise Broken(f"{row.prompt_id} is {row.state}, and its ledger entry {entry and entry.state}")
        told = {
            (f"images/batch={BATCH}/{one.file_name}", one.sha256) for one in files.read_images(store, BATCH)
        }
        kept = {
            (image.path, image.sha256)
            for entry in ledger.entries.values()
            for attempt in entry.attempts
            for image in (attempt.settled.images if attempt.settled else ())
        }
        if told != kept:
            raise Broken(f"metadata and ledger differ in {sorted(told ^ kept)}")

    def _check_that_all_was_fetched(self, ledger):
        """What fal has for a row of the table is in the store."""
        for row in self._outcomes():
            entry = ledger.entries.get(row.fingerprint)
            if entry is None or entry.state == "generated":
                continue
            for attempt in entry.attempts:
                request = attempt.submitted and self.fal.requests.get(attempt.submitted.request_id)
                if request and request.still_gives(self.loop.now_s) and not self._is_excused(request):
                    raise Broken(
                        f"{row.prompt_id} stays {row.state} ({row.reason}), and fal has {request.id[:8]}"
                    )
            never_ends = row.request_id and self.fal.requests[row.request_id].how == "never"
            asked = entry.last.reserved.request.arguments if entry else {}
            is_nowhere = row.state == "unknown" and not self.fal.holds(
                asked, lambda one: one.how == "picture" and not one.cancelled
            )
            if row.state in ("unknown", "not_reached") and not never_ends and not is_nowhere:
                raise Broken(f"{row.prompt_id} stays {row.state}: {row.reason}")


class _Nobody:
    """Watches a run and says nothing."""

    def ended(self, outcome, spent_usd):
        pass


@contextmanager
def a_world(rows=1, seed=0, day_usd=None, delivers=False):
    """A world whose processes and clocks are its own; all its runs together may spend so much a day.

    Where fal delivers how requests ended, a receiver takes it.
    """
    world = World(rows, seed, day_usd, delivers)
    heard = _Errors()
    log = logging.getLogger("ideogram_pipeline")
    log.addHandler(heard)
    process, beat_every_s = runs._process, runs.BEAT_EVERY_S
    with virtual(world.loop, lambda: world.offset_s):
        # Beats are threads, which know no virtual time: a process is looked for at once, as on one machine.
        runs._process, runs.BEAT_EVERY_S = world.process, 1e6
        try:
            yield world
            if heard.errors:
                raise Broken("; ".join(heard.errors))
        finally:
            world.close()
            runs._process, runs.BEAT_EVERY_S = process, beat_every_s
            log.removeHandler(heard)


class _Errors(logging.Handler):
    """Remembers what was logged as an error: what the code itself didn't expect."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.errors = []

    def emit(self, record):
        error = record.exc_info[1] if record.exc_info else None
        self.errors.append(f"{record.getMessage()}: {error!r}")

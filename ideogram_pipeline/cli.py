"""The `ideogram-pipeline` command."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.status import Status
from rich.table import Table
from rich.text import Text

from ideogram_pipeline.errors import ConfigurationError, PipelineError
from ideogram_pipeline.logs import Lines
from ideogram_pipeline.memory import lasting
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.texts import counted, json_shown, lines_shown, shown, without_access

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ideogram_pipeline.generation.billing import Bill
    from ideogram_pipeline.generation.choice import Choice
    from ideogram_pipeline.generation.outcomes import Outcome
    from ideogram_pipeline.launch import RunSummary
    from ideogram_pipeline.preview import BatchPlanSummary, PlanSummary, RowSummary
    from ideogram_pipeline.provenance.verifying import Verified

EXIT_CRASH = 1
EXIT_INCOMPLETE = 3
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
REASONS_SHOWN = 10
"""So many reasons for which rows have no picture a run's summary names."""

app = typer.Typer(
    name="ideogram-pipeline",
    help="Tables of prompts and reference pictures in, pictures out: through fal's Ideogram V3, paid for once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
_out = Console(markup=False, emoji=False, highlight=False)
_err = Console(stderr=True, markup=False, emoji=False, highlight=False)

Batches = Annotated[
    list[str] | None, typer.Option("--batch", help="Only this batch; repeat for more. Default: every batch.")
]
Regenerate = Annotated[
    bool,
    typer.Option(
        "--regenerate", help="Ask for a new take of every row: another seed, and paid for once more."
    ),
]
OnlyFailed = Annotated[
    bool,
    typer.Option(
        "--only-failed",
        help="Only rows that an earlier run left without a picture; with --regenerate also those that were refused or "
        "failed for good.",
    ),
]
RegenerateRejected = Annotated[
    bool,
    typer.Option(
        "--regenerate-rejected",
        help="Ask for a new take of the rows of which a picture is rejected in IDEOGRAM_REVIEWS, and pay for no other; "
        "where a row has several pictures, one that is rejected is enough.",
    ),
]
OlderThan = Annotated[
    str | None,
    typer.Option(
        metavar="DURATION",
        help="Only requests older than this, such as 90s, 30m, 2h, 3d. Default: all of them.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="Pay for at most so many rows of each batch, the first of the table."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def main() -> None:
    """Run the command; a mistake that a person can mend ends in one line and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal may lack a character, and gets its escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except PipelineError as error:
        _say(str(error), mark="error:", style="bold red", to=_err)
        sys.exit(EXIT_USAGE)
    except Exception:
        typer.echo(lines_shown(without_access(traceback.format_exc())), err=True)
        sys.exit(EXIT_CRASH)


@app.command()
def run(
    *,
    batch: Batches = None,
    regenerate: Regenerate = False,
    only_failed: OnlyFailed = False,
    regenerate_rejected: RegenerateRejected = False,
    limit: Limit = None,
    max_spend: Annotated[
        float | None,
        typer.Option(
            "--max-spend", metavar="USD", help="Dollars this run may spend, if less than IDEOGRAM_BUDGET_USD."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Make every picture that the prompts table asks for and that isn't there yet.

    Exit codes: 0 every row that was asked for has its pictures; 3 finished, some of them don't; 2 bad usage or
    configuration; 1 crash.
    """
    from ideogram_pipeline.generation.choice import Choice

    if max_spend is not None and max_spend <= 0:
        raise ConfigurationError(
            f"--max-spend is {max_spend:g}: nothing could be paid for. Give more than 0."
        )
    choice = Choice(regenerate, only_failed, limit, regenerate_rejected)
    _launch(Settings.from_environment(), batch or [], choice, max_spend_usd=max_spend, json=json)


def _launch(
    settings: Settings,
    batches: list[str],
    choice: Choice,
    *,
    max_spend_usd: float | None = None,
    json: bool = False,
) -> NoReturn:
    """Run batches, show how far they are, say what came of them, and end with the exit code that `run` documents."""
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "yes")
    with lasting():
        from ideogram_pipeline.launch import run as launch

    try:
        with Bar(settings) as bar:
            summary = launch(
                settings,
                batches,
                progress=bar,
                expect=bar.expect,
                choice=choice,
                max_spend_usd=max_spend_usd,
            )
    except KeyboardInterrupt:
        _say(
            "Interrupted. What was submitted is in the ledger: the next run fetches it and pays nothing twice.",
            to=_err,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if json:
        _say_json(summary)
    else:
        _print_summary(settings, summary)
    raise typer.Exit(0 if summary.complete else EXIT_INCOMPLETE)


@app.command()
def plan(
    *,
    batch: Batches = None,
    regenerate: Regenerate = False,
    only_failed: OnlyFailed = False,
    regenerate_rejected: RegenerateRejected = False,
    limit: Limit = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say of every row what would be done, and why.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Say what a run would do with every row and what it would cost. Sends and writes nothing.

    Exit codes: 0 every picture is there, or a run would bring some if there is money for it; 3 rows lack their
    pictures, and a run could bring none of them; 2 bad usage or configuration.
    """
    settings = Settings.from_environment()
    from ideogram_pipeline.generation.choice import Choice
    from ideogram_pipeline.preview import PlanSummary, budget_left, lost_ledgers, picked_to_replace, preview

    plans = preview(settings, batch or [], Choice(regenerate, only_failed, limit, regenerate_rejected))
    lost = lost_ledgers(settings, [plan.batch for plan in plans])
    picked = picked_to_replace(settings, plans)
    summary = PlanSummary.of(
        plans,
        budget_left(settings),
        lost,
        picked,
        max_rejected_fraction=settings.max_rejected_fraction,
    )
    if json:
        _say_json(summary, exclude=None if verbose else {"decisions", "advice"})
    else:
        _print_plan(settings, summary, verbose=verbose)
    raise typer.Exit(EXIT_INCOMPLETE if summary.is_stuck else 0)


@app.command()
def reconcile(
    batch: Batches = None,
    resubmit_unknown_after: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Give up unanswered submits older than this (such as 90s, 30m, 2h, 3d) that are not found: the next "
            "run submits them again, and they may then be paid twice.",
        ),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option(
            "--adopt",
            help="First enter into the ledger what was paid for and is missing from it. Needed after the ledger was "
            "lost, restored from a backup, or copied with its store.",
        ),
    ] = False,
    give_up: Annotated[
        bool,
        typer.Option(
            "--give-up",
            help="Ask fal once more, then give up the submits that it never answered and the requests whose pictures "
            "can't be read. The next run submits them again, and they may then be paid twice. Requests that still "
            "wait in fal's queue are cancelled.",
        ),
    ] = False,
    older_than: OlderThan = None,
) -> None:
    """Look at fal for submits that were never answered, and for what it charged for the others.

    A submit that is found is fetched by the next run, without paying again. A charge that is found replaces the list
    price as the row's cost, in metadata, outcomes, catalog and gallery at once (cost_source: billing_event); this takes
    a key that may read billing events (scope ADMIN), and goes without where it may not.

    With --adopt, the requests of all rows in the tables, with all their takes, are first looked for in the ledger's
    copy, in what the batches left (metadata with its pictures, outcomes, lineage) and in fal's list of the last 30
    days. What is found is not paid for again. fal doesn't list requests that are still queued, and where it stores no
    input nobody can tell whose a request is.

    Exit codes: 0 no submit is unknown any more; 3 some submits stay unknown, fal's list could not be read to its
    end, or something that was to be given up is still open.
    """
    if give_up and resubmit_unknown_after:
        raise ConfigurationError(
            "Name either --give-up or --resubmit-unknown-after: the first includes the second."
        )
    if older_than and not give_up:
        raise ConfigurationError(
            "--older-than only limits what --give-up gives up: add --give-up, or leave it out."
        )
    give_up_after = _duration(older_than or "0s") if give_up else None
    resubmit_after = _duration(resubmit_unknown_after) if resubmit_unknown_after else give_up_after
    settings = Settings.from_environment()
    from ideogram_pipeline.repair import reconcile as look
    from ideogram_pipeline.repair import refuse_unknown

    if not adopt:
        refuse_unknown(settings, batch or [])
    left_open = _adopt(settings, batch or []) if adopt else 0
    with _err.status("asking fal"):
        reconciled = look(settings, batch or [], resubmit_after=resubmit_after, give_up_after=give_up_after)
    for asked in reconciled.given_up:
        _say(f"{asked.request.told}: {asked.says}")
    for line in reconciled.damaged:
        _say(f"unknown: {line}")
    for one in reconciled.unanswered:
        price = "an unknown price" if one.price_usd is None else f"${one.price_usd:.2f}"
        if one.found:
            says = f"found as {one.found}; the next run fetches it"
        elif one.given_up:
            says = f"given up by choice; the next run submits it again, for {price}, perhaps a second time"
        else:
            says = f"still unknown: {one.reason}; it may have cost {price}"
        where = f"{one.batch}, {one.prompt_id}, sent {one.reserved_at:%Y-%m-%d %H:%M:%S} UTC"
        _say(f"{where}: {says}")
    for bill in reconciled.bills:
        if bill.billed or not reconciled.bills_unread:
            _say(_billed(settings, bill))
    if reconciled.bills_unread:
        says = f"fal's bills could not be read, costs stay as they were: {reconciled.bills_unread}"
        _say(says)
    unknown = sum(not one.found and not one.given_up for one in reconciled.unanswered)
    is_open = unknown or reconciled.damaged or not all(one.is_decided for one in reconciled.given_up)
    _say(
        f"{counted(len(reconciled.unanswered), 'submit was', 'submits were')} never answered; "
        f"{counted(unknown, 'is', 'are')} still unknown."
    )
    raise typer.Exit(EXIT_INCOMPLETE if is_open or left_open else 0)


def _adopt(settings: Settings, batches: list[str]) -> int:
    """Enter what was paid for, say what was found, and return how much of it stays open."""
    from ideogram_pipeline.repair import adopt

    with _err.status("reading the store") as status:
        adoption = adopt(settings, batches, told=lambda doing: status.update(Text(shown(doing))))
    lines = [f"{one.batch}, {one.prompt_id}, take {one.take}: {one.says}" for one in adoption.adopted]
    lines += [f"open: {one}" for one in adoption.left_open]
    lines += [f"paid for once, and no row asks for it: {one}" for one in adoption.lost]
    if adoption.not_found:
        why = "they are new, or fal no longer lists them"
        if adoption.left_open:
            why = "they are new, fal no longer lists them, or what is open hides them"
        lines.append(
            f"{counted(adoption.not_found, 'row was', 'rows were')} not found: {why}. The next run pays for them."
        )
    for line in (
        *lines,
        f"{counted(len(adoption.adopted), 'request was', 'requests were')} entered into the ledger.",
    ):
        _say(line)
    return len(adoption.left_open)


@app.command()
def cancel(
    batch: Batches = None,
    older_than: OlderThan = None,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """List the requests that are with fal, and since when, and cancel them. A live run's requests are left alone.

    A request that fal drops from its queue costs nothing, and the next run sends it again. One that fal already works
    on may still bring its pictures: it stays open, and the next run fetches it.

    Exit codes: 0 no such request is with fal any more; 3 some are; 2 bad usage, or nobody there to ask.
    """
    settings = Settings.from_environment()
    age = _duration(older_than or "0s")
    from ideogram_pipeline.repair import refuse_unknown, stuck

    refuse_unknown(settings, batch or [])
    with stuck(settings) as requests:
        with _counted("asking fal") as told:
            found = requests.look(batch or [], age, told)
        for stands in found:
            left = f"; left alone: the run {stands.worked_by} works on it" if stands.worked_by else ""
            says = f"{stands.request.told}: {stands.status}{left}"
            _say(says)
        idle = [stands.request for stands in found if not stands.worked_by]
        if not found:
            _say("Nothing is with fal." if older_than is None else "Nothing has been with fal for that long.")
            return
        if not idle:
            raise typer.Exit(EXIT_INCOMPLETE)
        _ask(yes, f"Cancel {counted(len(idle), 'request')}?")
        with _counted("cancelling") as told:
            cancelled = requests.cancel(idle, told)
    open_still = [one for one in cancelled if one.left]
    for one in open_still:
        _say(f"{one.request.told}: {one.left}")
    _say(
        f"{counted(len(cancelled) - len(open_still), 'request was', 'requests were')} cancelled, at no cost; "
        f"{counted(len(open_still), 'is', 'are')} still open."
    )
    raise typer.Exit(EXIT_INCOMPLETE if open_still or len(idle) < len(found) else 0)


@contextmanager
def _counted(what: str) -> Iterator[Callable[[], None]]:
    """Show how many requests were gone through; hand out what counts one."""
    with Progress(
        TextColumn(what),
        TextColumn("{task.completed} requests"),
        TimeElapsedColumn(),
        console=_err,
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda: bar.advance(task)


def _billed(settings: Settings, bill: Bill) -> str:
    if not bill.billed:
        return f"{bill.batch}: fal lists no charge for any of {counted(bill.requests, 'request')} yet"
    says = (
        f"{bill.batch}: fal charged ${bill.billed_usd:.2f}{_money_note(settings)} for {bill.billed} of "
        f"{counted(bill.requests, 'request')}; ${bill.expected_usd:.2f} was expected"
    )
    if bill.unforeseen:
        says += f", and ${bill.unforeseen_usd:.2f} is for {bill.unforeseen} whose cost was not known"
    if bill.difference_usd:
        side = "more" if bill.difference_usd > 0 else "less"
        says += f": ${abs(bill.difference_usd):.4f} {side} than expected"
    return says


@app.command()
def rebuild() -> None:
    """Make metadata, outcomes, catalog and gallery anew, from the ledger and the pictures alone. Sends nothing.

    Exit codes: 0 every picture of the ledger is there and whole, and so is the ledger; 3 some are not.
    """
    settings = Settings.from_environment()
    from ideogram_pipeline.repair import rebuild as make_anew

    rebuilt = make_anew(settings)
    for one in rebuilt:
        _say(f"{one.batch}: {counted(one.rows, 'row')}, {counted(one.images, 'picture')}")
        for path in one.damaged:
            _say(f"  missing or damaged: {path}")
        for line in one.unreadable:
            _say(f"  unknown: {line}")
    raise typer.Exit(EXIT_INCOMPLETE if any(one.damaged or one.unreadable for one in rebuilt) else 0)


def _duration(text: str) -> timedelta:
    units = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.isdecimal():
        raise ConfigurationError(f"{text!r} is not a duration; write a number and s, m, h or d, such as 2h.")
    try:
        duration = timedelta(**{units[unit]: int(number)})
        datetime.now(UTC) - duration
    except (OverflowError, ValueError):  # int() takes no number of thousands of digits
        raise ConfigurationError(
            f"{text!r} is longer than the calendar goes back; name a shorter duration."
        ) from None
    return duration


@app.command()
def sandbox(
    host: Annotated[str, typer.Option(envvar="SANDBOX_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(envvar="SANDBOX_PORT", min=1, max=65535, help="Port to listen on.")
    ] = 8188,
) -> None:
    """Serve the local stand-in for fal, and print the variables that point a run to it.

    How it behaves is set by variables: SANDBOX_KEY (the only key accepted), SANDBOX_STATE (a file that remembers
    requests and uploads), SANDBOX_CONCURRENCY, SANDBOX_LATENCY_SCALE (0 is no waiting), SANDBOX_SEED, SANDBOX_FAULTS
    (such as policy_refusal=0.05,submit_503), SANDBOX_RESULT_TTL (seconds), SANDBOX_MASK_REPAINTS (black or white), and
    SANDBOX_DRAWING (full or plain).
    """
    from ideogram_pipeline.sandbox import SandboxSettings, serve

    try:
        serve(SandboxSettings(host=host, port=port))
    except OSError as error:
        raise ConfigurationError(
            f"The sandbox can't listen on {host}:{port}: {error.strerror or error}."
        ) from None


@app.command()
def webhooks(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 is a free one.")] = 8189,
) -> None:
    """Serve the receiver of fal's webhooks, which puts results into the store for the runs that wait for them.

    It needs IDEOGRAM_BACKEND and IDEOGRAM_STORE as the runs have them, and no key. /health and /ready say how it is.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(as_json=False))
    logging.basicConfig(handlers=[handler])
    from ideogram_pipeline.receiver import serve

    try:
        serve(Settings.without_key(), host, port)
    except OSError as error:
        raise ConfigurationError(
            f"The receiver can't listen on {host}:{port}: {error.strerror or error}."
        ) from None


class Drawing(StrEnum):
    """How a lineage is written."""

    TREE = "tree"
    JSON = "json"
    DOT = "dot"
    MERMAID = "mermaid"


@app.command()
def lineage(
    key: Annotated[
        str,
        typer.Argument(
            help="A picture's path (also of a copy), SHA-256 of a picture or reference, prompt id, fingerprint or its "
            "first 8 digits, request id of fal, run id of Dagster, or reference id; `prompt:ada` where `ada` is many "
            "things.",
            metavar="KEY",
        ),
    ],
    *,
    upstream: Annotated[bool, typer.Option("--upstream", help="Only what it came from.")] = False,
    downstream: Annotated[bool, typer.Option("--downstream", help="Only what came of it.")] = False,
    drawing: Annotated[
        Drawing, typer.Option("--format", help="As a tree, as JSON, or for Graphviz (dot) or Mermaid.")
    ] = Drawing.TREE,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Say where a picture came from, and what came of it. Sends and writes nothing.

    Exit codes: 0 found; 3 nothing is called so; 2 the key names several things, or there is no lineage yet.
    """
    settings = Settings.without_key()
    from ideogram_pipeline.provenance import drawing as draw
    from ideogram_pipeline.provenance.lineage import UnknownKey, trace
    from ideogram_pipeline.storage import Store

    both = upstream == downstream
    try:
        found = trace(
            Store.open(settings.store), key, upstream=both or upstream, downstream=both or downstream
        )
    except UnknownKey as unknown:
        _say(str(unknown), to=_err)
        raise typer.Exit(EXIT_INCOMPLETE) from None
    match Drawing.JSON if json else drawing:
        case Drawing.TREE:
            Console(width=draw.WIDTH, emoji=False, highlight=False).print(draw.tree(found))
        case Drawing.JSON:
            _say_json(found)
        case Drawing.DOT:
            _hand_out(draw.dot(found))
        case Drawing.MERMAID:
            _hand_out(draw.mermaid(found))


class ReplayForm(StrEnum):
    """How a request is written down."""

    ROW = "row"
    CURL = "curl"
    PYTHON = "python"
    JAVASCRIPT = "javascript"


@app.command()
def replay(
    key: Annotated[
        str,
        typer.Argument(
            help="A picture, a fingerprint, a request id of fal, or a prompt id: then its newest take.",
            metavar="KEY",
        ),
    ],
    *,
    form: Annotated[
        ReplayForm,
        typer.Option("--as", help="A row of the prompts table, a curl call, or code for fal's clients."),
    ] = ReplayForm.ROW,
    send: Annotated[
        bool,
        typer.Option(
            "--send", help="Ask fal again, as a new take of the row: the same with another seed, paid for."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --send, don't ask before paying.")] = False,
) -> None:
    """Print exactly the request that made a picture, or send it again as a new take. The key is never printed.

    Exit codes: 0 found, and with --send made again; 3 nothing is called so, or the new take brought no picture; 2 the
    key doesn't lead to one request, the row asks for something else now, or nobody is there to ask.
    """
    settings = Settings.from_environment() if send else Settings.without_key()
    from ideogram_pipeline.provenance.lineage import UnknownKey
    from ideogram_pipeline.provenance.replaying import request_of, written
    from ideogram_pipeline.storage import Store

    store = Store.open(settings.store)
    try:
        request = request_of(store, key)
    except UnknownKey as unknown:
        _say(str(unknown), to=_err)
        raise typer.Exit(EXIT_INCOMPLETE) from None
    if not send:
        _hand_out(written(request, form.value, store))
        return
    from ideogram_pipeline.generation.choice import Choice
    from ideogram_pipeline.preview import new_take

    take = new_take(settings, request)
    price = "an unknown price" if take.price_usd is None else f"${take.price_usd:.2f}{_money_note(settings)}"
    _say(
        f"take {take.take} of {take.prompt_id} in the batch {take.batch}: "
        f"{counted(take.num_images, 'picture')} for {price}, with the seed {take.seed}"
    )
    _ask(yes, "Pay for it?")
    _launch(settings, [take.batch], Choice(regenerate=True, prompt_ids=(take.prompt_id,)))


@app.command()
def export(
    *,
    webdataset: Annotated[
        Path | None,
        typer.Option("--webdataset", metavar="DIR", help="Write tar shards for WebDataset there."),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option(
            "--parquet-with-bytes", metavar="DIR", help="Write Parquet with the pictures in a column there."
        ),
    ] = None,
    batch: Batches = None,
    all_takes: Annotated[
        bool,
        typer.Option(
            "--all-takes",
            help="Also pictures that a later take or an edited row has replaced, or whose batch left the table.",
        ),
    ] = False,
    with_rejected: Annotated[
        bool, typer.Option("--with-rejected", help="Also pictures that a review rejects.")
    ] = False,
) -> None:
    """Write pictures and their metadata in a format for training, into a new folder.

    Pictures that a review rejects are left out, by the reviews tables that runs have read and by IDEOGRAM_REVIEWS.

    Exit codes: 0 written; 3 pictures of the metadata are not in the store; 2 bad usage.
    """
    settings = Settings.without_key()
    folder = webdataset or parquet
    if folder is None or (webdataset and parquet):
        raise ConfigurationError("Name one of --webdataset DIR and --parquet-with-bytes DIR.")
    from ideogram_pipeline.export import Selection
    from ideogram_pipeline.export import export as write
    from ideogram_pipeline.storage import Store
    from ideogram_pipeline.tables.reviews import read_reviews

    store, reviews = Store.open(settings.store), None
    if settings.reviews:
        reviews = read_reviews(settings.reviews, extra_columns=settings.extra_columns)
    chosen = Selection(store, batch or (), all_takes=all_takes, with_rejected=with_rejected, reviews=reviews)
    with Progress(TextColumn("{task.completed} pictures"), TimeElapsedColumn(), console=_err) as bar:
        task = bar.add_task("pictures", total=None)
        exported = write(
            store,
            folder,
            "webdataset" if webdataset else "parquet",
            chosen,
            told=lambda images: bar.update(task, completed=images),
        )
    _say(f"{counted(exported.images, 'picture')} in {counted(len(exported.parts), 'file')} in {folder}")
    if exported.rejected:
        rejected = counted(exported.rejected, "picture")
        _say(f"left out, since a review rejects them: {rejected}; --with-rejected takes them in")
    for path in exported.missing:
        _say(f"not in the store: {path}")
    raise typer.Exit(EXIT_INCOMPLETE if exported.missing else 0)


@app.command()
def erase(
    *,
    reference: Annotated[
        str,
        typer.Option(
            "--reference", metavar="ID", help="The reference, by its id or the SHA-256 of its bytes."
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until no run works on its batches, then erase.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Take back all that came from a reference: pictures, rows, copies, ledger entries, what fal has of it.

    What stays is a tombstone of digests, ids and money; nothing is made from the reference again. Your own tables and
    files are left to you. While a run works on one of its batches nothing is erased; --wait waits for that run.

    Exit codes: 0 nothing of it remains; 3 something does, as it says, or a run works on one of its batches and nothing
    was erased; 2 bad usage, or nobody there to ask; 130 interrupted: run it again, and it goes on where it was.
    """
    settings = Settings.from_environment()
    from ideogram_pipeline.generation.runs import AtWork
    from ideogram_pipeline.provenance.erasing import descent
    from ideogram_pipeline.repair import erase as take_back
    from ideogram_pipeline.storage import Store

    found = descent(Store.open(settings.store), reference)
    for path in found.images:
        _say(path)
    _say(
        f"{counted(len(found.images), 'picture')} of {counted(len(found.fingerprints), 'request')} in "
        f"{counted(len(found.batches), 'batch', 'batches')} came from {reference}; with them go "
        f"{counted(len(found.digests), 'reference')}, their rows, and Dagster's records of the runs of these batches."
    )
    if dry_run:
        return
    _ask(yes, "Erase all of it, for good?")
    try:
        with _err.status("erasing") as status:
            erased = take_back(settings, found, wait=wait, told=_told(status))
    except AtWork as held:
        _say(str(held), to=_err)
        raise typer.Exit(EXIT_INCOMPLETE) from None
    _say(
        f"erased; fal has deleted what it had of {counted(erased.payloads, 'request')}, and uploads end by themselves "
        "in 7 days"
    )
    if erased.versions:
        _say(
            f"deleted too: {counted(erased.versions, 'earlier version')} of its files, which the bucket had kept"
        )
    if erased.payloads_left:
        _say(f"fal still has what it stores of some requests, for 30 days: {erased.payloads_left}")
    for line in erased.left:
        _say(f"still there: {line}")
    raise typer.Exit(EXIT_INCOMPLETE if erased.left or erased.payloads_left else 0)


def _told(status: Status) -> Callable[[str], None]:
    """Show what is done now, or waited for; where nobody watches a terminal, each such line once."""
    last = ""

    def tell(line: str) -> None:
        nonlocal last
        status.update(Text(shown(line)))
        if line != last and not _err.is_terminal and line.endswith("."):
            _say(f"waiting: {line}", to=_err)
        last = line

    return tell


@app.command()
def verify(
    paths: Annotated[list[str], typer.Argument(help="Pictures, or folders of them.", metavar="PATH...")],
    *,
    anchors: Annotated[
        str | None,
        typer.Option(
            "--anchors", help="File of the certificates (PEM) whose signatures are trusted.", metavar="FILE"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a file.")] = False,
) -> None:
    """Say what pictures tell of themselves: what made them, from which request. Needs no store and no network.

    Content Credentials are validated where the extra `c2pa` is installed.

    Exit codes: 0 every file is a whole picture and says where it comes from; 3 some don't, or were changed since they
    were signed; 2 a file can't be read.
    """
    from ideogram_pipeline.provenance.verifying import verified

    looked_at = wrong = 0
    for file in verified(paths, anchors):
        looked_at += 1
        wrong += not file.is_sound
        if json:
            _say_json(file)
        else:
            _print_verified(file)
    _say(
        f"{counted(looked_at, 'picture')}, {wrong} of them damaged, without marks, or changed since they were signed.",
        to=_err,
    )
    raise typer.Exit(EXIT_INCOMPLETE if wrong else 0)


def _print_verified(file: Verified) -> None:
    from ideogram_pipeline.marks.credentials import INSTALL

    silent = "" if file.origin or file.has_credentials else "it says nothing of where it comes from"
    lines: dict[str, object] = {}
    if said := file.marks or file.origin:
        lines |= said.model_dump(exclude_none=True)
    if found := file.credentials:
        lines["credentials"] = f"{found.state}{': ' if found.problems else ''}{'; '.join(found.problems)}"
        lines |= {
            "signed_by": found.signed_by,
            "stamped_at": found.stamped_at,
            "manifest_id": found.manifest_id,
        }
        lines |= {f"from {number}": one for number, one in enumerate(found.ingredients, 1)}
    elif file.has_credentials:
        lines["credentials"] = f"C2PA, not validated: {INSTALL}"
    _say(f"{file.path}: {file.problem or silent or 'whole'}")
    for name, value in lines.items():
        if value not in ("", None):
            _say(f"  {name.replace('_', ' '):>14}  {value}")


@app.command()
def certificate(
    folder: Annotated[str, typer.Argument(help="Where to write it.", metavar="DIR")],
    *,
    development: Annotated[
        bool, typer.Option("--development", help="Say that it is for development: nobody will trust it.")
    ] = False,
) -> None:
    """Make a certificate to try signing with: an authority of your own, a certificate and its key.

    For pictures that others are to trust, get one from an authority on the C2PA trust list instead.

    Exit codes: 0 written; 2 `--development` is missing, or a file is there already.
    """
    from ideogram_pipeline.marks.credentials import DEVELOPMENT_DAYS, write_development_certificate

    if not development:
        raise ConfigurationError(
            "Only development certificates are made here, which nobody trusts: say --development. For others ask an "
            "authority on the C2PA trust list."
        )
    authority, chain, key = write_development_certificate(Path(folder))
    for line in (
        f"Valid for {DEVELOPMENT_DAYS} days, for development only. Sign with",
        f"  export IDEOGRAM_C2PA_CERTIFICATE={chain}",
        f"  export IDEOGRAM_C2PA_KEY={key}",
        "and validate with",
        f"  ideogram-pipeline verify --anchors {authority} PATH...",
    ):
        _say(line)


@app.command()
def doctor() -> None:
    """Check settings, tables, store and fal, and say what to mend. Exit code 2 if anything is wrong."""
    settings = Settings.from_environment()
    from ideogram_pipeline.doctor import examine

    healthy = True
    for finding in examine(settings):
        healthy &= finding.ok
        mark, style = ("ok ", "green") if finding.ok else ("bad", "red")
        _say(f" {finding.what}: {finding.says}", mark=mark, style=style)
    raise typer.Exit(0 if healthy else EXIT_USAGE)


class Bar:
    """The progress of a run on the terminal: pictures ended, money, time left."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is shown until the number of pictures is known."""
        self._note = _money_note(settings)
        self._settled = Decimal(0)
        self._expected: dict[str, int] = {}
        self._batch = Decimal(0)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("pictures"),
            TextColumn("{task.fields[spent]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=_err,
            auto_refresh=_err.is_terminal,  # elsewhere it is printed once, at the end
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("reading the tables", total=None, spent="")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._bar.live.transient = error is not None
        self._bar.stop()

    def expect(self, images: Mapping[str, int]) -> None:
        """Take note of how many pictures the rows of each batch ask for."""
        self._expected = dict(images)
        self._bar.update(self._task, total=sum(images.values()))

    def begin(self, batch: str, images: int) -> None:
        """Name the batch that is being worked."""
        self._expected[batch] = images  # rows that can't be sent ask for none
        self._bar.update(self._task, total=sum(self._expected.values()))
        self._settled += self._batch
        self._batch = Decimal(0)
        self._bar.update(self._task, description=batch)

    def ended(self, outcome: Outcome, spent_usd: Decimal) -> None:
        """Advance by a row's pictures."""
        self._batch = spent_usd
        spent = f"${self._settled + spent_usd:.2f}{self._note}"
        self._bar.update(self._task, advance=outcome.request.num_images, spent=spent)


def _print_summary(settings: Settings, summary: RunSummary) -> None:
    from ideogram_pipeline.storage import Store

    store = Store.open(settings.store)
    if not summary.rows:
        _say("The prompts table has no rows.")
    elif summary.spent_usd == 0 and summary.generated == 0 and summary.complete and not summary.left_out:
        _say("Everything was there already: nothing was submitted, nothing was paid.")
    states = ("generated", "reused", "rejected", "refused", "failed", "unknown")
    counts = {state: getattr(summary, state) for state in states}
    counts |= {"not_reached": summary.not_reached - summary.left_out, "left_out": summary.left_out}
    rows = (
        ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in counts.items() if count) or "none"
    )
    lines = {
        "rows": f"{summary.rows} ({rows})",
        "pictures": str(summary.images),
        "spent": f"${summary.spent_usd:.2f}{_money_note(settings)}",
        "seconds": f"{summary.seconds:.1f}",
        "images": store.where("images"),
        "Parquet": f"{store.where('catalog')}, {store.where('outcomes')}",
        "gallery": store.where("gallery/index.html"),
    }
    for name, value in lines.items():
        _say(f"{name:>9}  {value}")
    for reason in summary.reasons[:REASONS_SHOWN]:
        _say(f"no picture: {reason}")
    if (more := len(summary.reasons) - REASONS_SHOWN) > 0:
        _say(f"and {counted(more, 'other reason')}")
    for waiting in summary.waiting[:REASONS_SHOWN]:
        _say(f"waiting: {waiting}")
    if not summary.complete:
        _say(f"Why each row has no picture stands in {store.where('outcomes')}, column reason.")


def _print_plan(settings: Settings, summary: PlanSummary, *, verbose: bool) -> None:
    kinds = ("new", "stale", "reused", "reattached", "settled", "unknown", "rejected", "left_out")
    shown = [kind for kind in kinds if any(getattr(batch, kind) for batch in summary.batches)]
    headers = {"reattached": "re-attached", "left_out": "left out"}
    table = Table("batch", "rows", *(headers.get(kind, kind) for kind in shown), "cost")
    for batch in summary.batches:
        counts = [str(getattr(batch, kind)) for kind in shown]
        table.add_row(batch.batch, str(batch.rows), *counts, _cost(batch))
    _out.print(table)
    for together in _alike(summary.decisions, verbose=verbose):
        row, others = together[0], len(together) - 1
        more = f" and {others} more (--verbose names them)" if others else ""
        price = "" if row.price_usd is None else f" (${row.price_usd:.2f})"
        which = f"{row.batch}, row {row.row_number}, {row.prompt_id}{price}{more}"
        _say(f"{row.decision}: {which}: {row.reason}")
    for advice in summary.advice:
        rows = f"{advice.rows} rows, such as" if advice.rows > 1 else "1 row,"
        _say(f"advice: {rows} {advice.example}: {advice.text}")
    for pick in summary.replaces_picked:
        _say(
            f"replaces a picked picture: {pick.batch}, row {pick.row_number}, {pick.prompt_id}: {pick.file_name} stays "
            "in the store as an older take"
        )
    for blocked in summary.blocked:
        _say(f"a run would pay for nothing in {blocked}")
    for lost in summary.lost_ledgers:
        _say(f"a run would refuse: {lost}")
    if summary.lost_ledgers:
        from ideogram_pipeline.generation.lost_ledgers import LOST_LEDGER

        _say(LOST_LEDGER)
    cost = (
        "The costs above count what may be paid for already:" if summary.lost_ledgers else "A run would cost"
    )
    _say(f"{cost} {_cost(summary)}{_money_note(settings)}.")
    if summary.is_stopped_by_budget:
        _say(
            f"It would stop before that: the budgets leave ${summary.budget_left_usd:.2f}, and what is beyond ends "
            "not_reached. Raise IDEOGRAM_BUDGET_USD or IDEOGRAM_BUDGET_USD_PER_DAY, or run again later."
        )
    if summary.estimated_usd_max > summary.estimated_usd:
        _say(
            "The upper end counts the rows that an earlier run submitted or may have: they are not paid for again, "
            "and may be paid already."
        )
    if summary.unpriced:
        _say(
            f"The price of {counted(summary.unpriced, 'row')} is not known. They are not sent unless "
            "IDEOGRAM_ALLOW_UNKNOWN_PRICES=true."
        )
    if summary.is_stuck:
        _say("Rows lack their pictures, and a run could bring none of them.")


def _alike(rows: Sequence[RowSummary], *, verbose: bool) -> Iterable[Sequence[RowSummary]]:
    """Return the rows that a plan tells of: each by itself, or those that are rejected, together if for one reason."""
    if verbose:
        return [[row] for row in rows]
    groups: dict[str, list[RowSummary]] = {}
    for row in rows:
        if row.decision == "rejected":
            groups.setdefault(row.reason, []).append(row)
    return groups.values()


def _cost(summary: BatchPlanSummary | PlanSummary) -> str:
    least = f"{'at least ' if summary.unpriced else ''}${summary.estimated_usd:.2f}"
    most = summary.estimated_usd_max
    return least if most == summary.estimated_usd else f"{least} to ${most:.2f}"


def _money_note(settings: Settings) -> str:
    return " of sandbox money" if settings.backend == "sandbox" else ""


def _ask(yes: bool, question: str) -> None:
    """Go on only if a person agrees, now or with `--yes` before."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigurationError(f"Nobody is there to ask: {question} Add --yes to do it; nothing was done.")
    typer.confirm(question, abort=True)


def _say(line: str, *, mark: str = "", style: str = "", to: Console = _out) -> None:
    """Print a line as a terminal may have it, whoever wrote what stands in it; before it a mark in a style of ours."""
    to.print(Text.assemble((f"{mark} " if mark else "", style), shown(line)), soft_wrap=True)


def _say_json(value: BaseModel, **chosen: Any) -> None:
    typer.echo(json_shown(value.model_dump_json(**chosen)))


def _hand_out(text: str) -> None:
    """Print code, a table or a drawing: as it is where a program reads it, and as a terminal may have it on one."""
    # Without `color` it would take out, for whatever is no terminal, what looks like an escape sequence.
    typer.echo(lines_shown(text) if sys.stdout.isatty() else text, color=True)

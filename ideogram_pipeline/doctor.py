"""Checks of everything a run needs, each with a word on what to mend."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import dagster as dg

from ideogram_pipeline import __version__, network, telemetry
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.errors import PipelineError
from ideogram_pipeline.fal import FalClient, FalError, RequestNotFound
from ideogram_pipeline.fal.answers import Answer
from ideogram_pipeline.fal.media import ask_anybody
from ideogram_pipeline.generation.inbox import Address, Secret
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.lost_ledgers import LOST_LEDGER, paid_batches
from ideogram_pipeline.generation.readings import newest_prompts, table_key
from ideogram_pipeline.preview import PlanSummary, budget_left, lost_ledgers, preview, store_as_it_is
from ideogram_pipeline.receiver import NOT_SIGNED
from ideogram_pipeline.resources import build_resources, fal_resource
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.claims import prove_claims
from ideogram_pipeline.storage.versions import keeping
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.references import read_references
from ideogram_pipeline.texts import counted
from ideogram_pipeline.threads import result_of

CLOCK_OFF_BY_S = 30.0
"""A clock that is further off than this is set wrong."""
_BALANCE = (
    "it can't be read with a key of the scope API, and no free call tells whether the account is locked: a locked one "
    "shows at the first submit (403), which costs nothing and stops the run. See fal.ai/dashboard/billing."
)
_NOBODYS_REQUEST = "00000000-0000-4000-8000-000000000000"
_PROOFS = {
    "queue": (f"/fal-ai/ideogram/requests/{_NOBODYS_REQUEST}/status", {"detail", "status"}),
    "rest": ("/.well-known/jwks.json", {"keys"}),
    "api": ("/v1/meta", {"webhook_ip_ranges"}),
}
"""Where each of fal's hosts answers without a key, and names of which its answer holds one, whoever asks."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    """What was checked."""
    ok: bool
    """Whether a run can rely on it."""
    says: str
    """What was found, and what to mend."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Check versions, tables, rows, store and fal, one after the other. Sends nothing that costs money."""
    yield _check("versions", _versions)
    yield _check("settings", lambda: _settings(settings))
    yield _check("prompts", lambda: _prompts(settings))
    yield _check("references", lambda: _references(settings))
    yield _check("rows", lambda: _rows(settings))
    yield _check("budget", lambda: _budget(settings))
    yield _check("store", lambda: _store(settings))
    yield _check("erasing", lambda: _erasing(settings))
    yield _check("ledger", lambda: _ledger(settings))
    if settings.c2pa_certificate:
        yield _check("certificate", lambda: _certificate(settings))
    if settings.faces:
        yield _check("faces", lambda: _faces(settings))
    try:
        with fal_resource(settings).connect(Store.open("memory://")) as make_client:
            yield _check("fal", lambda: _fal(settings, make_client))
            hosts = make_client().hosts
            for name in _PROOFS:
                yield _check(f"{name} host", partial(_host, getattr(hosts, name), name))
            yield _check("clock", lambda: _clock(hosts.queue))
    except (PipelineError, FalError) as error:
        yield Finding("fal", False, str(error))
    if settings.backend == "fal":
        yield Finding("balance", True, _BALANCE)
    if settings.webhook_url:
        yield _check("webhooks", lambda: _webhooks(settings, settings.webhook_url or ""))


def _check(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, check())
    except (PipelineError, FalError) as error:
        return Finding(what, False, str(error))


def _settings(settings: Settings) -> str:
    build_definitions(settings)
    return "they can be loaded by Dagster"


def _prompts(settings: Settings) -> str:
    table = read_prompts(settings.prompts, settings.defaults, extra_columns=settings.extra_columns)
    if table.rejections:
        raise PipelineError(
            f"{counted(len(table.rejections), 'row')} can't be used; the first: {table.rejections[0]}"
        )
    rows, batches = len(table.rows), len(table.batches)
    others = [
        read.table or "one of an earlier version"
        for read in newest_prompts(store_as_it_is(settings))
        if read.batches and table_key(read.table) != table_key(settings.prompts)
    ]
    found = f"{settings.prompts}: {counted(rows, 'row')} in {counted(batches, 'batch', 'batches')}"
    if not others:
        return found
    return (
        f"{found}; the store also has the batches of {', '.join(others)}. If that table was deleted, moved or renamed, "
        "put a table with only a header in its place and run it: then its rows no longer count"
    )


def _references(settings: Settings) -> str:
    table = read_references(
        settings.references,
        store=None,
        private_hosts=settings.private_hosts,
        extra_columns=settings.extra_columns,
    )
    if table.rejections:
        raise PipelineError(
            f"{counted(len(table.rejections), 'row')} can't be used; the first: {table.rejections[0]}"
        )
    return f"{settings.references}: {counted(len(table.references), 'picture')}"


def _store(settings: Settings) -> str:
    store = build_resources(settings)["store"].open()
    prove_claims(store)
    server = f" at {store.endpoint}" if store.endpoint else ""
    untried = (
        "; gs:// has not been tried by those who made this" if settings.store.startswith("gs://") else ""
    )
    return f"{store.where('')}{server}: readable, writable, creates only what is absent{untried}"


def _erasing(settings: Settings) -> str:
    store = build_resources(settings)["store"].open()
    return keeping(store) or "the store keeps nothing of what is deleted from it"


def _ledger(settings: Settings) -> str:
    store = store_as_it_is(settings)
    batches = read_prompts(
        settings.prompts,
        settings.defaults,
        extra_columns=settings.extra_columns,
        paid_batches=partial(paid_batches, store),
    ).batches
    if lost := lost_ledgers(settings, batches):
        raise PipelineError(" ".join([*lost, LOST_LEDGER]))
    entries = (entry for batch in batches for entry in Ledger(store, batch).entries.values())
    if damaged := [entry.damage for entry in entries if entry.damage]:
        raise PipelineError(f"{counted(len(damaged), 'row is', 'rows are')} unknown. The first: {damaged[0]}")
    return "it knows every request that pictures, metadata and outcomes name"


def _certificate(settings: Settings) -> str:
    signer = build_resources(settings)["marks"].open().signer
    valid = f"{settings.c2pa_certificate} signs valid Content Credentials"
    if settings.c2pa_tsa_url is None:
        return f"{valid}, without a time stamp (IDEOGRAM_C2PA_TSA_URL)"
    if because := signer.check().unstamped_because:
        raise PipelineError(f"{valid}, but IDEOGRAM_C2PA_TSA_URL brings no time stamp: {because}")
    return f"{valid}, with a time stamp"


def _faces(settings: Settings) -> str:
    build_resources(settings)["likeness"].open()
    return "the models are installed and can be loaded"


def _webhooks(settings: Settings, receiver: str) -> str:
    """Ask the receiver how it is, and deliver something unsigned to an address that only its own store makes."""
    mend = "See to it that `ideogram-pipeline webhooks` runs and is what IDEOGRAM_WEBHOOK_URL leads to."
    address = Address(batch="doctor", fingerprint="0" * 64, attempt=1)
    try:
        ready = _asked("GET", f"{receiver.rstrip('/')}/ready")
        refused = _asked("POST", address.url(receiver, Secret.of(Store.open(settings.store))))
    except FalError as error:
        raise PipelineError(f"no answer from {receiver}: {error.message} {mend}") from None
    if ready.status == 503:
        raise PipelineError(f"the receiver at {receiver} is not ready; its log says why")
    if ready.status != 200 or refused.status != 401:
        raise PipelineError(f"what answers at {receiver} is no receiver ({ready.status}). {mend}")
    if refused.body.decode(errors="replace") != NOT_SIGNED:
        raise PipelineError(
            f"the receiver at {receiver} has another store. Give it the IDEOGRAM_STORE of the runs."
        )
    return f"the receiver at {receiver} is ready, and has this store"


def _versions() -> str:
    found = f"ideogram_pipeline {__version__}, dagster {dg.__version__}, Python {platform.python_version()}"
    if not dg.__version__.startswith("1.13."):
        raise PipelineError(f"{found}: this project is made for dagster 1.13. Install dagster>=1.13,<1.14.")
    sqlalchemy = tuple(int(part) for part in version("sqlalchemy").split(".")[:2])
    if telemetry.is_wanted() and not find_spec("opentelemetry.sdk"):
        raise PipelineError(
            f"{found}: an OpenTelemetry endpoint is set and nothing is sent to it. Install "
            "'ideogram-pipeline[otel]', or set OTEL_SDK_DISABLED=true."
        )
    if find_spec("dagster_postgres") and sqlalchemy >= (2, 1) and not find_spec("psycopg"):
        return (
            f"{found}; with SQLAlchemy {version('sqlalchemy')} dagster-postgres needs the scheme postgresql+psycopg2 "
            "in dagster.yaml, as deploy/dagster.yaml has it"
        )
    return found


def _rows(settings: Settings) -> str:
    """Count every row that can't be sent, for whichever reason, as `plan` does."""
    plans = preview(settings, [])
    rejected = [(plan.batch, row) for plan in plans for row in plan.rows if row.decision == "rejected"]
    rows = sum(len(plan.rows) for plan in plans)
    if rejected:
        batch, row = rejected[0]
        raise PipelineError(
            f"{len(rejected)} of {rows} rows can't be sent, and a run makes the others. The first: {batch}, row "
            f"{row.row_number}, {row.prompt_id}: {row.column}: {row.reason}. `ideogram-pipeline plan` lists them."
        )
    return f"{counted(rows, 'row')} can be sent"


def _budget(settings: Settings) -> str:
    summary = PlanSummary.of(preview(settings, []), budget_left(settings))
    if summary.is_stopped_by_budget:
        raise PipelineError(
            f"A run would cost ${summary.estimated_usd:.2f}, and the budgets leave ${summary.budget_left_usd:.2f}: "
            "it would stop there. Raise IDEOGRAM_BUDGET_USD or IDEOGRAM_BUDGET_USD_PER_DAY, or run again later."
        )
    left = summary.budget_left_usd
    limit = "there is no budget" if left is None else f"the budgets leave ${left:.2f}"
    return f"a run would cost ${summary.estimated_usd:.2f}; {limit}"


def _fal(settings: Settings, make_client: Callable[[], FalClient]) -> str:
    async def ask() -> None:
        async with make_client() as client:
            try:
                await client.status(client.attach("fal-ai/ideogram/v3", _NOBODYS_REQUEST))
            except RequestNotFound:
                return

    result_of(ask())
    return f"the {settings.backend} backend answers" + (
        " and accepts the key" if settings.backend == "fal" else ""
    )


def _host(url: str, name: str) -> str:
    """Have a host answer what only fal answers: a page at its address may be a proxy's, or another server's."""
    path, holds = _PROOFS[name]
    answer = _answer(url + path, name)
    if not holds & (answer.object() or {}).keys():
        kind = answer.headers.get("content-type", "no content").partition(";")[0]
        through = network.proxy_for(url)
        between = f"The proxy of {through} stands between, and may have answered. " if through else ""
        raise PipelineError(
            f"what answers at {url} is not fal: {url + path} brings {answer.status} and {kind}. {between}"
            f"Check {_variable(name)}."
        )
    return f"{url} answers"


def _clock(url: str) -> str:
    """Compare this machine's clock with the Date of an answer, which is of whole seconds."""
    date = _answer(url, "queue").headers.get("date")
    if date is None:
        return "the queue's answer says no time to compare with"
    off = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    if abs(off) > CLOCK_OFF_BY_S:
        raise PipelineError(
            f"this machine's clock is {off:+.0f} s off that of {url}. Set it by NTP: webhooks count as forged beyond "
            "300 s, and the ledger's times are this clock's."
        )
    return f"within {CLOCK_OFF_BY_S:.0f} s of that of {url}"


def _answer(url: str, name: str) -> Answer:
    """Ask one of fal's hosts, without a key."""
    try:
        return _asked("GET", url)
    except FalError as error:
        raise PipelineError(f"{url} can't be reached. {error} It is named by {_variable(name)}.") from None


def _asked(method: str, url: str) -> Answer:
    return result_of(ask_anybody(method, url, deadline_s=20.0))


def _variable(name: str) -> str:
    return f"FAL_{name.upper()}_URL"

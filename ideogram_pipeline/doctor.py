"""Checks of everything a run needs, each with a word on what to mend."""

from __future__ import annotations

import asyncio
import platform
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dagster as dg
import httpx2

from ideogram_pipeline import __version__
from ideogram_pipeline.definitions import build_definitions
from ideogram_pipeline.errors import PipelineError
from ideogram_pipeline.fal import FalError, RequestNotFound
from ideogram_pipeline.generation.inbox import Address, Secret
from ideogram_pipeline.receiver import NOT_SIGNED
from ideogram_pipeline.resources import build_resources, fal_resource
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.references import read_references

_NOBODYS_REQUEST = "00000000-0000-4000-8000-000000000000"


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
    """Check versions, tables, store and fal, one after the other. Sends nothing that costs money."""
    versions = (
        f"ideogram_pipeline {__version__}, dagster {dg.__version__}, Python {platform.python_version()}"
    )
    yield Finding("versions", True, versions)
    yield _check("settings", lambda: _settings(settings))
    yield _check("prompts", lambda: _prompts(settings))
    yield _check("references", lambda: _references(settings))
    yield _check("store", lambda: _store(settings))
    yield _check("fal", lambda: _fal(settings))
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
    table = read_prompts(settings.prompts, settings.defaults)
    if table.rejections:
        raise PipelineError(f"{len(table.rejections)} rows can't be used; the first: {table.rejections[0]}")
    rows, batches = len(table.rows), len(table.batches)
    return f"{settings.prompts}: {rows} rows in {batches} batches, {len(table.rejections)} rejected"


def _references(settings: Settings) -> str:
    table = read_references(settings.references, store=None)
    if table.rejections:
        raise PipelineError(f"{len(table.rejections)} rows can't be used; the first: {table.rejections[0]}")
    return f"{settings.references}: {len(table.references)} pictures, {len(table.rejections)} rejected"


def _store(settings: Settings) -> str:
    store = build_resources(settings)["store"].open()
    probe = f"doctor/{secrets.token_hex(8)}"
    claimed = [store.create(probe, number) for number in (b"1", b"2")]
    read, listed = store.get(probe), [found.path for found in store.objects("doctor")]
    store.delete(probe)
    if claimed != [True, False] or read != b"1" or probe not in listed:
        raise PipelineError(
            f"{store.url} does not refuse to create what exists, or does not show at once what was written; claims "
            "need both. Use another store."
        )
    server = f" at {store.endpoint}" if store.endpoint else ""
    return f"{store.where('')}{server}: readable, writable, creates only what is absent"


def _webhooks(settings: Settings, receiver: str) -> str:
    """Ask the receiver how it is, and deliver something unsigned to an address that only its own store makes."""
    mend = "See to it that `ideogram-pipeline webhooks` runs and is what IDEOGRAM_WEBHOOK_URL leads to."
    address = Address(batch="doctor", fingerprint="0" * 64, attempt=1)
    try:
        ready = httpx2.get(f"{receiver.rstrip('/')}/ready", timeout=20.0)
        refused = httpx2.post(address.url(receiver, Secret.of(Store.open(settings.store))), timeout=20.0)
    except httpx2.HTTPError as error:
        raise PipelineError(f"no answer from {receiver} ({type(error).__name__}). {mend}") from None
    if ready.status_code == 503:
        raise PipelineError(f"the receiver at {receiver} is not ready; its log says why")
    if ready.status_code != 200 or refused.status_code != 401:
        raise PipelineError(f"what answers at {receiver} is no receiver ({ready.status_code}). {mend}")
    if refused.text != NOT_SIGNED:
        raise PipelineError(
            f"the receiver at {receiver} has another store. Give it the IDEOGRAM_STORE of the runs."
        )
    return f"the receiver at {receiver} is ready, and has this store"


def _fal(settings: Settings) -> str:
    with fal_resource(settings).connect(Store.open("memory://")) as make_client:

        async def ask() -> None:
            async with make_client() as client:
                try:
                    await client.status(client.attach("fal-ai/ideogram/v3", _NOBODYS_REQUEST))
                except RequestNotFound:
                    return

        asyncio.run(ask())
    return f"the {settings.backend} backend answers" + (
        " and accepts the key" if settings.backend == "fal" else ""
    )

"""Every setting of the project, read from the environment."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from decimal import Decimal
from functools import cache
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.logs import LogFormat
from ideogram_pipeline.spelling import nearest

Backend = Literal["sandbox", "fal"]
Automation = Literal["off", "sensor", "schedule", "conditions"]
Executor = Literal["in_process", "multiprocess", "k8s", "celery"]


def _members(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        try:
            ip_address(name)
        except ValueError:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(
                    f"{name!r} is not a host; write names or addresses without scheme and port, such as "
                    "intranet.example,10.0.0.5"
                ) from None
    return tuple(name.lower() for name in names)


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"there is no time zone {name!r}; write it like Europe/Berlin") from None
    return name


_PREFIX = "IDEOGRAM_"
_OF_KUBERNETES = re.compile(
    r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$"
)
"""What Kubernetes and Docker set for a service called `ideogram` or `ideogram-…`."""


class Settings(BaseSettings):
    """The settings: each is the environment variable `IDEOGRAM_<NAME>`, or `FAL_<NAME>` for those named `fal_…`."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    backend: Backend = Field(
        default="sandbox",
        description="`fal`, which costs money, or `sandbox`, a local stand-in that draws and is free.",
    )
    store: str = Field(
        default="./var", description="Folder or URL (s3://, gs://, az://) that keeps everything."
    )
    prompts: str = Field(default="data/prompts.csv", description="The prompts table.")
    references: str = Field(default="data/references.csv", description="The references table.")
    reviews: str | None = Field(
        default=None,
        description="The reviews table, as the gallery exports it: which pictures are picked, and which rejected.",
    )
    defaults: dict[str, Any] = Field(
        default={},
        description='Values for absent or blank cells of the prompts table, as JSON: `{"image_size": "square"}`.',
    )
    extra_columns: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_members)] = Field(
        default=(),
        description="Columns of tables that are people's own, also where they resemble one that counts, or where a "
        "later version knows them; with commas between. They are kept with the metadata, and change no picture.",
    )
    key_prefix: str = Field(
        default="",
        pattern=r"^([a-z][a-z0-9_]{0,39})?$",
        description="Goes before all names, so that pipelines can share a code location: `[a-z][a-z0-9_]*`.",
    )
    owners: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_members)] = Field(
        default=(),
        description="Who answers for the assets: e-mail addresses and `team:…`, with commas between.",
    )
    max_in_flight: int = Field(default=64, ge=1, le=1000, description="Requests with fal at a time, per run.")
    budget_usd: Decimal | None = Field(
        default=None, gt=0, description="Dollars that one run may spend; without it there is no limit."
    )
    budget_usd_per_day: Decimal | None = Field(
        default=None,
        gt=0,
        description="Dollars that all runs on the store may spend in one UTC day, likewise.",
    )
    log_format: LogFormat = Field(
        default="off",
        description="Lines on stderr for each submit and each ended row, as `text` or `json`; `off`: as `logging` is "
        "set up elsewhere.",
    )
    max_failed_fraction: float = Field(
        default=0,
        ge=0,
        le=1,
        description="A run fails, once everything is stored, where more than this share of its batch's rows ended "
        "without a picture; 0: where any row did, 1: never.",
    )
    allow_unknown_prices: bool = Field(
        default=False, description="Send requests whose price is not known; they are refused otherwise."
    )
    max_rejected_fraction: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="A batch with a larger share of rejected rows is not paid for at all; 1 lets the others be made.",
    )
    max_refused_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="A check warns where the model refused a larger share of a batch's rows.",
    )
    inline_references: int = Field(
        default=0,
        ge=0,
        description="References up to so many bytes travel inside the request; others are uploaded.",
    )
    pass_urls: bool = Field(
        default=False,
        description="Give fal the `https://` addresses of the references table, instead of what was read from there. "
        "What fal then fetches may be something else, which is paid for all the same; such rows say so.",
    )
    private_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_members), AfterValidator(_hosts)] = (
        Field(
            default=(),
            description="Hosts on private networks that references may be fetched from, also by http: names or "
            "addresses, with commas between. All others have to be public, and are read by https.",
        )
    )
    max_wait_s: float = Field(
        default=3600.0,
        gt=0,
        description="A request that isn't done after so many seconds is left with fal, and fetched by the next run.",
    )
    webhook_url: str | None = Field(
        default=None,
        description="Where fal reaches your receiver (`ideogram-pipeline webhooks`): it then delivers how requests end "
        "instead of being asked. https, without credentials; also http on loopback for a standing sandbox.",
    )
    automation: Automation = Field(
        default="off",
        description="Who starts runs where Dagster's daemon works: `off` (people do), `sensor` (each change of the "
        "tables), `schedule` (the clock), or `conditions` (declarative automation). What somebody has switched on or "
        "off in the UI stays so.",
    )
    schedule_cron: str = Field(
        default="0 6 * * *", description="When the schedule, or the conditions, read the tables anew."
    )
    reconcile_cron: str = Field(
        default="30 5 * * *", description="When submits that were never answered are looked for at fal."
    )
    schedule_timezone: Annotated[str, AfterValidator(_time_zone)] = Field(
        default="UTC", description="The time zone of both, such as `Europe/Berlin`."
    )
    executor: Executor = Field(
        default="in_process",
        description="What executes the steps of a run in Dagster: the run's own process (`in_process`), one for each "
        "step (`multiprocess`), a Kubernetes Job for each (`k8s`), or Celery's workers (`celery`).",
    )
    celery_broker: SecretStr | None = Field(
        default=None,
        description="Where Celery's workers are told of steps, as a URL; it may hold a password.",
    )
    celery_backend: SecretStr | None = Field(
        default=None, description="Where they leave how a step ended, likewise."
    )
    thumbnails: bool = Field(
        default=True,
        description="Make a small picture of each for the gallery. Without, the gallery shows the pictures "
        "themselves, and a PNG is proven by its checksums and never decoded, which takes a third of the CPU time.",
    )
    mark_prompt: bool = Field(
        default=False,
        description="Put the prompt's text into each picture's own metadata (XMP), for whoever gets the file; its "
        "digest always stands there.",
    )
    faces: bool = Field(
        default=False,
        description="Measure how far the face in each picture is from that in its character reference, for "
        "reviewing. Needs the extra `faces`, and 0.15 s of a core for each picture.",
    )
    c2pa_certificate: str | None = Field(
        default=None,
        description="File of a certificate chain (PEM): pictures are signed with it as Content Credentials (C2PA). "
        "Needs the extra `c2pa`.",
    )
    c2pa_key: str | None = Field(
        default=None, description="File of its private key (PEM, without a password)."
    )
    fal_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("FAL_KEY", "fal_key"), description="fal's API key."
    )
    fal_queue_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("FAL_QUEUE_URL", "fal_queue_url"),
        description="Host of fal's queue.",
    )
    fal_rest_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("FAL_REST_URL", "fal_rest_url"),
        description="Host of fal's storage.",
    )
    fal_api_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("FAL_API_URL", "fal_api_url"),
        description="Host of fal's platform.",
    )

    @classmethod
    def from_environment(cls, **given: Any) -> Settings:
        """Read and check the environment; what is `given` counts before it.

        Raises:
            ConfigurationError: a variable is malformed, missing, or contradicts another; the message names it.
        """
        settings = cls.without_key(**given)
        check_backend(settings.backend, settings.fal_key is not None, settings.fal_queue_url)
        check_webhook_url(settings.webhook_url, settings.backend, settings.fal_queue_url)
        check_signing(settings.c2pa_certificate, settings.c2pa_key)
        return settings

    @classmethod
    def without_key(cls, **given: Any) -> Settings:
        """Read the environment for something that asks fal for nothing, and needs no key.

        Raises:
            ConfigurationError: a variable is malformed, or nearly called as one that counts; the message names it.
        """
        check_names(os.environ)
        try:
            return cls(**given)
        except ValidationError as error:
            finding = error.errors(include_url=False)[0]
            reason = str(finding["msg"]).removeprefix("Value error, ")
            raise ConfigurationError(f"{_variable(finding['loc'][0])}: {reason}.") from None
        except SettingsError:
            raise ConfigurationError(
                'IDEOGRAM_DEFAULTS: that is no JSON object. Write it like {"rendering_speed": "TURBO"}.'
            ) from None


def check_names(environment: Iterable[str]) -> None:
    """Warn of variables that look like settings and are none.

    Raises:
        ConfigurationError: one is nearly called as a setting: what was meant by it would be ignored silently.
    """
    known = {_variable(name): _variable(name) for name in Settings.model_fields}
    own = [name for name in known if name.startswith(_PREFIX)]
    # without its unit, or with our prefix before fal's
    others = {re.sub(r"_(USD|S)(?=_|$)", "", name): name for name in own}
    others |= {f"{_PREFIX}{name}": name for name in known if name not in own}
    for name in environment:
        written = name.upper()
        if not written.startswith(_PREFIX[:4]) or written in known or _OF_KUBERNETES.search(written):
            continue
        if meant := nearest(written, own) or others.get(nearest(written, others) or written):
            raise ConfigurationError(
                f"{name}: there is no such setting; did you mean {meant}? Rename it or unset it."
            )
        if written.startswith(_PREFIX):
            _warn_of(name)


@cache
def _warn_of(name: str) -> None:
    """Say once in a process that a variable is ignored."""
    logging.getLogger(__name__).warning("%s is set, and is no setting of this version: it is ignored.", name)


def check_backend(backend: Backend, has_key: bool, queue_url: str | None) -> None:
    """Raise a `ConfigurationError` where the backend can't be reached as it is configured, before anything is done."""
    if backend == "fal" and not has_key:
        raise ConfigurationError(
            "IDEOGRAM_BACKEND is 'fal' and FAL_KEY is not set. Set FAL_KEY to a key from fal.ai/dashboard/keys, "
            "or leave IDEOGRAM_BACKEND out to use the local sandbox."
        )
    try:
        host = urlsplit(queue_url or "").hostname or ""
    except ValueError:
        raise ConfigurationError(f"FAL_QUEUE_URL is {queue_url!r}, which is no URL.") from None
    if backend == "sandbox" and host.endswith(("fal.run", "falrun.com")):
        raise ConfigurationError(
            f"FAL_QUEUE_URL is fal's own {host}, and IDEOGRAM_BACKEND is 'sandbox'. Set IDEOGRAM_BACKEND=fal to pay "
            "for pictures, or leave FAL_QUEUE_URL out to use the local sandbox."
        )


def check_webhook_url(url: str | None, backend: Backend, queue_url: str | None) -> None:
    """Raise a `ConfigurationError` where fal, or the sandbox, could not deliver to this receiver."""
    if url is None:
        return
    try:
        parts = urlsplit(url)
        host, is_plain = (
            parts.hostname or "",
            not (parts.username or parts.password or parts.query or parts.fragment),
        )
    except ValueError:
        host, is_plain = "", False
    if not host or not is_plain:
        raise ConfigurationError(
            "IDEOGRAM_WEBHOOK_URL is no plain URL. Write it like https://hooks.example.org, without credentials, query "
            "or fragment."
        )
    is_local = backend == "sandbox" and parts.scheme == "http" and host in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not is_local:
        raise ConfigurationError(
            "IDEOGRAM_WEBHOOK_URL does not begin with https://. fal delivers pictures' addresses there, over the "
            "internet; only the sandbox may deliver to http://127.0.0.1."
        )
    if backend == "sandbox" and not queue_url:
        raise ConfigurationError(
            "IDEOGRAM_WEBHOOK_URL needs a sandbox that stays: start `ideogram-pipeline sandbox` and set FAL_QUEUE_URL. "
            "The one inside a run is gone when a receiver would ask for its keys."
        )


def check_signing(certificate: str | None, key: str | None) -> None:
    """Raise a `ConfigurationError` where there is only one half of what pictures are signed with."""
    if (certificate is None) != (key is None):
        missing = "IDEOGRAM_C2PA_KEY" if key is None else "IDEOGRAM_C2PA_CERTIFICATE"
        raise ConfigurationError(
            f"{missing} is not set: signing needs both the certificate's file and its key's. For a trial, "
            "`ideogram-pipeline certificate --development DIR` makes a pair."
        )


def _variable(field: str | int) -> str:
    name = str(field)
    return name.upper() if name.upper().startswith("FAL_") else f"{_PREFIX}{name.upper()}"

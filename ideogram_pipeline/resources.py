"""The Dagster resources: configuration of the parts below, and how they are opened. Nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

import dagster as dg
from pydantic import Field

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.settings import (
    Backend,
    Settings,
    check_backend,
    check_signing,
    check_webhook_url,
)

if TYPE_CHECKING:
    from ideogram_pipeline.faces import Faces
    from ideogram_pipeline.fal import FalClient, FalHosts
    from ideogram_pipeline.generation.budget import Budget
    from ideogram_pipeline.generation.marking import Marking
    from ideogram_pipeline.generation.outcomes import Outcome
    from ideogram_pipeline.storage import Store

_ANY_KEY = "sandbox:sandbox"


class StoreResource(dg.ConfigurableResource[Any]):
    """Where pictures, tables, plans and the ledger lie."""

    url: str = Field(description="Folder or URL (s3://, gs://, az://).")
    backend: Backend = Field(
        description="Whose pictures the store holds: `fal`'s or the `sandbox`'s; never both."
    )
    thumbnails: bool = Field(
        default=True, description="Make a small picture of each; without, a PNG is never decoded."
    )
    pipeline: str = Field(
        default="", description="Key prefix of the pipeline it belongs to; a store has one pipeline."
    )

    def open(self) -> Store:
        """Open the store.

        Raises:
            StoreError: it can't be opened.
            ConfigurationError: as `store_mark.open_for_work` says.
        """
        from ideogram_pipeline.store_mark import open_for_work

        return open_for_work(self.url, self.backend, self.pipeline)


class MarksResource(dg.ConfigurableResource[Any]):
    """What pictures say of themselves."""

    with_prompt: bool = Field(
        default=False, description="Put the prompt's text into each picture's marks, beside its digest."
    )
    certificate: str | None = Field(
        default=None,
        description="File of the certificate chain (PEM) to sign pictures with; none are signed without.",
    )
    key_file: str | None = Field(default=None, description="File of its private key (PEM).")

    def open(self) -> Marking:
        """Return how to mark pictures.

        Raises:
            ConfigurationError: they are to be signed, and can't be.
        """
        from ideogram_pipeline.generation.marking import Marking
        from ideogram_pipeline.marks.credentials import Signer

        check_signing(self.certificate, self.key_file)
        if not (self.certificate and self.key_file):
            return Marking(self.with_prompt)
        return Marking(self.with_prompt, Signer.load(self.certificate, self.key_file))


class LikenessResource(dg.ConfigurableResource[Any]):
    """How pictures are compared, beyond what each looks like."""

    faces: bool = Field(
        default=False, description="Measure how far each picture's face is from that of its reference."
    )

    def open(self) -> Faces | None:
        """Return what measures faces, if they are to be.

        Raises:
            ConfigurationError: they are, and the extra `faces` is not installed.
        """
        from ideogram_pipeline.faces import Faces

        return Faces() if self.faces else None


class TablesResource(dg.ConfigurableResource[Any]):
    """The tables people write."""

    prompts: str = Field(description="Prompts table: CSV, JSONL, Parquet or Excel.")
    references: str = Field(description="References table, in the same formats.")
    reviews: str | None = Field(default=None, description="Reviews table, likewise, if there is one.")
    defaults: dict[str, Any] = Field(
        default={}, description="Values for cells of the prompts table that are absent or blank, by column."
    )
    extra_columns: list[str] = Field(
        default=[], description="Columns that are people's own, also where they resemble one that counts."
    )
    private_hosts: list[str] = Field(
        default=[],
        description="Hosts on private networks that references may be fetched from: names or addresses.",
    )
    pass_urls: bool = Field(
        default=False, description="Give fal the addresses of references on the web, instead of their bytes."
    )


class FalResource(dg.ConfigurableResource[Any]):
    """fal's queue, or the sandbox that speaks its protocol."""

    backend: Backend = Field(description="`fal`, which costs money, or `sandbox`.")
    key: str | None = Field(
        default=None,
        repr=False,
        description="fal's API key. Give it as an EnvVar: the launchpad shows, and sends back, what stands here.",
    )
    queue_url: str | None = Field(
        default=None, description="Host of the queue, if not fal's or the embedded sandbox."
    )
    rest_url: str | None = Field(default=None, description="Host of the storage, likewise.")
    api_url: str | None = Field(default=None, description="Host of the platform API, likewise.")
    webhook_url: str | None = Field(
        default=None, description="Where fal delivers how requests end; without, fal is asked."
    )
    max_in_flight: int = Field(default=64, description="Requests with fal at a time, per run.")
    max_wait_s: float = Field(
        default=3600.0, description="Seconds after which a request is left for the next run to fetch."
    )
    inline_references: int = Field(
        default=0,
        description="References up to so many bytes travel inside the request; others are uploaded.",
    )

    def check(self) -> None:
        """Raise a `ConfigurationError` where a client could not be opened."""
        from ideogram_pipeline.fal import FalKey, InvalidCall, UnsafeUrl

        check_backend(self.backend, bool(self.key), self.queue_url)
        check_webhook_url(self.webhook_url, self.backend, self.queue_url)
        try:
            FalKey(self.key or _ANY_KEY)
            self._hosts()
        except InvalidCall as error:
            raise ConfigurationError(f"FAL_KEY: {error}") from None
        except UnsafeUrl as error:
            raise ConfigurationError(f"FAL_QUEUE_URL, FAL_REST_URL or FAL_API_URL: {error}") from None

    @contextmanager
    def connect(self, store: Store) -> Iterator[Callable[[], FalClient]]:
        """Hand out a maker of clients; the sandbox, where it is embedded, runs as long as the block does.

        A client opens its connections in the event loop it is entered in, so it is made there.
        """
        import stamina

        from ideogram_pipeline.fal import FalClient, FalHosts
        from ideogram_pipeline.telemetry import retried

        self.check()
        stamina.instrumentation.set_on_retry_hooks([retried])
        connections = self.max_in_flight + 8
        if self.backend == "sandbox" and not self.queue_url:
            with embedded_sandbox(store) as url:
                yield lambda: FalClient(_ANY_KEY, FalHosts.at(url), max_connections=connections)
            return
        yield lambda: FalClient(self.key or _ANY_KEY, self._hosts(), max_connections=connections)

    def _hosts(self) -> FalHosts:
        from ideogram_pipeline.fal import FalHosts

        public = FalHosts()
        queue = self.queue_url or public.queue
        if self.backend == "fal":
            return FalHosts(queue=queue, rest=self.rest_url or public.rest, api=self.api_url or public.api)
        return FalHosts(
            queue=queue, rest=self.rest_url or queue, api=self.api_url or queue, backup_queue=None
        )


class BudgetResource(dg.ConfigurableResource[Any]):
    """What runs may spend, in US dollars."""

    per_run_usd: float | None = Field(
        default=None, gt=0, description="One run; without it there is no limit."
    )
    per_day_usd: float | None = Field(
        default=None, gt=0, description="All runs on the store in one UTC day, likewise."
    )
    allow_unknown_prices: bool = Field(
        default=False, description="Send requests whose price is not known; they are refused otherwise."
    )

    def open(self, store: Store, run_id: str, max_spend_usd: float | None = None) -> Budget:
        """Open the budget of a run; runs with the same id share the line of one run.

        That line is the lower one of `per_run_usd` and `max_spend_usd`.

        Raises:
            ConfigurationError: `max_spend_usd` leaves nothing to spend.
        """
        from ideogram_pipeline.generation.budget import Budget

        if max_spend_usd is not None and max_spend_usd <= 0:
            raise ConfigurationError(
                f"max_spend_usd is {max_spend_usd:g}: nothing could be paid for. Give more than 0, or leave it out."
            )
        lines = [line for line in (self.per_run_usd, max_spend_usd) if line is not None]
        return Budget(
            store,
            run_id=run_id,
            per_run_usd=_exactly(min(lines, default=None)),
            per_day_usd=_exactly(self.per_day_usd),
            allow_unknown=self.allow_unknown_prices,
        )


class LimitsResource(dg.ConfigurableResource[Any]):
    """How much may go wrong before a check says so."""

    max_rejected_fraction: float = Field(
        ge=0,
        le=1,
        description="A batch with a larger share of rejected rows is not paid for at all.",
    )
    max_refused_fraction: float = Field(
        ge=0,
        le=1,
        description="A check warns where the model refused a larger share of the rows.",
    )
    max_failed_fraction: float = Field(
        ge=0,
        le=1,
        description="A run fails, once all is recorded, where a larger share of its rows ended without a picture.",
    )


def _exactly(usd: float | None) -> Decimal | None:
    """Return the amount as it was written: Dagster's configuration has no decimals."""
    return None if usd is None else Decimal(str(usd))


@contextmanager
def embedded_sandbox(store: Store) -> Iterator[str]:
    """Run a sandbox on a free loopback port and hand out its address.

    Its memory lies in the store, so that a run that was interrupted finds its requests again.
    """
    from ideogram_pipeline.sandbox import SandboxSettings, running_sandbox

    state = ":memory:"
    if store.folder:
        try:
            (store.folder / "sandbox").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"{store.where('sandbox')!r} can't be a folder: {error.strerror}."
            ) from None
        state = str(store.folder / "sandbox" / "state.sqlite")
    with running_sandbox(
        SandboxSettings(state=state, host="127.0.0.1", port=0, result_ttl=10 * 365 * 86_400)
    ) as sandbox:
        yield sandbox.url


class Progress(Protocol):
    """Who is told how the rows of a run end. Both methods must return at once."""

    def begin(self, batch: str, images: int) -> None:
        """Take note that a batch begins that asks for so many pictures."""

    def ended(self, outcome: Outcome, spent_usd: Decimal) -> None:
        """Take note of a row's outcome and of the dollars its batch has settled in this run so far."""


class LogProgress:
    """Writes a line to the run's log for every so many rows."""

    def __init__(self, every: int = 50) -> None:
        self._every = every
        self._batch = ""
        self._ended = 0

    def begin(self, batch: str, images: int) -> None:
        """Start counting a batch."""
        self._batch, self._ended = batch, 0
        dg.get_dagster_logger().info(f"batch {batch}: {images} pictures asked for")

    def ended(self, outcome: Outcome, spent_usd: Decimal) -> None:  # noqa: ARG002 - as the protocol has it
        """Count a row."""
        self._ended += 1
        if self._ended % self._every == 0:
            dg.get_dagster_logger().info(
                f"batch {self._batch}: {self._ended} rows ended, ${spent_usd:.2f} spent"
            )


def build_resources(settings: Settings) -> dict[str, Any]:
    """Configure the resources, by the names under which assets ask for them."""
    return {
        "store": StoreResource(
            url=settings.store,
            backend=settings.backend,
            thumbnails=settings.thumbnails,
            pipeline=settings.key_prefix,
        ),
        "marks": MarksResource(
            with_prompt=settings.mark_prompt,
            certificate=settings.c2pa_certificate,
            key_file=settings.c2pa_key,
        ),
        "likeness": LikenessResource(faces=settings.faces),
        "tables": TablesResource(
            prompts=settings.prompts,
            references=settings.references,
            reviews=settings.reviews,
            defaults=dict(settings.defaults),
            extra_columns=list(settings.extra_columns),
            private_hosts=list(settings.private_hosts),
            pass_urls=settings.pass_urls,
        ),
        "fal": _fal(settings, dg.EnvVar("FAL_KEY") if settings.fal_key else None),
        "budget": BudgetResource(
            per_run_usd=_number(settings.budget_usd),
            per_day_usd=_number(settings.budget_usd_per_day),
            allow_unknown_prices=settings.allow_unknown_prices,
        ),
        "limits": LimitsResource(
            max_rejected_fraction=settings.max_rejected_fraction,
            max_refused_fraction=settings.max_refused_fraction,
            max_failed_fraction=settings.max_failed_fraction,
        ),
        "progress": LogProgress(),
    }


def fal_resource(settings: Settings) -> FalResource:
    """Configure fal for a command that connects by itself: with the key, where Dagster is given its variable's name."""
    return _fal(settings, settings.fal_key.get_secret_value() if settings.fal_key else None)


def _fal(settings: Settings, key: str | None) -> FalResource:
    return FalResource(
        backend=settings.backend,
        key=key,
        queue_url=settings.fal_queue_url,
        rest_url=settings.fal_rest_url,
        api_url=settings.fal_api_url,
        webhook_url=settings.webhook_url,
        max_in_flight=settings.max_in_flight,
        max_wait_s=settings.max_wait_s,
        inline_references=settings.inline_references,
    )


def _number(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)

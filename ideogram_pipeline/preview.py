"""What a run would do, without doing it: the plan of every batch, from the tables as they are now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.choice import Choice
from ideogram_pipeline.generation.files import (
    NO_REVIEWS,
    PickedPicture,
    left_without_picture,
    rejected_requests,
)
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.lost_ledgers import missing_of, paid_batches
from ideogram_pipeline.generation.planner import (
    PERHAPS_PAID,
    TO_PAY,
    Plan,
    References,
    plan_batch,
    plan_row,
    with_its_references,
)
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.resources import BudgetResource
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.erased import refused
from ideogram_pipeline.tables.prompts import PromptsTable, read_prompts
from ideogram_pipeline.tables.references import read_references
from ideogram_pipeline.tables.reviews import read_reviews
from ideogram_pipeline.tables.rows import PromptRow, Rejection, Review, RowProblem
from ideogram_pipeline.texts import without_access
from ideogram_pipeline.threads import result_of


class BatchPlanSummary(BaseModel):
    """One batch in numbers."""

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="The partition.")
    rows: int = Field(description="Rows of the prompts table.")
    new: int = Field(description="Rows that would be paid for, for the first time.")
    stale: int = Field(
        description="Rows that would be paid for because they ask for something else than before."
    )
    reused: int = Field(description="Rows whose pictures are there.")
    reattached: int = Field(description="Rows that were submitted before and would be fetched.")
    settled: int = Field(description="Rows that were refused or failed for good.")
    unknown: int = Field(description="Rows whose submit was never answered.")
    rejected: int = Field(description="Rows that can't be sent.")
    left_out: int = Field(description="Rows that this run was asked to leave out.")
    estimated_usd: float = Field(description="List price of the new and stale rows, in dollars.")
    estimated_usd_max: float = Field(
        description="The same with the re-attached and unknown rows, which may be paid already."
    )
    unpriced: int = Field(description="Rows of these four kinds whose price is not known.")

    @classmethod
    def of(cls, plan: Plan) -> BatchPlanSummary:
        """Count a plan."""
        return cls(
            batch=plan.batch,
            rows=len(plan.rows),
            new=plan.count("new"),
            stale=plan.count("stale"),
            reused=plan.count("reused"),
            reattached=plan.count("re-attached"),
            settled=plan.count("settled"),
            unknown=plan.count("unknown"),
            rejected=plan.count("rejected"),
            left_out=plan.count("left out"),
            estimated_usd=plan.cost_usd,
            estimated_usd_max=plan.cost_usd_max,
            unpriced=plan.tally.unpriced,
        )


class RowSummary(BaseModel):
    """What would be done with one row, and why."""

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="The partition.")
    row_number: int = Field(description="Where the row stands in the table.")
    prompt_id: str = Field(description="The row of the prompts table.")
    decision: str = Field(
        description="new, stale, reused, re-attached, settled, unknown, rejected or left out."
    )
    reason: str = Field(description="Why; for a rejected row with the column at fault.")
    price_usd: float | None = Field(description="List price of the request, in dollars.")


class AdviceSummary(BaseModel):
    """Something that the pictures of rows to be paid for may surprise with."""

    model_config = ConfigDict(frozen=True)

    text: str = Field(description="What to expect, and how to avoid it.")
    rows: int = Field(description="Rows it is about.")
    example: str = Field(description="The prompt id of the first of them.")


class PlanSummary(BaseModel):
    """All batches in numbers."""

    model_config = ConfigDict(frozen=True)

    batches: tuple[BatchPlanSummary, ...] = Field(description="Each batch.")
    rows: int = Field(description="Rows in all.")
    new: int = Field(description="Rows that would be paid for, for the first time.")
    stale: int = Field(
        description="Rows that would be paid for because they ask for something else than before."
    )
    estimated_usd: float = Field(description="List price of the new and stale rows, in dollars.")
    estimated_usd_max: float = Field(
        description="The same with the re-attached and unknown rows, which may be paid already."
    )
    unpriced: int = Field(description="Rows of these four kinds whose price is not known.")
    budget_left_usd: float | None = Field(
        description="Dollars that the budgets of run and day leave a run now; null without any. Beyond them it stops."
    )
    decisions: tuple[RowSummary, ...] = Field(description="Each row, by batch, in the order of the table.")
    workable: int = Field(
        description="Rows without pictures that a run would send, fetch or look for, if there is money for it."
    )
    blocked: tuple[str, ...] = Field(
        default=(),
        description="Why a run would pay for nothing in a batch: too many of its rows are rejected.",
    )
    lost_ledgers: tuple[str, ...] = Field(
        default=(), description="Why a run would refuse: batches whose ledger lacks what was paid for."
    )
    replaces_picked: tuple[PickedPicture, ...] = Field(
        default=(),
        description="Picked pictures that are no longer current after a run: their rows get others.",
    )
    advice: tuple[AdviceSummary, ...] = Field(
        description="Each advice for new and stale rows, the commonest first."
    )

    @classmethod
    def of(
        cls,
        plans: Sequence[Plan],
        budget_left_usd: float | None,
        lost_ledgers: Sequence[str] = (),
        picked: Sequence[PickedPicture] = (),
        *,
        max_rejected_fraction: float = 1.0,
    ) -> PlanSummary:
        """Count plans."""
        blocked = [plan for plan in plans if plan.rejected_fraction > max_rejected_fraction]
        at_work = [plan for plan in plans if plan.rejected_fraction <= max_rejected_fraction]
        batches = tuple(BatchPlanSummary.of(plan) for plan in plans)
        return cls(
            batches=batches,
            rows=sum(batch.rows for batch in batches),
            new=sum(batch.new for batch in batches),
            stale=sum(batch.stale for batch in batches),
            estimated_usd=round(sum(batch.estimated_usd for batch in batches), 6),
            estimated_usd_max=round(sum(batch.estimated_usd_max for batch in batches), 6),
            unpriced=sum(batch.unpriced for batch in batches),
            budget_left_usd=budget_left_usd,
            decisions=tuple(
                RowSummary(
                    batch=plan.batch,
                    row_number=row.row_number,
                    prompt_id=row.prompt_id,
                    decision=row.decision,
                    reason=without_access(f"{row.column}: {row.reason}" if row.column else row.reason),
                    price_usd=row.price_usd,
                )
                for plan in plans
                for row in plan.rows
            ),
            workable=sum(
                plan.count(decision)
                for plan in (() if lost_ledgers else at_work)
                for decision in (*TO_PAY, *PERHAPS_PAID)
            ),
            blocked=tuple(
                f"{plan.batch}: {plan.count('rejected')} of {len(plan.rows)} rows can't be sent, more than "
                f"the fraction of {max_rejected_fraction:g} that IDEOGRAM_MAX_REJECTED_FRACTION allows. Mend them, or "
                "raise it."
                for plan in blocked
            ),
            lost_ledgers=tuple(lost_ledgers),
            replaces_picked=tuple(picked),
            advice=_advice(plans),
        )

    @property
    def is_stopped_by_budget(self) -> bool:
        """Whether the budgets don't leave what a run would cost."""
        return self.budget_left_usd is not None and self.estimated_usd > self.budget_left_usd

    @property
    def is_stuck(self) -> bool:
        """Whether rows lack their pictures, and a run could bring none of them."""
        missing = self.rows - sum(batch.reused + batch.left_out for batch in self.batches)
        return missing > 0 and self.workable == 0


def _advice(plans: Sequence[Plan]) -> tuple[AdviceSummary, ...]:
    about: dict[str, list[str]] = defaultdict(list)
    for plan in plans:
        for row in plan.rows:
            if row.decision in TO_PAY and row.request:
                for text in row.request.advice:
                    about[text].append(row.prompt_id)
    commonest = sorted(about.items(), key=lambda item: -len(item[1]))
    return tuple(AdviceSummary(text=text, rows=len(ids), example=ids[0]) for text, ids in commonest)


def preview(settings: Settings, batches: Sequence[str], choice: Choice | None = None) -> list[Plan]:
    """Return the plan of each batch (all of them if none is named) for a run of this `choice`.

    Nothing is sent or written.

    Raises:
        PipelineError: a table can't be used, or a named batch is not in it.
    """
    store = store_as_it_is(settings)
    table, references = _read_tables(settings, store, batches)
    reviews = _reviews(settings) if choice and choice.regenerate_rejected else ()
    rows: dict[str, list[PromptRow]] = defaultdict(list)
    rejections: dict[str, list[Rejection]] = defaultdict(list)
    by_batch: dict[str, list[Review]] = defaultdict(list)
    for review in reviews:
        by_batch[review.batch].append(review)
    for row in table.rows:
        rows[row.batch].append(row)
    for rejection in table.rejections:
        rest = table.rest.get(rejection.row_number)
        rejections[rejection.batch].append(
            with_its_references(rejection, rest, references) if rest else rejection
        )
    return [
        plan_batch(
            batch,
            rows[batch],
            rejections[batch],
            references,
            Ledger(store, batch).entries,
            choice=choice,
            left_without=left_without_picture(store, batch),
            rejected=rejected_requests(store, batch, by_batch[batch]),
            pass_urls=settings.pass_urls,
        )
        for batch in batches or table.batches
    ]


def _read_tables(settings: Settings, store: Store, batches: Sequence[str]) -> tuple[PromptsTable, References]:
    table = read_prompts(
        settings.prompts,
        settings.defaults,
        extra_columns=settings.extra_columns,
        paid_batches=partial(paid_batches, store),
    )
    pictures = read_references(
        settings.references,
        store=None,
        erased=refused(store),
        private_hosts=settings.private_hosts,
        extra_columns=settings.extra_columns,
    )
    known = table.batches if batches else []
    for batch in sorted(set(batches) - set(known)):
        raise ConfigurationError(
            f"No row of {settings.prompts} is in the batch {batch!r}; it has {', '.join(known) or 'none'}."
        )
    return table, References.of(pictures.references, pictures.rejections)


def picked_to_replace(settings: Settings, plans: Sequence[Plan]) -> list[PickedPicture]:
    """Return the pictures that are picked in the reviews table, where there is one, and that a run would replace.

    Raises:
        TableError: the reviews table can't be used.
    """
    if settings.reviews is None or not any(plan.count(decision) for plan in plans for decision in TO_PAY):
        return []
    store, reviews = store_as_it_is(settings), _reviews(settings)
    return [one for plan in plans for one in files.picked_to_replace(store, plan, reviews)]


def first_takes(settings: Settings, batches: Sequence[str]) -> dict[str, list[GenerationRequest]]:
    """Return what the rows of each batch (all of them if none is named) ask for, take 0, in the order of the table.

    Rows that can't be sent ask for nothing. Nothing is sent or written.

    Raises:
        PipelineError: a table can't be used, or a named batch is not in it.
    """
    table, references = _read_tables(settings, store_as_it_is(settings), batches)
    asked: dict[str, list[GenerationRequest]] = {batch: [] for batch in batches or table.batches}
    for row in table.rows:
        if row.batch in asked:
            with suppress(RowProblem):
                asked[row.batch].append(plan_row(row, references, pass_urls=settings.pass_urls))
    return asked


def lost_ledgers(settings: Settings, batches: Sequence[str]) -> list[str]:
    """Say of each of these batches whose ledger lacks what was paid for. Writes nothing."""
    return missing_of(store_as_it_is(settings), batches)


def new_take(settings: Settings, request: GenerationRequest) -> GenerationRequest:
    """Return the next take of the row that made a request, priced. Nothing is sent or written.

    Raises:
        ConfigurationError: the row is gone or asks for something else now, or its newest take has not ended.
        PipelineError: a table can't be used.
    """
    who = f"{request.prompt_id} of the batch {request.batch!r}"
    (plan,) = preview(settings, [request.batch], Choice(regenerate=True, prompt_ids=(request.prompt_id,)))
    row = next(row for row in plan.rows if row.prompt_id == request.prompt_id)
    take = row.request
    if take is None:
        raise ConfigurationError(f"{who} can't be sent as it is in the table now: {row.column}: {row.reason}")
    if (take.endpoint_id, _but_seed(take)) != (request.endpoint_id, _but_seed(request)):
        raise ConfigurationError(
            f"{who} asks for something else in the table now, so this is no further take of it. Print the row of then "
            "with `replay KEY --as row`, and put it into the table under a prompt_id of its own."
        )
    if take.replaces is None or row.decision != "new":
        raise ConfigurationError(
            f"The newest take of {who} has not ended: {row.reason}. Run the batch first."
        )
    return take


def _but_seed(request: GenerationRequest) -> dict[str, JsonValue]:
    return {name: value for name, value in request.arguments.items() if name != "seed"}


def _reviews(settings: Settings) -> Sequence[Review]:
    if settings.reviews is None:
        raise ConfigurationError(NO_REVIEWS)
    return read_reviews(settings.reviews, extra_columns=settings.extra_columns).reviews


def budget_left(settings: Settings) -> float | None:
    """Return the dollars that the budgets leave a run that begins now; None without any. Writes nothing.

    Raises:
        PipelineError: the store is at fault.
    """
    budget = BudgetResource(
        per_run_usd=_number(settings.budget_usd), per_day_usd=_number(settings.budget_usd_per_day)
    )
    left = result_of(budget.open(store_as_it_is(settings), "not begun").look())
    return _number(left)


def _number(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)


def store_as_it_is(settings: Settings) -> Store:
    """Open the store, or an empty one where there is none yet: a preview makes no folder."""
    absent = "://" not in settings.store and not Path(settings.store).expanduser().exists()
    return Store.open("memory://" if absent else settings.store)

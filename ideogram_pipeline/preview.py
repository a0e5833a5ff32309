"""What a run would do, without doing it: the plan of every batch, from the tables as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation.ledger import Ledger
from ideogram_pipeline.generation.planner import Plan, References, plan_batch
from ideogram_pipeline.settings import Settings
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.prompts import read_prompts
from ideogram_pipeline.tables.references import read_references


class BatchPlanSummary(BaseModel):
    """One batch in numbers."""

    model_config = ConfigDict(frozen=True)

    batch: str = Field(description="The partition.")
    rows: int = Field(description="Rows of the prompts table.")
    new: int = Field(description="Rows that would be paid for.")
    reused: int = Field(description="Rows whose pictures are there.")
    reattached: int = Field(description="Rows that were submitted before and would be fetched.")
    settled: int = Field(description="Rows that were refused or failed for good.")
    unknown: int = Field(description="Rows whose submit was never answered.")
    rejected: int = Field(description="Rows that can't be sent.")
    estimated_usd: float = Field(description="List price of the new rows, in dollars.")
    unpriced: int = Field(description="New rows whose price is not known.")


class PlanSummary(BaseModel):
    """All batches in numbers."""

    model_config = ConfigDict(frozen=True)

    batches: tuple[BatchPlanSummary, ...] = Field(description="Each batch.")
    rows: int = Field(description="Rows in all.")
    new: int = Field(description="Rows that would be paid for.")
    estimated_usd: float = Field(description="List price of the new rows, in dollars.")

    @classmethod
    def of(cls, plans: Sequence[Plan]) -> PlanSummary:
        """Count plans."""
        batches = tuple(
            BatchPlanSummary(
                batch=plan.batch,
                rows=len(plan.rows),
                new=plan.count("new"),
                reused=plan.count("reused"),
                reattached=plan.count("re-attached"),
                settled=plan.count("settled"),
                unknown=plan.count("unknown"),
                rejected=plan.count("rejected"),
                estimated_usd=plan.cost_usd,
                unpriced=plan.unpriced,
            )
            for plan in plans
        )
        return cls(
            batches=batches,
            rows=sum(batch.rows for batch in batches),
            new=sum(batch.new for batch in batches),
            estimated_usd=round(sum(batch.estimated_usd for batch in batches), 6),
        )


def preview(settings: Settings, batches: Sequence[str]) -> list[Plan]:
    """Return the plan of each batch (all of them if none is named). Nothing is sent or written.

    Raises:
        PipelineError: a table can't be used, or a named batch is not in it.
    """
    absent = "://" not in settings.store and not Path(settings.store).expanduser().exists()
    store = Store.open("memory://" if absent else settings.store)
    table = read_prompts(settings.prompts)
    pictures = read_references(settings.references, store=None)
    references = References.of(pictures.references, pictures.rejections)
    for batch in batches:
        if batch not in table.batches:
            raise ConfigurationError(
                f"No row of {settings.prompts} is in the batch {batch!r}; it has {', '.join(table.batches) or 'none'}."
            )
    return [
        plan_batch(
            batch,
            [row for row in table.rows if row.batch == batch],
            [rejection for rejection in table.rejections if rejection.batch == batch],
            references,
            Ledger(store, batch).entries,
        )
        for batch in batches or table.batches
    ]

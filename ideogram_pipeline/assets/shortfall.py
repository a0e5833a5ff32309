"""When a run of a batch fails although it worked: too many of its rows ended without a picture.

What was made is stored and recorded first, and the materialization is told to Dagster; only then does the step fail. So
nothing that was paid for is lost from sight, and a person, an alert or an automation sees that the batch is not whole.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

import dagster as dg

from ideogram_pipeline.assets.retries import RUN_RETRIES_TAG

if TYPE_CHECKING:
    from ideogram_pipeline.generation.outcomes import Outcome
    from ideogram_pipeline.generation.records import OutcomeRow

REASONS = 5
"""Rows whose reason the failure names."""

Arguments = ParamSpec("Arguments")


class Incomplete(dg.Failure):
    """The step did all it could, and recorded it; too many rows have no picture.

    Neither the step nor, where run retries are switched on, the run is run again by itself.
    """


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The rows of a batch that should have a picture and have none."""

    batch: str
    """The partition."""
    rows: int
    """Rows that this run was to make: all but those left out by choice, and those another run is working on."""
    missing: tuple[OutcomeRow, ...]
    """Those that ended without a picture."""
    bearable: float
    """The share of the rows that may."""

    @classmethod
    def of(
        cls, batch: str, rows: Sequence[OutcomeRow], outcomes: Sequence[Outcome], bearable: float
    ) -> Shortfall:
        """Count the rows of a batch. Rejected rows count: they are in the table, and have no picture."""
        from ideogram_pipeline.generation.outcomes import is_missing

        missing = {outcome.request.fingerprint for outcome in outcomes if is_missing(outcome)}
        without = tuple(row for row in rows if row.state == "rejected" or row.fingerprint in missing)
        made = sum(row.state == "generated" for row in rows)
        return cls(batch, made + len(without), without, bearable)

    @property
    def failure(self) -> Incomplete | None:
        """What the step fails with, if it does."""
        if len(self.missing) <= self.bearable * self.rows:
            return None
        states = Counter(row.state for row in self.missing)
        counts = ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in states.items())
        reasons = "\n".join(f"- {row.prompt_id}: {row.reason}" for row in self.missing[:REASONS])
        return Incomplete(
            f"{len(self.missing)} of {self.rows} rows of the batch {self.batch!r} ended without a picture ({counts}); "
            f"IDEOGRAM_MAX_FAILED_FRACTION is {self.bearable:g}. The others are stored and recorded, and running the "
            f"batch again pays only for what is missing.\n{reasons}",
            metadata={"rows": self.rows, **dict(states.items())},
            allow_retries=False,
        )


def told_before_failing(
    asset: Callable[Arguments, tuple[dg.MaterializeResult[None], Shortfall]],
) -> Callable[Arguments, Iterator[dg.MaterializeResult[None]]]:
    """Have an asset materialize with its result, whole, and fail after that if its shortfall says so.

    Raises:
        Incomplete: too many rows have no picture.
    """

    @wraps(asset)
    def told(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Iterator[dg.MaterializeResult[None]]:
        result, shortfall = asset(*args, **kwargs)
        yield result
        if failure := shortfall.failure:
            context = dg.AssetExecutionContext.get()
            context.instance.add_run_tags(context.run.run_id, {RUN_RETRIES_TAG: "false"})
            raise failure

    returns_nothing = inspect.signature(asset).replace(return_annotation=inspect.Signature.empty)
    told.__signature__ = returns_nothing  # type: ignore[attr-defined]  # PEP 362; Dagster would store what is annotated
    del told.__annotations__["return"]
    return told

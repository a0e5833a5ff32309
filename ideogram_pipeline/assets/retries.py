"""What Dagster may try again: a step that crashed, or whose store was out of reach. No money hangs on it.

Three layers repeat, each for its own reason. The client repeats what is safe to repeat. The engine submits a row again
when fal says that it ended without a result. Dagster runs a step again, which re-attaches to what was paid for. Left
to itself Dagster would also run a step again that somebody stopped (its retry policy counts interrupts), or that reads
a table with a mistake in it. Neither can help, so both end the step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import dagster as dg

from ideogram_pipeline.errors import PipelineError, StoreError
from ideogram_pipeline.texts import shown

CRASHES = dg.RetryPolicy(max_retries=2, delay=3, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
"""The policy of every asset: again after about 3 and 9 seconds."""

RUN_RETRIES_TAG = "dagster/retry_on_asset_or_op_failure"
"""Lets Dagster's run retries, where they are switched on, take up a run whose step failed."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Interrupted(dg.Failure):
    """The step was stopped: by a person, or because its process had to go. It is not run again in this process."""


class Unmendable(dg.Failure):
    """The step can't succeed until a person changes something; the cause is the `PipelineError` that says what."""


def retried_after_crashes(asset: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Keep the retry policy to what it is for: stop it at interrupts and at mistakes that only a person can mend.

    Raises:
        Interrupted: SIGTERM, Ctrl-C or a termination. Where nobody terminated the run, run retries may take it up.
        Unmendable: a table, a setting or, after the last retry, the store is at fault.
    """

    @wraps(asset)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from ideogram_pipeline.telemetry import exported

        try:
            with exported():
                return asset(*args, **kwargs)
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as interrupt:
            raise _interrupted(dg.AssetExecutionContext.get()) from interrupt
        except PipelineError as error:
            retries = dg.AssetExecutionContext.get().retry_number
            if isinstance(error, StoreError) and retries < CRASHES.max_retries:
                raise
            raise Unmendable(shown(error), allow_retries=False) from error

    return guarded


def terminated(context: dg.AssetExecutionContext) -> bool:
    """Say whether somebody wants this run to end, from its status as it is stored now.

    Where that can't be read, nobody is known to: records that fail for a while must not cut off paid requests.
    """
    try:
        run = context.instance.get_run_by_id(context.run.run_id)
    except Exception:  # whatever the instance's storage raises: SQLite's errors, Postgres', HTTP's
        return False
    return run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)


def _interrupted(context: dg.AssetExecutionContext) -> Interrupted:
    if terminated(context):
        return Interrupted("The run was terminated.", allow_retries=False)
    context.instance.add_run_tags(context.run.run_id, {RUN_RETRIES_TAG: "true"})
    return Interrupted(
        "The run was interrupted. Run it again: it takes up what was submitted.", allow_retries=False
    )

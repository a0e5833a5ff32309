"""What executes the steps of a run: this process, processes beside it, pods, or Celery's workers.

Whichever it is, a step that is killed is run again by Dagster or by a person, and takes up what was submitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

import dagster as dg

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.settings import Executor, Settings


def executor(settings: Settings) -> dg.ExecutorDefinition:
    """Return the executor that the settings choose.

    Raises:
        ConfigurationError: its package is not installed, or what it needs is not set.
    """
    return _EXECUTORS[settings.executor](settings)


def _in_process(_: Settings) -> dg.ExecutorDefinition:
    return dg.in_process_executor


def _multiprocess(_: Settings) -> dg.ExecutorDefinition:
    return dg.multiprocess_executor


def _k8s(_: Settings) -> dg.ExecutorDefinition:
    """Return the executor that makes a Kubernetes Job of each step, in the cluster and image of the run's own."""
    return _installed("k8s", "k8s_job_executor")


def _celery(settings: Settings) -> dg.ExecutorDefinition:
    """Return the executor that hands each step to a worker; it reads the addresses, with passwords, where it runs."""
    if not settings.celery_broker or not settings.celery_backend:
        raise ConfigurationError(
            "IDEOGRAM_EXECUTOR is 'celery', so IDEOGRAM_CELERY_BROKER and IDEOGRAM_CELERY_BACKEND have to be set, to "
            "such as redis://redis:6379/0 and redis://redis:6379/1; the workers need the same two."
        )
    return _installed("celery", "celery_executor").configured(
        {"broker": {"env": "IDEOGRAM_CELERY_BROKER"}, "backend": {"env": "IDEOGRAM_CELERY_BACKEND"}},
        name="celery",
    )


_EXECUTORS: Mapping[Executor, Callable[[Settings], dg.ExecutorDefinition]] = {
    "in_process": _in_process,
    "multiprocess": _multiprocess,
    "k8s": _k8s,
    "celery": _celery,
}


def _installed(extra: str, name: str) -> dg.ExecutorDefinition:
    """Return an executor of the package that an extra of ours brings."""
    try:
        found = getattr(import_module(f"dagster_{extra}"), name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"IDEOGRAM_EXECUTOR is {extra!r}, and {error.name} is not installed: "
            f"pip install 'ideogram-pipeline[{extra}]'."
        ) from None
    assert isinstance(found, dg.ExecutorDefinition)
    return found

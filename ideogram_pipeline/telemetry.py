"""Telemetry: spans and counters through OpenTelemetry, sent where its own variables say, and nowhere without them.

    plan       a batch's rows become requests          generate   a batch is worked, with below it, for each row:
    submit     the POST and fal's answer               wait       from then until fal says that it has ended
    download   one picture                             store      one picture, until it is on the disk

Attributes are ids, kinds and numbers. No prompt, no URL, no key and no message of an exception is among them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.trace import Span, Status, StatusCode

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.trace import TracerProvider
    from stamina.instrumentation import RetryDetails

NAME = "ideogram_pipeline"
ENDPOINTS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
"""Any of these says that an exporter is wanted."""
FLUSH_MS = 5_000
"""A collector that takes longer does not keep a run."""

_tracer = trace.get_tracer(NAME, version("ideogram-pipeline"))
_meter = metrics.get_meter(NAME, version("ideogram-pipeline"))
_log = logging.getLogger(__name__)

SUBMITS = _meter.create_counter(
    "ideogram.submits", "{request}", "POSTs that cost money, by `endpoint` and `answer`"
)
POLLS = _meter.create_counter("ideogram.polls", "{call}", "Questions to fal whether a request has ended")
RETRIES = _meter.create_counter(
    "ideogram.retries", "{retry}", "What was done again, by `of`: call, request or download"
)
SETTLED = _meter.create_counter("ideogram.settled", "{request}", "Ended requests, by `endpoint` and `state`")
PICTURES = _meter.create_counter(
    "ideogram.pictures", "{picture}", "Pictures stored and settled, by `endpoint`"
)
SPENT = _meter.create_counter(
    "ideogram.spent", "USD", "Dollars settled, by `endpoint` and `source`; those of unknown cost are missing"
)


@contextmanager
def span(name: str, **facts: str | int | float | None) -> Iterator[Span]:
    """Measure a block as a span; an exception that leaves it marks the span with its type, and with nothing else."""
    known = {f"ideogram.{key}": value for key, value in facts.items() if value is not None}
    with _tracer.start_as_current_span(
        name, attributes=known, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_attribute("error.type", type(error).__name__)
            current.set_status(Status(StatusCode.ERROR))
            raise


def retried(details: RetryDetails) -> None:
    """Count a call that is made again because it may pass; a hook for stamina."""
    RETRIES.add(1, {"of": "call", "error.type": type(details.caused_by).__name__})


@contextmanager
def exported() -> Iterator[None]:
    """Send what was measured, where an exporter is configured, before the block is left: processes end in many ways."""
    providers = _providers()
    try:
        yield
    finally:
        for provider in providers:
            provider.force_flush(FLUSH_MS)


def is_wanted() -> bool:
    """Say whether the environment names a collector."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return not disabled and any(os.environ.get(name) for name in ENDPOINTS)


@cache
def _providers() -> tuple[TracerProvider | MeterProvider, ...]:
    """Set up OpenTelemetry's SDK, unless nobody asked for it or somebody has: an agent, or the host's own code."""
    if not is_wanted():
        return ()
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        _log.warning(
            "An OpenTelemetry endpoint is set and its SDK is not installed: pip install 'ideogram-pipeline[otel]'."
        )
        return ()
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or "ideogram-pipeline"})
    made: list[TracerProvider | MeterProvider] = []
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider) and _exports("TRACES"):
        spans = TracerProvider(resource=resource)
        spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(spans)
        made.append(spans)
    if not isinstance(metrics.get_meter_provider(), MeterProvider) and _exports("METRICS"):
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meters = MeterProvider(resource=resource, metric_readers=[reader])
        metrics.set_meter_provider(meters)
        made.append(meters)
    return tuple(made)


def _exports(signal: str) -> bool:
    return os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp").strip().lower() == "otlp"

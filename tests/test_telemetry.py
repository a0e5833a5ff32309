"""What is measured, and that it says nothing it must not: in this process, and at a real collector on loopback."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ideogram_pipeline import telemetry

RUN = [sys.executable, "-c", "from ideogram_pipeline.cli import main; main()", "run", "--json"]
PROMPT = "a lighthouse that nobody may read about"


class Collector:
    """Takes what an exporter sends, as OTLP over HTTP."""

    def __init__(self):
        self.bodies = {"/v1/traces": [], "/v1/metrics": []}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    raise AssertionError("the test reads no gzip")
                collector.bodies[self.path].append(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def spans(self):
        found = [ExportTraceServiceRequest.FromString(body) for body in self.bodies["/v1/traces"]]
        return [
            span
            for one in found
            for group in one.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def totals(self):
        """The last total of each counter, over all attributes."""
        totals = {}
        for body in self.bodies["/v1/metrics"]:
            request = ExportMetricsServiceRequest.FromString(body)
            for group in request.resource_metrics:
                for scope in group.scope_metrics:
                    for metric in scope.metrics:
                        points = metric.sum.data_points
                        totals[metric.name] = sum(point.as_int + point.as_double for point in points)
        return totals

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


def run(folder, **variables):
    (folder / "prompts.csv").write_text(f"prompt_id,prompt\np1,{PROMPT}\np2,{PROMPT}\n")
    (folder / "references.csv").write_text("reference_id,uri\n")
    settings = {
        "IDEOGRAM_STORE": str(folder / "store"),
        "IDEOGRAM_PROMPTS": str(folder / "prompts.csv"),
        "IDEOGRAM_REFERENCES": str(folder / "references.csv"),
        "SANDBOX_LATENCY_SCALE": "0",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DAGSTER_HOME": "",
    }
    return subprocess.run(
        RUN, env=os.environ | settings | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_real_run_sends_its_spans_and_counters(tmp_path, collector):
    ended = run(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, IDEOGRAM_LOG_FORMAT="json")
    assert ended.returncode == 0, ended.stderr
    spans = collector.spans()
    by_name = {}
    for span in spans:
        by_name.setdefault(span.name, []).append({one.key: one.value.string_value for one in span.attributes})
    assert {name: len(found) for name, found in by_name.items()} == {
        "plan": 1,
        "generate": 1,
        "submit": 2,
        "wait": 2,
        "download": 2,
        "store": 2,
    }
    assert {found["ideogram.prompt_id"] for found in by_name["submit"]} == {"p1", "p2"}
    assert {found["ideogram.request_id"] for found in by_name["submit"]} == {
        found["ideogram.request_id"] for found in by_name["wait"]
    }
    (generate,) = [span for span in spans if span.name == "generate"]
    assert {span.trace_id for span in spans if span.name != "plan"} == {generate.trace_id}
    totals = collector.totals()
    assert (totals["ideogram.submits"], totals["ideogram.pictures"], totals["ideogram.settled"]) == (2, 2, 2)
    assert totals["ideogram.spent"] == pytest.approx(0.12)
    assert totals["ideogram.polls"] >= 2
    lines = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert sorted(line["message"].split()[1] for line in lines if line["prompt_id"] == "p1") == [
        "generated",
        "submitted",
    ]
    sent = b"".join(body for bodies in collector.bodies.values() for body in bodies)
    for secret in (PROMPT, "http://127.0.0.1", "sandbox:sandbox"):
        assert secret.encode() not in sent
        assert secret not in ended.stderr


@pytest.mark.slow
def test_a_collector_that_is_away_costs_a_run_nothing_but_patience(tmp_path, collector):
    away = collector.url
    collector.close()
    ended = run(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=away, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1])["generated"] == 2


def test_a_span_tells_the_type_of_what_left_it_and_nothing_else(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    with pytest.raises(ValueError, match="https"), telemetry.span("submit", prompt_id="p1", request_id=None):
        raise ValueError("https://bucket.example/a?X-Amz-Signature=feed")
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes) == {"ideogram.prompt_id": "p1", "error.type": "ValueError"}
    assert (span.status.is_ok, span.status.description, span.events) == (False, None, ())


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_nothing_is_sent_unless_a_collector_is_named(monkeypatch, variables, wanted):
    for name in (*telemetry.ENDPOINTS, "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert telemetry.is_wanted() is wanted

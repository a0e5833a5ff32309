"""What the tests of several rooms share: Hypothesis without its stopwatch, a store, a batch that was run, and bills."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.ledger import Ledger, Reserved, Settled, StoredImage, Submitted
from ideogram_pipeline.generation.outcomes import (
    Failed,
    Generated,
    NotReached,
    Outcome,
    Refused,
    Reused,
    Unknown,
)
from ideogram_pipeline.generation.planner import Plan, References, plan_batch
from ideogram_pipeline.generation.records import image_rows, outcome_rows
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.pictures import inspect
from ideogram_pipeline.storage import Store
from ideogram_pipeline.tables.prompts import PromptsTable
from ideogram_pipeline.tables.reader import RawRow
from ideogram_pipeline.tables.rows import PromptRow, Rejection, parse_row

# How fast an example runs says nothing about whether it is right.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
NO_REFERENCES = References({}, {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "store"))


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Make a picture file of one colour."""

    def make(
        color: str = "teal", size: tuple[int, int] = (64, 48), kind: str = "PNG", mode: str = "RGB"
    ) -> bytes:
        sink = io.BytesIO()
        Image.new("RGB", size, color).convert(mode).save(sink, kind)
        return sink.getvalue()

    return make


@pytest.fixture
def prompts_table() -> Callable[..., PromptsTable]:
    """Make a prompts table with a row in each of some batches."""

    def make(*batches: str) -> PromptsTable:
        numbered = enumerate(batches, 2)
        return PromptsTable(
            tuple(
                PromptRow(prompt_id=f"p{number}", batch=batch, row_number=number, prompt="x")
                for number, batch in numbered
            ),
            (),
        )

    return make


class BillingDesk:
    """fal's billing events as a test has them, on 127.0.0.1, and what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[dict[str, list[str]]] = []
        self.events: list[dict[str, Any]] = []
        """What is known; a question by ids is answered with those."""
        self.status = 200
        self.cut_short = False
        """Whether an answer says that there is more, and not where."""
        desk = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = desk.answer(self.path)
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, target: str) -> tuple[int, dict[str, Any]]:
        path, _, query = target.partition("?")
        assert path == "/v1/models/billing-events"
        self.asked.append(parse_qs(query))
        if self.status != 200:
            return self.status, {"error": {"type": "authorization_error", "message": "Not for this key"}}
        found = [event for event in self.events if event["request_id"] in self.asked[-1]["request_id"]]
        return 200, {"billing_events": found, "has_more": self.cut_short, "next_cursor": None}

    def book(self, request_id: str, **facts: Any) -> None:
        """Charge 10 cents for a request, or what the facts say."""
        event = {
            "request_id": request_id,
            "endpoint_id": "fal-ai/ideogram/v3",
            "timestamp": "2026-11-22T12:00:05Z",
            "output_units": 1,
            "unit_price": 0.1,
            "cost_total": 0.1,
        }
        self.events.append(event | facts)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def billing_desk() -> Iterator[BillingDesk]:
    desk = BillingDesk()
    yield desk
    desk.close()


@dataclass(frozen=True)
class WorkedBatch:
    """A batch as a run leaves it in the store."""

    plan: Plan
    ledger: Ledger
    outcomes: list[Outcome]

    def request(self, prompt_id: str) -> GenerationRequest:
        return next(row.request for row in self.plan.rows if row.prompt_id == prompt_id and row.request)


@pytest.fixture
def work_batch(store: Store, picture: Callable[..., bytes]) -> Callable[..., WorkedBatch]:
    """Plan rows, write how each ended into the ledger as the engine would, and write plan and results."""

    def work(
        records: Iterable[Mapping[str, Any]],
        *,
        endings: Mapping[str, str] | None = None,
        batch: str = "drop",
        rejections: Iterable[Rejection] = (),
        references: References = NO_REFERENCES,
    ) -> WorkedBatch:
        numbered = enumerate(records, 2)
        rows = [parse_row(PromptRow, RawRow(number, {"batch": batch, **cells})) for number, cells in numbered]
        ledger = Ledger(store, batch)
        plan = plan_batch(batch, rows, rejections, references, ledger.entries)
        requests = [row.request for row in plan.rows if row.request]
        how = {request.prompt_id: "generated" for request in requests} | dict(endings or {})

        async def end_all() -> list[Outcome]:
            return [
                await _end(store, ledger, request, how[request.prompt_id], picture()) for request in requests
            ]

        outcomes = asyncio.run(end_all())
        files.write_plan(store, plan)
        files.write_results(store, batch, image_rows(plan, ledger.entries), outcome_rows(plan, outcomes))
        return WorkedBatch(plan, ledger, outcomes)

    return work


async def _end(
    store: Store, ledger: Ledger, request: GenerationRequest, ending: str, content: bytes
) -> Outcome:
    """Bring a request to its end, unless the ledger knows that it has ended before."""
    fingerprint = request.fingerprint
    if fingerprint in ledger.entries:
        return Reused(request, ledger.entries[fingerprint])
    if ending == "not_reached":
        return NotReached(request, None, "the brake was pulled")
    await ledger.reserve(
        Reserved(
            request=request,
            sent_sha256="0",
            attempt=1,
            owner="run-1",
            reserved_at=NOON,
            backend="sandbox",
            code_version="1.2.3",
        )
    )
    if ending == "unknown":
        return Unknown(request, ledger.entries[fingerprint], "the answer was lost")
    url = f"https://queue.example/{fingerprint[:8]}"
    await ledger.submitted(
        fingerprint,
        Submitted(
            request_id=f"request-{request.prompt_id}",
            status_url=f"{url}/status",
            response_url=url,
            cancel_url=f"{url}/cancel",
            submitted_at=NOON,
        ),
    )
    images = _store_images(store, request, content) if ending == "generated" else ()
    await ledger.settle(
        fingerprint,
        Settled(
            state=ending,
            reason="" if images else f"it was {ending}",
            images=images,
            seed=7 if images else None,
            inference_s=2.5 if images else None,
            completed_at=NOON + timedelta(seconds=10),
            cost_usd=request.price_usd if images else Decimal(0),
            cost_source="price_list",
        ),
    )
    entry = ledger.entries[fingerprint]
    if images:
        return Generated(request, entry)
    return (Refused if ending == "refused" else Failed)(request, entry, f"it was {ending}")


def _store_images(store: Store, request: GenerationRequest, content: bytes) -> tuple[StoredImage, ...]:
    facts = inspect(content)
    images = []
    for index in range(request.num_images):
        path = f"images/batch={request.batch}/{request.prompt_id}-{request.fingerprint[:8]}-{index}.png"
        store.put(path, content)
        images.append(
            StoredImage(
                index=index,
                path=path,
                sha256=facts.sha256,
                bytes=facts.bytes,
                width=facts.width,
                height=facts.height,
                format=facts.kind,
            )
        )
    return tuple(images)

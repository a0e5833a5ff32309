"""Logs: lines about rows, by the standard `logging`, in text or as JSON, with the ids of what they are about.

The rooms log with `extra` fields, of which `FIELDS` are shown; nothing else of a record can get into a line, and no URL
with what opens it. Dagster shows the same messages where its `python_logs` names the logger `ideogram_pipeline`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

from ideogram_pipeline.texts import cut, escaped, json_shown, shown, without_access

LogFormat = Literal["off", "text", "json"]
LOGGER = "ideogram_pipeline"
FIELDS = ("run_id", "batch", "prompt_id", "fingerprint", "request_id", "endpoint", "state", "cost_usd")
"""What a line may say of a row or run beside its message."""

_run_id: ContextVar[str | None] = ContextVar("run_id", default=None)


@contextmanager
def of_run(run_id: str) -> Iterator[None]:
    """Have every line from inside the block, and from what is started in it, name a run."""
    token = _run_id.set(run_id)
    try:
        yield
    finally:
        _run_id.reset(token)


class Lines(logging.Formatter):
    """A line a record, of what others wrote too: nothing in it begins another line, and no terminal obeys it."""

    def __init__(self, *, as_json: bool) -> None:
        """Write text, or JSON."""
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; in text, those of a traceback follow it, each set in."""
        facts: dict[str, object] = {"run_id": _run_id.get()} | {
            name: value for name in FIELDS if (value := getattr(record, name, None)) is not None
        }
        facts = {name: value for name, value in facts.items() if value is not None}
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        failure = without_access(self.formatException(record.exc_info)) if record.exc_info else ""
        if not self._as_json:
            ids = "".join(f" {name}={shown(value)}" for name, value in facts.items())
            traceback = "".join(f"\n  {escaped(line)}" for line in failure.splitlines())
            return f"{at} {record.levelname} {shown(record.getMessage())}{ids}{traceback}"
        message = without_access(cut(record.getMessage()))
        line = {"time": at, "level": record.levelname, "logger": record.name, "message": message, **facts}
        line |= {"exception": failure} if failure else {}
        return json_shown(json.dumps(line, ensure_ascii=False, default=str))


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # of whatever stderr is
    """Ours, so that it is known when it is there already."""


def configure(log_format: LogFormat) -> None:
    """Write the lines of this project to stderr, or leave them to whoever configures `logging`."""
    logger = logging.getLogger(LOGGER)
    for handler in [handler for handler in logger.handlers if isinstance(handler, _Handler)]:
        logger.removeHandler(handler)
    if log_format == "off":
        return
    handler = _Handler()
    handler.setFormatter(Lines(as_json=log_format == "json"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

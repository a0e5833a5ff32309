"""The brake: stops a batch whose first rows all end alike, without a picture, so that it can't drain a budget.

What fal has queued by then is cancelled; what it works on can't be.
"""

from __future__ import annotations

from collections import Counter

from ideogram_pipeline.fal.errors import ModelFailed, ModelRefused, RequestEnded

BRAKE_AFTER = 5
"""If so many rows have ended alike, without a picture, and none has ended with one, the batch stops."""


class Brake:
    """Watches how the rows of one run end."""

    def __init__(self) -> None:
        self._ends: Counter[str] | None = Counter()

    def release(self) -> None:
        """Watch no longer: a picture has come."""
        self._ends = None

    def after(self, error: RequestEnded) -> str | None:
        """Take note of a row without a picture; return why the batch stops, if it does."""
        if self._ends is None:
            return None
        kind = _kind(error)
        self._ends[kind] += 1
        if len(self._ends) > 1 or self._ends[kind] < BRAKE_AFTER:
            return None
        return f"stopped, because the first {BRAKE_AFTER} rows all ended alike, without a picture: {error}"


def _kind(error: RequestEnded) -> str:
    """Return what two errors have in common that mean the same for different rows."""
    reasons = error.details if isinstance(error, ModelRefused | ModelFailed) else ()
    return " ".join([type(error).__name__, *sorted({detail.type for detail in reasons})])

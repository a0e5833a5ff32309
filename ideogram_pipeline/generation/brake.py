"""The brake: stops a batch that only costs money, so that it can't drain a budget.

It is pulled where the first rows all end alike, without a picture; and where fal's answers can't be read any more,
several in a row: pictures would be paid for that this version of the program doesn't find. What fal has queued by then
is cancelled; what it works on can't be.
"""

from __future__ import annotations

from collections import Counter

from ideogram_pipeline.fal.errors import FalError, ModelFailed, ModelRefused, RequestEnded, SubmitUnknown

BRAKE_AFTER = 5
"""The batch stops if so many rows have ended alike, without a picture, and none has ended with one; and if so many
answers in a row can't be read."""


class Brake:
    """Watches how the rows of one run end."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why the batch stops, once it does."""
        self._ends: Counter[str] | None = Counter()
        self._unread_submits = self._unread_results = 0

    def accepted(self) -> None:
        """Take note that a submit was accepted."""
        self._unread_submits = 0

    def release(self) -> None:
        """Take note that a picture has come."""
        self._ends = None
        self._unread_results = 0

    def ended(self, error: RequestEnded) -> None:
        """Take note of a row that ended without a picture."""
        if self._ends is None:
            return
        kind = _kind(error)
        self._ends[kind] += 1
        if len(self._ends) == 1 and self._ends[kind] >= BRAKE_AFTER:
            self._pull(f"the first {BRAKE_AFTER} rows all ended alike, without a picture: {error}")

    def unread_submit(self, error: SubmitUnknown) -> None:
        """Take note of an answer to a submit that tells nothing. Without any answer the network is at fault."""
        if error.status is not None:
            self._unread_submits += 1
            self._pull_if_unread(self._unread_submits, error)

    def unread_result(self, error: FalError) -> None:
        """Take note that a request's end can't be read."""
        self._unread_results += 1
        self._pull_if_unread(self._unread_results, error)

    def _pull_if_unread(self, in_a_row: int, error: FalError) -> None:
        if in_a_row >= BRAKE_AFTER:
            self._pull(
                f"{BRAKE_AFTER} of fal's answers in a row could not be read; run again later, or with a newer "
                f"version: what was submitted is fetched then. The last: {error}"
            )

    def _pull(self, why: str) -> None:
        self.reason = self.reason or f"stopped, because {why}"


def _kind(error: RequestEnded) -> str:
    """Return what two errors have in common that mean the same for different rows."""
    reasons = error.details if isinstance(error, ModelRefused | ModelFailed) else ()
    return " ".join([type(error).__name__, *sorted({detail.type for detail in reasons})])

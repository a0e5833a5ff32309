"""The queue: requests wait, hold a slot for a while, and end.

What belongs here: the life of a request. Nothing runs in the background: a request's times follow from when it was
submitted, how long it takes and how many slots there are, and are caught up whenever somebody looks. So a sandbox
that was away carries on as if it had not been, and several processes may look at the same queue.
"""

import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pydantic import JsonValue

from ideogram_pipeline.sandbox.config import FaultKind, SandboxSettings
from ideogram_pipeline.sandbox.faults import first_striking, fraction
from ideogram_pipeline.sandbox.state import Failed, Input, Outcome, Phase, Request, State, Submission
from ideogram_pipeline.sandbox.studio import Studio, input_digest

MEAN_RUN_S: Mapping[str, float] = {"TURBO": 0.3, "BALANCED": 0.6, "QUALITY": 1.0}
"""Seconds a request takes on average, by rendering speed; single ones differ by up to 30 %."""
SLOW_S = 3.0
"""Seconds a slow request takes longer."""

_INPUT_FAULTS = (
    FaultKind.STUCK,
    FaultKind.SLOW,
    FaultKind.POLICY_REFUSAL,
    FaultKind.NO_MEDIA,
    FaultKind.EXPIRED_RESULT,
)
_ATTEMPT_FAULTS = (FaultKind.MODEL_500, FaultKind.RUNNER_503)
_CANCELLED = Failed(status=499, detail="Request was cancelled by the client", error_type="client_cancelled")
_STARTED_TOO_LATE = Failed(
    status=504, detail="Request timed out", error_type="request_timeout", start_timeout=True
)


class CancelAnswer(StrEnum):
    """What a cancel achieved."""

    OK = "OK"
    """It was queued and has been removed."""
    CANCELLATION_REQUESTED = "CANCELLATION_REQUESTED"
    """It was running. It completes all the same, as a fal app does that does not listen, unless it was stuck."""
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    """It had ended."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What comes with an input."""

    headers: Mapping[str, str]
    """Request headers without credentials, names in lower case."""
    base_url: str
    """The sandbox's own address as the caller knows it."""
    webhook: str | None
    """Address to tell when the request has ended."""
    start_timeout_s: float | None
    """Seconds after which the caller does not want it started any more."""


class Queue:
    """Accepts requests and says how far they have come."""

    def __init__(self, settings: SandboxSettings, state: State, studio: Studio) -> None:
        """Requests live in the state and are judged by the studio."""
        self.settings = settings
        """Can be replaced at any time; what was decided for accepted requests stays."""
        self._state = state
        self._studio = studio

    def read(self, endpoint_id: str, arguments: Mapping[str, JsonValue]) -> Input:
        """Name an input. Raises ValueError when the arguments hold numbers that JSON does not have."""
        return Input(endpoint_id, arguments, input_digest(endpoint_id, arguments, self._state))

    def fault(self, kinds: tuple[FaultKind, ...], subject: str, prompt: str) -> FaultKind | None:
        """The first of these faults that strikes."""
        return first_striking(self.settings, kinds, subject, prompt, self._state.first_time)

    def accept(self, given: Input, envelope: Envelope) -> Request:
        """Put a request into the queue."""
        now = time.time()
        with self._state.transaction():
            self.catch_up()
            load = self._state.load(given.digest)
            fault = self.fault(_INPUT_FAULTS, given.digest, given.prompt) or self.fault(
                _ATTEMPT_FAULTS, f"{given.digest}#{load.times_accepted}", given.prompt
            )
            submission = Submission(
                id=_uuid7(now),
                given=given,
                headers=envelope.headers,
                fault=fault,
                run_s=self._run_s(given, fault),
                submitted_at=now,
                start_by=None if envelope.start_timeout_s is None else now + envelope.start_timeout_s,
                webhook=envelope.webhook,
                base_url=envelope.base_url,
            )
            has_slot = load.queued == 0 and load.running < self.settings.concurrency
            return self._state.add(submission, started_at=now if has_slot else None)

    def _run_s(self, given: Input, fault: FaultKind | None) -> float | None:
        if fault is FaultKind.STUCK:
            return None
        mean = MEAN_RUN_S.get(str(given.arguments.get("rendering_speed")), MEAN_RUN_S["BALANCED"])
        spread = 0.7 + 0.6 * fraction(self.settings.seed, "run", given.digest)
        return self.settings.latency_scale * mean * spread + (SLOW_S if fault is FaultKind.SLOW else 0)

    def catch_up(self) -> None:
        """Let happen what should have happened by now."""
        now = time.time()
        slots = self.settings.concurrency
        if not self._state.due(now, slots):
            return
        with self._state.transaction():
            freed_at = 0.0
            while True:
                waiting = self._state.oldest_queued() if self._state.running() < slots else None
                if waiting:
                    self._start(waiting, max(freed_at, waiting.submission.submitted_at))
                elif (ending := self._state.first_to_end()) and ending.ends_at and ending.ends_at <= now:
                    freed_at = ending.ends_at
                    self._state.end(ending, freed_at)
                else:
                    break
            for late in self._state.late_starters(now):
                self._start(late, now)

    def _start(self, request: Request, at: float) -> None:
        start_by = request.submission.start_by
        if start_by is not None and start_by < at:
            self._state.end(request, start_by)
            self._state.settle(request, _STARTED_TOO_LATE)
        else:
            self._state.start(request, at)

    def find(self, request_id: str) -> Request | None:
        """The request with this id, as far as it has come by now."""
        self.catch_up()
        return self._state.request(request_id)

    async def outcome(self, request: Request) -> Outcome:
        """How a request that is done has ended."""
        if request.outcome is not None:
            return request.outcome
        outcome = await self._studio.judge(request.submission)
        self._state.settle(request, outcome)
        return outcome

    async def settle_all(self) -> None:
        """Look how every request ended that is done."""
        self.catch_up()
        for request in self._state.without_outcome():
            await self.outcome(request)

    def cancel(self, request: Request) -> CancelAnswer:
        """Cancel a request that was found."""
        with self._state.transaction():
            phase_now = (self.find(request.id) or request).phase
            if phase_now is Phase.DONE:
                return CancelAnswer.ALREADY_COMPLETED
            if phase_now is Phase.QUEUED or request.submission.run_s is None:
                self._state.end(request, time.time())
                self._state.settle(request, _CANCELLED)
        return CancelAnswer.OK if phase_now is Phase.QUEUED else CancelAnswer.CANCELLATION_REQUESTED

    def expired(self, request: Request) -> bool:
        """The result of a request that is done can no longer be fetched."""
        gone_at = (request.ends_at or 0) + self.settings.result_ttl
        return request.submission.fault is FaultKind.EXPIRED_RESULT or time.time() >= gone_at


def _uuid7(now: float) -> str:
    """A time-ordered UUID (RFC 9562, version 7), as fal's request ids are."""
    stamp = int(now * 1000) << 80 | secrets.randbits(80)
    stamp = stamp & ~(0xF << 76) | 0x7 << 76
    stamp = stamp & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=stamp))

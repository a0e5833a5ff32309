"""What a submit may ask of the queue besides the model's own arguments: fal's platform headers and query parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlencode

from ideogram_pipeline.fal.errors import InvalidCall


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How the queue treats one request. None always means fal's own default. Raises `InvalidCall` when it can't be."""

    webhook_url: str | None = None
    """Public URL that fal POSTs the outcome to."""
    start_timeout_s: float | None = None
    """Seconds from submit within which the request must start, else it ends in `StartTimeout`. More than 1."""
    max_queue_length: int | None = None
    """Refuse with 429 if more requests than this, of all callers, already wait at the endpoint."""
    priority: Literal["normal", "low"] | None = None
    """`low` waits behind every other caller of the endpoint."""
    runner_hint: str | None = None
    """Requests with the same hint prefer the same runner."""
    no_server_retries: bool = False
    """Turn off fal's own retries (up to 10) of a failed runner."""
    no_fallback: bool = False
    """Forbid rerouting to an equivalent endpoint."""
    store_payloads: bool | None = None
    """Whether fal keeps the request's JSON (needed to find a lost submit again); the account's setting by default."""
    output_lifetime_s: int | None = None
    """Seconds for which fal keeps the output files; at least 1, for fal takes 0 to mean for ever."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Labels for fal's billing reports: at most 10, 1,024 bytes together. fal drops invalid ones without a word."""

    def __post_init__(self) -> None:
        if self.start_timeout_s is not None and not 1 < self.start_timeout_s < float("inf"):
            raise InvalidCall(
                message=f"start_timeout_s is {self.start_timeout_s}, and must be more than 1 second."
            )
        if self.output_lifetime_s is not None and self.output_lifetime_s < 1:
            raise InvalidCall(
                message=f"output_lifetime_s is {self.output_lifetime_s}, and must be at least 1 second."
            )
        if self.runner_hint is not None and not (
            self.runner_hint.isascii() and self.runner_hint.isprintable()
        ):
            raise InvalidCall(message="runner_hint holds characters that can't stand in a header.")
        for name, value in self.tags.items():
            if (
                not re.fullmatch(r"[a-z0-9._-]{1,64}", name)
                or name.startswith("fal.")
                or not re.fullmatch(r"[ -+\--~]{1,256}", value)
            ):
                raise InvalidCall(
                    message=f"The tag {name!r} is not one fal takes.", guidance="See SubmitOptions.tags."
                )
        if len(self.tags) > 10 or len(self._tags()) > 1024:
            raise InvalidCall(message="The tags are more than 10, or longer than 1,024 bytes together.")

    def query(self) -> str:
        """The query string with its question mark, or nothing."""
        given = {"fal_webhook": self.webhook_url, "fal_max_queue_length": self.max_queue_length}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        return f"?{query}" if query else ""

    def headers(self) -> dict[str, str]:
        """The platform headers (fal docs, common parameters page)."""
        headers: dict[str, str | None] = {
            "X-Fal-Queue-Priority": self.priority,
            "X-Fal-Runner-Hint": self.runner_hint,
            "X-Fal-No-Retry": "1" if self.no_server_retries else None,
            "x-app-fal-disable-fallback": "true" if self.no_fallback else None,
            "X-Fal-Store-IO": None if self.store_payloads is None else str(int(self.store_payloads)),
            "X-Fal-Tags": self._tags() or None,
        }
        if self.start_timeout_s is not None:
            # The newest docs know the first name, the official clients still send the second; the first wins.
            headers["X-Fal-Request-Start-Timeout"] = headers["X-Fal-Request-Timeout"] = str(
                self.start_timeout_s
            )
        if self.output_lifetime_s is not None:
            headers["X-Fal-Object-Lifecycle-Preference"] = json.dumps(
                {"expiration_duration_seconds": self.output_lifetime_s}
            )
        return {name: value for name, value in headers.items() if value is not None}

    def _tags(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.tags.items())


NO_OPTIONS = SubmitOptions()
"""fal's defaults throughout."""

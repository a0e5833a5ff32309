"""What of the sandbox can be set: by argument, or by an environment variable that starts with ``SANDBOX_``.

What belongs here: settings and the names of the faults. How a fault is acted out is told where it happens.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, SecretStr, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_PORT = 8188
"""Where a sandbox in the foreground listens when no port is set."""


class FaultKind(StrEnum):
    """What can be made to go wrong.

    Faults of the way there and back (submit_429 to drop_after_accept, truncated_download, corrupt_download)
    strike once for the same input, so that asking again succeeds. model_500 and runner_503 are drawn anew for each
    accepted request. All others strike the same input always.
    """

    SUBMIT_429 = "submit_429"
    """The submit is refused for now."""
    SUBMIT_503 = "submit_503"
    """The ingress answers the submit with an HTML page."""
    SUBMIT_500 = "submit_500"
    """The submit fails and nothing is accepted."""
    DROP_BEFORE_ACCEPT = "drop_before_accept"
    """The connection is closed after the submit was read; nothing is accepted."""
    DROP_AFTER_ACCEPT = "drop_after_accept"
    """The submit is accepted and billed, and the connection is closed instead of answering."""
    LOCKED_BALANCE = "locked_balance"
    """The submit is refused because the account has no money."""
    SLOW = "slow"
    """The request takes three seconds longer."""
    STUCK = "stuck"
    """The request runs until it is cancelled."""
    POLICY_REFUSAL = "policy_refusal"
    """The content checker refuses the prompt."""
    NO_MEDIA = "no_media"
    """The model ends without a picture."""
    MODEL_500 = "model_500"
    """The model fails."""
    RUNNER_503 = "runner_503"
    """The machine that runs the model goes away."""
    EXPIRED_RESULT = "expired_result"
    """The result is gone when it is asked for."""
    TRUNCATED_DOWNLOAD = "truncated_download"
    """Half of the picture arrives, then the connection closes."""
    CORRUPT_DOWNLOAD = "corrupt_download"
    """All bytes of the picture arrive, some of them wrong."""
    MISSING_DOWNLOAD = "missing_download"
    """The picture is not there."""
    WEBHOOK_LOST = "webhook_lost"
    """The webhook is never delivered."""
    WEBHOOK_TWICE = "webhook_twice"
    """The webhook is delivered once more though it was taken, as when the answer to it gets lost."""
    WEBHOOK_LATE = "webhook_late"
    """The webhook is delivered two seconds later, after those of requests that ended after it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule about what goes wrong. Which inputs it strikes follows from the sandbox's seed."""

    kind: FaultKind
    """What happens."""
    rate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of inputs struck, 0 to 1."""
    match: str = ""
    """Only prompts that contain this text are struck."""


_FAULTS = TypeAdapter(tuple[Fault, ...])


class SandboxSettings(BaseSettings):
    """How a sandbox behaves. Every field can be given as ``SANDBOX_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="SANDBOX_", frozen=True, extra="forbid")

    host: str = Field(
        default="127.0.0.1", description="Address to listen on. The controls need no key: keep it local."
    )
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description=f"Port to listen on. 0 is a free one, or {DEFAULT_PORT} in the foreground.",
    )
    key: SecretStr | None = Field(
        default=None, description="The only key accepted. Without it any key that is not empty is."
    )
    state: str | Path = Field(
        default=":memory:",
        description="File that remembers requests and uploads, so that a restarted sandbox carries on.",
    )
    concurrency: int = Field(default=10, ge=1, description="Requests in progress at once; others queue.")
    latency_scale: float = Field(
        default=1.0, ge=0, description="Factor on rendering times: 1 is about 0.3 s to 1 s, 0 is none."
    )
    seed: int = Field(default=0, description="Decides rendering times and which inputs faults strike.")
    faults: Annotated[tuple[Fault, ...], NoDecode] = Field(
        default=(),
        description='What goes wrong: rules, or text like "policy_refusal=0.05,stuck", or the rules as JSON.',
    )
    result_ttl: float = Field(
        default=3600.0, gt=0, description="Seconds a result can be fetched once it is complete."
    )
    mask_repaints: Literal["black", "white"] = Field(
        default="black", description="Colour of the mask's area to repaint. fal does not say which it is."
    )

    drawing: Literal["full", "plain"] = Field(
        default="full",
        description="`plain` draws only the first picture of a reference and size, and repeats it for the others: "
        "for measuring a client without what drawing costs.",
    )

    @field_validator("faults", mode="before")
    @classmethod
    def _read_faults(cls, value: object) -> object:
        return parse_faults(value) if isinstance(value, str) else value


def parse_faults(text: str) -> tuple[Fault, ...]:
    """The rules in a text: ``kind[=rate]`` separated by commas, or a JSON list of rules.

    Raises ValueError when a kind is not known or a rate is not a number from 0 to 1.
    """
    if text.lstrip().startswith("["):
        return _FAULTS.validate_python(json.loads(text))
    rules: list[JsonValue] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, rate = part.partition("=")
        rules.append({"kind": kind.strip(), "rate": rate.strip() or 1.0})
    return _FAULTS.validate_python(rules)

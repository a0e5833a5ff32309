"""Which input a fault strikes, and when it lets go.

What belongs here: the draw. It depends on the sandbox's seed, the kind of fault and the input, and on nothing else, so
a run that met a fault meets it again.
"""

import hashlib
from collections.abc import Callable

from ideogram_pipeline.sandbox.config import FaultKind, SandboxSettings

_ONCE = frozenset(
    {
        FaultKind.SUBMIT_429,
        FaultKind.SUBMIT_503,
        FaultKind.SUBMIT_500,
        FaultKind.DROP_BEFORE_ACCEPT,
        FaultKind.DROP_AFTER_ACCEPT,
        FaultKind.TRUNCATED_DOWNLOAD,
        FaultKind.CORRUPT_DOWNLOAD,
    }
)


def fraction(*parts: object) -> float:
    """A number in [0, 1) that looks random and is always the same for the same parts."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def first_striking(
    settings: SandboxSettings,
    kinds: tuple[FaultKind, ...],
    subject: str,
    prompt: str,
    first_time: Callable[[str], bool],
) -> FaultKind | None:
    """The first of these kinds that strikes.

    ``subject`` names what is struck (an input, an attempt, a file), ``prompt`` is what rules match on, and
    ``first_time`` remembers names: it is True once for each.
    """
    for kind in kinds:
        drawn = fraction(settings.seed, kind, subject)
        struck = any(
            rule.kind is kind and rule.match in prompt and drawn < rule.rate for rule in settings.faults
        )
        if struck and (kind not in _ONCE or first_time(f"{kind}:{subject}")):
            return kind
    return None

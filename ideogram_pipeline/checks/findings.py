"""What a check has found, and how Dagster is told: counts that plot, the first rows concerned, what to do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import dagster as dg

from ideogram_pipeline.assets.metadata import table
from ideogram_pipeline.texts import escaped, without_access

if TYPE_CHECKING:
    from ideogram_pipeline.storage import Store

Seen = TypeVar("Seen")

MAX_ROWS = 20
"""So many of the rows concerned are shown."""
MAX_HASHED = 100
"""Of so many files at most a check reads the bytes; of the others it knows that they are there, and their size."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one check says."""

    name: str
    """The check."""
    findings: Sequence[tuple[str, str]]
    """What is wrong: a row, picture or file, and what about it. Without findings the check has passed."""
    advice: str
    """What to do about the findings. Dagster takes it for Markdown: what others wrote is in it as `markdown` has it."""
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN
    """How bad they are; a blocking check with an error ends the run."""
    counts: Mapping[str, int | float] = field(default_factory=dict)
    """Numbers that say what was looked at."""

    def __str__(self) -> str:
        """Return what the check says, as an outcome's reason tells it."""
        return f"the check {self.name} ended the run before it paid: {escaped(without_access(self.advice))}"

    def of(self, asset: dg.AssetKey) -> dg.AssetCheckResult:
        """Return the verdict on an asset as Dagster takes it."""
        first = [{"row": row, "finding": finding} for row, finding in self.findings[:MAX_ROWS]]
        return dg.AssetCheckResult(
            asset_key=asset,
            check_name=self.name,
            passed=not self.findings,
            severity=self.severity,
            description=escaped(without_access(self.advice)) if self.findings else None,
            metadata={
                "findings": len(self.findings),
                **self.counts,
                **table("rows", {"row": "string", "finding": "string"}, first),
            },
        )


def sampled(paths: Sequence[str]) -> list[str]:
    """Return at most `MAX_HASHED` of the paths, evenly spread; the same ones every time."""
    step = -(-len(paths) // MAX_HASHED) or 1
    return list(paths[::step])


def digests(store: Store, paths: Sequence[str]) -> dict[str, str | None]:
    """Return the hex SHA-256 of each file's bytes; None where there is no such file."""
    return looked_at(store, paths, lambda content: hashlib.sha256(content).hexdigest())


def looked_at(store: Store, paths: Sequence[str], look: Callable[[bytes], Seen]) -> dict[str, Seen | None]:
    """Return what a look at each file's bytes shows; None where there is no such file."""

    def seen(path: str) -> Seen | None:
        try:
            return look(store.get(path))
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(max_workers=4) as threads:
        return dict(zip(paths, threads.map(seen, paths), strict=True))

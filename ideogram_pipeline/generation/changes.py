"""Which batches ask for something else than they did: found from the tables alone, before any ledger is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ideogram_pipeline.generation.planner import References
from ideogram_pipeline.generation.readings import BatchInTable


def batch_digests(batches: Mapping[str, BatchInTable], references: References) -> dict[str, str]:
    """Return a hex digest of each batch: of its rows and of the bytes of the references they name.

    Where in the table a row stands doesn't count.
    """
    known = {reference_id: usable.sha256 for reference_id, usable in references.usable.items()}
    known |= {
        reference_id: f"rejected: {found.reason}" for reference_id, found in references.rejected.items()
    }
    digests = {}
    for batch, short in batches.items():
        lines = [short.digest, *(f"{name} {known.get(name, 'absent')}" for name in short.named)]
        digests[batch] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return digests


@dataclass(frozen=True, slots=True)
class Step:
    """What one look at the batches found."""

    to_run: tuple[str, ...]
    """Batches with something to do."""
    seen: Mapping[str, str]
    """The digests of all batches that were ever looked at; a batch that left the table stays."""
    left: Mapping[str, str]
    """The digests of the changed batches that were not looked at."""


def look(
    digests: Mapping[str, str],
    seen: Mapping[str, str],
    *,
    has_work: Callable[[str], bool],
    at_most: int,
    goes_on: Callable[[], bool],
) -> Step:
    """Look at the batches whose digest is not the one that was seen, until `at_most` have work or `goes_on` says no.

    One batch is looked at in any case, so that many looks come to an end.
    """
    changed = [batch for batch, digest in digests.items() if seen.get(batch) != digest]
    looked_at: list[str] = []
    to_run: list[str] = []
    for batch in changed:
        looked_at.append(batch)
        if has_work(batch):
            to_run.append(batch)
        if len(to_run) == at_most or not goes_on():
            break
    return Step(
        to_run=tuple(to_run),
        seen={**seen, **{batch: digests[batch] for batch in looked_at}},
        left={batch: digests[batch] for batch in changed[len(looked_at) :]},
    )

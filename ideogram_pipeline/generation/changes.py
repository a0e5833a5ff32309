"""Which batches ask for something else than they did: found from the tables alone, before any ledger is read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ideogram_pipeline.generation.planner import References
from ideogram_pipeline.tables.rows import PromptRow, Rejection


def batch_digests(
    rows: Iterable[PromptRow], rejections: Iterable[Rejection], references: References
) -> dict[str, str]:
    """Return a hex digest of each batch: of its rows and of the bytes of the references they name.

    Where in the table a row stands doesn't count.
    """
    lines: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        named = (
            *row.reference_ids,
            *row.reference_mask_ids,
            *row.style_reference_ids,
            *filter(None, (row.image_id, row.mask_id)),
        )
        pictures = " ".join(_bytes_of(reference_id, references) for reference_id in named)
        lines[row.batch].append(f"{row.model_dump_json(exclude={'row_number'})} {pictures}")
    for rejection in rejections:
        lines[rejection.batch].append(f"rejected {rejection.row_id} {rejection.column} {rejection.reason}")
    return {
        batch: hashlib.sha256("\n".join(sorted(content)).encode()).hexdigest()
        for batch, content in lines.items()
    }


def _bytes_of(reference_id: str, references: References) -> str:
    if usable := references.usable.get(reference_id):
        return usable.sha256
    rejected = references.rejected.get(reference_id)
    return f"rejected: {rejected.reason}" if rejected else "absent"


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

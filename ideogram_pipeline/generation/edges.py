"""How pictures came to be, as edges that a query can join: derived from the ledger, at any time anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ideogram_pipeline.generation.ledger import Attempt, Entry
from ideogram_pipeline.generation.rows import EdgeRow


def edge_rows(entries: Mapping[str, Entry]) -> Iterator[EdgeRow]:
    """Yield every edge that the ledger of one batch knows, by fingerprint."""
    for fingerprint in sorted(entries):
        yield from edges_of(entries[fingerprint])


def edges_of(entry: Entry) -> Iterator[EdgeRow]:
    """Yield the edges of one request and its attempts; none where all of its ledger files are damaged."""
    if not entry.attempts:
        return
    first = entry.attempts[0].reserved
    request = first.request

    def edge(kind: str, start: tuple[str, str], end: tuple[str, str], **facts: object) -> EdgeRow:
        ends = {"from_kind": start[0], "from_id": start[1], "to_kind": end[0], "to_id": end[1]}
        return EdgeRow.model_validate({"batch": request.batch, "kind": kind, **ends, **facts})

    asked = ("request", request.fingerprint)
    yield edge("asks", ("prompt", request.prompt_id), asked, at=first.reserved_at)
    if request.replaces:
        yield edge("later_take", ("request", request.replaces), asked, at=first.reserved_at)
    for use in request.pictures:
        yield edge(
            "uses",
            ("reference", use.sha256),
            asked,
            at=first.reserved_at,
            reference_id=use.reference_id,
            field=use.field,
            sent_sha256=use.sent_sha256,
        )
    for attempt in entry.attempts:
        submit, at = ("submit", submit_id(attempt)), attempt.reserved.reserved_at
        yield edge("sent_as", asked, submit, at=at)
        yield edge("sent_by", ("run", attempt.reserved.owner), submit, at=at)
        for image in attempt.settled.images if attempt.settled else ():
            yield edge(
                "made",
                submit,
                ("image", image.path),
                at=attempt.settled.completed_at if attempt.settled else None,
                sha256=image.sha256,
                sha256_received=image.sha256_received or image.sha256,
            )


def submit_id(attempt: Attempt) -> str:
    """Return how a submit is called: as fal calls it, or by fingerprint and attempt where fal's answer never came."""
    if attempt.submitted:
        return attempt.submitted.request_id
    return f"{attempt.reserved.request.fingerprint}#{attempt.reserved.attempt}"

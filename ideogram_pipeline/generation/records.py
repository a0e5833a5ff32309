"""The rows people query: one per picture (`metadata.parquet`) and one per prompt row (`outcomes.parquet`).

Both are derived from the plan and the ledger, and can be made again from them at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import JsonValue

from ideogram_pipeline.generation.ledger import Attempt, Entry, StoredImage
from ideogram_pipeline.generation.outcomes import (
    Generated,
    NotReached,
    Outcome,
    Reused,
    is_missing,
    reason_of,
    state_of,
)
from ideogram_pipeline.generation.planner import Plan
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.rows import ImageRow, OutcomeRow, PlannedRow
from ideogram_pipeline.likeness import distance, nearest


def image_rows(plan: Plan, entries: Mapping[str, Entry]) -> Iterator[ImageRow]:
    """Yield a row for every picture the ledger knows of a batch: those of the plan's rows first, in their order."""
    current: set[str] = set()
    alike = _alike(entries)
    for row in plan.rows:
        request = row.request
        if request and (fingerprint := _current(request, entries)) in entries:
            current.add(fingerprint)
            yield from _images(entries[fingerprint], alike, request.extra)
    for fingerprint in sorted(entries.keys() - current):
        yield from _images(entries[fingerprint], alike, None)


class _Alike(NamedTuple):
    """The picture that looks most like another one."""

    file_name: str
    distance: int


def _alike(entries: Mapping[str, Entry]) -> dict[str, _Alike]:
    """Return the picture that looks most like each one, by the path of that."""
    hashes = {
        image.path: image.perceptual_hash
        for entry in entries.values()
        for attempt in entry.attempts
        for image in (attempt.settled.images if attempt.settled else ())
        if image.perceptual_hash
    }
    paths = list(hashes)
    found = zip(paths, nearest(list(hashes.values())), strict=False)
    return {path: _Alike(_name(paths[other.at]), other.distance) for path, other in found}


def _current(request: GenerationRequest, entries: Mapping[str, Entry]) -> str:
    """Return the fingerprint of a row's current take: the one before, if a new take was asked for and not reached."""
    if request.replaces and request.fingerprint not in entries:
        return request.replaces
    return request.fingerprint


def _images(entry: Entry, alike: Mapping[str, _Alike], extra: str | None) -> Iterator[ImageRow]:
    for attempt in entry.attempts:
        for image in attempt.settled.images if attempt.settled else ():
            yield _image(entry, attempt, image, alike.get(image.path), extra)


def _image(
    entry: Entry, attempt: Attempt, image: StoredImage, alike: _Alike | None, extra: str | None
) -> ImageRow:
    request, submitted, settled = attempt.reserved.request, attempt.submitted, attempt.settled
    assert settled is not None
    sent = request.arguments
    worked = timedelta(seconds=settled.inference_s) if settled.inference_s is not None else None
    image_id, image_sha256 = _first(request, "image_url")
    mask_id, mask_sha256 = _first(request, "mask_url")
    return ImageRow(
        file_name=_name(image.path),
        prompt_id=request.prompt_id,
        batch=request.batch,
        image_index=image.index,
        take=request.take,
        current=extra is not None,
        endpoint=request.endpoint,
        prompt=_text(sent.get("prompt")),
        negative_prompt=_text(sent.get("negative_prompt")),
        reference_ids=_ids(request, "reference_image_urls"),
        reference_sha256s=_digests(request, "reference_image_urls"),
        reference_mask_ids=_ids(request, "reference_mask_urls"),
        reference_mask_sha256s=_digests(request, "reference_mask_urls"),
        style_reference_ids=_ids(request, "image_urls"),
        style_reference_sha256s=_digests(request, "image_urls"),
        image_id=image_id,
        image_sha256=image_sha256,
        mask_id=mask_id,
        mask_sha256=mask_sha256,
        sent_sha256s=_copies(request),
        rendering_speed=_text(sent.get("rendering_speed")),
        style=_text(sent.get("style")),
        style_preset=_text(sent.get("style_preset")),
        style_codes=_texts(sent.get("style_codes")),
        color_palette=json.dumps(sent["color_palette"]) if "color_palette" in sent else None,
        image_size=_size(sent.get("image_size")),
        num_images=request.num_images,
        strength=_number(sent.get("strength")),
        expand_prompt=_flag(sent.get("expand_prompt")),
        sync_mode=_flag(sent.get("sync_mode")),
        seed=request.seed,
        seed_returned=settled.seed,
        request_json=json.dumps(sent, ensure_ascii=False, sort_keys=True),
        fingerprint=request.fingerprint,
        request_id=submitted.request_id if submitted else None,
        width=image.width,
        height=image.height,
        format=image.format,
        bytes=image.bytes,
        sha256=image.sha256,
        sha256_received=image.sha256_received or image.sha256,
        manifest_id=image.manifest_id,
        stamped_at=image.stamped_at,
        unstamped_because=image.unstamped_because or None,
        unmarked_because=image.unmarked_because or None,
        perceptual_hash=image.perceptual_hash,
        nearest_image=alike.file_name if alike else None,
        nearest_distance=alike.distance if alike else None,
        reference_distance=_from_references(image, request),
        face_distance=image.face_distance,
        submitted_at=submitted.submitted_at if submitted else None,
        started_at=settled.completed_at - worked if worked is not None else None,
        completed_at=settled.completed_at,
        inference_s=settled.inference_s,
        cost_usd=_per_image(attempt),
        cost_source=attempt.cost.source,
        attempts=entry.paid_attempts,
        backend=attempt.reserved.backend,
        dagster_run_id=attempt.reserved.owner,
        code_version=attempt.reserved.code_version,
        extra=request.extra if extra is None else extra,
    )


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _from_references(image: StoredImage, request: GenerationRequest) -> int | None:
    known = [
        use.perceptual_hash
        for use in request.pictures
        if use.field in ("reference_image_urls", "image_urls") and use.perceptual_hash
    ]
    if image.perceptual_hash is None or not known:
        return None
    return min(distance(image.perceptual_hash, one) for one in known)


def outcome_rows(
    plan: Plan, outcomes: Iterable[Outcome], entries: Mapping[str, Entry]
) -> Iterator[OutcomeRow]:
    """Yield one row for every row of the plan; `outcomes` are those of its `requests`, in their order."""
    ended = iter(outcomes)
    for row in plan.rows:
        request = row.request
        if request is None:
            yield _rejected(row, plan.batch)
        elif row.decision == "left out":
            entry = entries.get(request.fingerprint)
            yield _outcome(row, NotReached(request, entry, row.reason, "left_out"))
        else:
            yield _outcome(row, next(ended))


def _rejected(row: PlannedRow, batch: str) -> OutcomeRow:
    return OutcomeRow(
        prompt_id=row.prompt_id,
        batch=batch,
        state="rejected",
        reason=f"{row.column}: {row.reason}" if row.column else row.reason,
        fingerprint=None,
        request_id=None,
        cost_usd=0.0,
        cost_source="price_list",
        attempts=0,
        images=0,
        endpoint=row.endpoint,
        row_number=row.row_number,
        column=row.column,
        advice=(),
    )


def _outcome(row: PlannedRow, outcome: Outcome) -> OutcomeRow:
    entry = outcome.entry or Entry()
    last = entry.attempts[-1] if entry.attempts else None
    return OutcomeRow(
        prompt_id=row.prompt_id,
        batch=outcome.request.batch,
        state=state_of(outcome),
        reason=reason_of(outcome),
        due=isinstance(outcome, Generated | Reused) or is_missing(outcome),
        fingerprint=row.fingerprint,
        request_id=last.submitted.request_id if last and last.submitted else None,
        cost_usd=_float(entry.cost.usd),
        cost_source=entry.cost.source,
        attempts=entry.paid_attempts,
        images=len(last.settled.images) if last and last.settled else 0,
        endpoint=row.endpoint,
        row_number=row.row_number,
        column="",
        advice=outcome.request.advice,
    )


def _per_image(attempt: Attempt) -> float | None:
    usd, images = attempt.cost.usd, attempt.settled.images if attempt.settled else ()
    return None if usd is None else float(usd / len(images))


def _float(usd: Decimal | None) -> float | None:
    return None if usd is None else float(usd)


def _ids(request: GenerationRequest, field: str) -> tuple[str, ...]:
    return tuple(use.reference_id for use in request.pictures if use.field == field)


def _digests(request: GenerationRequest, field: str) -> tuple[str, ...]:
    return tuple(use.sha256 for use in request.pictures if use.field == field)


def _copies(request: GenerationRequest) -> str:
    sent = {use.sha256: use.sent_sha256 for use in request.pictures if use.sent_sha256}
    return json.dumps(sent, sort_keys=True)


def _first(request: GenerationRequest, field: str) -> tuple[str | None, str | None]:
    use = next((use for use in request.pictures if use.field == field), None)
    return (use.reference_id, use.sha256) if use else (None, None)


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None


def _texts(value: JsonValue) -> tuple[str, ...]:
    return tuple(str(member) for member in value) if isinstance(value, list) else ()


def _number(value: JsonValue) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _flag(value: JsonValue) -> bool | None:
    return value if isinstance(value, bool) else None


def _size(value: JsonValue) -> str | None:
    return f"{value['width']}x{value['height']}" if isinstance(value, dict) else _text(value)

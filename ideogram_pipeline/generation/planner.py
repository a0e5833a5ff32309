"""From rows to requests: joined with their references, checked, fingerprinted and priced; and what a batch would cost.

Planning is pure: the same rows, references and ledger give the same plan, and nothing is sent or written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ideogram_pipeline.generation.ledger import Entry
from ideogram_pipeline.generation.requests import GenerationRequest, PictureUse, derived_seed, fingerprint
from ideogram_pipeline.ideogram.endpoints import ENDPOINTS, Endpoint, IdeogramInput, wire
from ideogram_pipeline.ideogram.prices import price
from ideogram_pipeline.ideogram.rules import PictureFacts, Pictures, Violation, check
from ideogram_pipeline.tables.references import picture_path
from ideogram_pipeline.tables.rows import PromptRow, Reference, Rejection, RowProblem, first_problem

PICTURE_COLUMNS: Mapping[str, str] = {
    "reference_image_urls": "reference_id",
    "reference_mask_urls": "reference_mask_id",
    "image_urls": "style_reference_ids",
    "image_url": "image_id",
    "mask_url": "mask_id",
}
"""The prompts table's column for each of an endpoint's picture fields; every other field is named as its column."""

_UPPER_CASE = ("rendering_speed", "style", "style_preset")
_SIZE = re.compile(r"([0-9]{1,5})\s*[xX*]\s*([0-9]{1,5})")
_COLOR = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})(?::\s*([0-9.]+))?")

Decision = Literal["new", "reused", "re-attached", "settled", "unknown", "rejected"]
"""What a run will do with a row, in this order: pay for it, take it from the store, fetch what is already paid for,
leave a refusal or failure as it is, leave it until its lost answer is found, or nothing because it can't be sent."""


class PlannedRow(BaseModel):
    """What a run will do with one row of the prompts table, and why."""

    model_config = ConfigDict(frozen=True)

    prompt_id: str = Field(description="The row of the prompts table.")
    row_number: int = Field(description="Where the row stands in the table.")
    decision: str = Field(description="new, reused, re-attached, settled, unknown or rejected.")
    reason: str = Field(description="Why, in one line.")
    column: str = Field(default="", description="The column at fault, for a rejected row.")
    endpoint: str | None = Field(default=None, description="Short name of the endpoint.")
    fingerprint: str | None = Field(default=None, description="The request's identity.")
    images: int = Field(default=0, description="Pictures asked for.")
    price_usd: float | None = Field(default=None, description="List price of the request in US dollars.")
    request_json: str | None = Field(default=None, description="The whole request; empty for a rejected row.")

    @property
    def request(self) -> GenerationRequest | None:
        """The request to send, or None for a rejected row."""
        return GenerationRequest.model_validate_json(self.request_json) if self.request_json else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run of one batch will do, row by row in table order."""

    batch: str
    """The partition."""
    rows: tuple[PlannedRow, ...]
    """Every row of the batch."""

    def count(self, decision: Decision) -> int:
        """Return how many rows have a decision."""
        return sum(row.decision == decision for row in self.rows)

    @property
    def cost_usd(self) -> float:
        """List price of all new rows whose price is known, in US dollars."""
        return float(
            sum((Decimal(str(row.price_usd)) for row in self._new if row.price_usd is not None), Decimal(0))
        )

    @property
    def unpriced(self) -> int:
        """New rows whose price isn't known."""
        return sum(row.price_usd is None for row in self._new)

    @property
    def _new(self) -> list[PlannedRow]:
        return [row for row in self.rows if row.decision == "new"]


class References(NamedTuple):
    """The references table, by id."""

    usable: Mapping[str, Reference]
    """Those whose picture was opened."""
    rejected: Mapping[str, Rejection]
    """The others."""

    @classmethod
    def of(cls, usable: Iterable[Reference], rejected: Iterable[Rejection]) -> References:
        """Index both kinds by id."""
        return cls(
            {entry.reference_id: entry for entry in usable}, {entry.row_id: entry for entry in rejected}
        )


def plan_batch(
    batch: str,
    rows: Iterable[PromptRow],
    rejections: Iterable[Rejection],
    references: References,
    entries: Mapping[str, Entry],
) -> Plan:
    """Return what a run of a batch will do, given what the ledger knows of its fingerprints."""
    planned = [_planned(row, references, entries) for row in rows]
    planned += [
        PlannedRow(
            prompt_id=rejection.row_id,
            row_number=rejection.row_number,
            decision="rejected",
            reason=rejection.reason,
            column=rejection.column,
        )
        for rejection in rejections
    ]
    return Plan(batch, tuple(sorted(planned, key=lambda row: row.row_number)))


def _planned(row: PromptRow, references: References, entries: Mapping[str, Entry]) -> PlannedRow:
    try:
        request = plan_row(row, references)
    except RowProblem as problem:
        return PlannedRow(
            prompt_id=row.prompt_id,
            row_number=row.row_number,
            decision="rejected",
            reason=problem.reason,
            column=problem.column,
            endpoint=row.endpoint,
        )
    decision, reason = _decide(entries.get(request.fingerprint))
    return PlannedRow(
        prompt_id=row.prompt_id,
        row_number=row.row_number,
        decision=decision,
        reason=reason,
        endpoint=request.endpoint,
        fingerprint=request.fingerprint,
        images=request.num_images,
        price_usd=None if request.price_usd is None else float(request.price_usd),
        request_json=request.model_dump_json(),
    )


def _decide(entry: Entry | None) -> tuple[Decision, str]:
    match entry.state if entry else "new":
        case "new":
            return "new", "no request with this fingerprint was ever sent"
        case "retryable":
            return "new", "the last attempt ended without a result and was not billed"
        case "generated":
            return "reused", "its pictures are in the store"
        case "submitted":
            return "re-attached", "it was submitted before and its result is fetched, not paid again"
        case "reserved":
            return "unknown", "it was being submitted when a run ended; the answer is not known"
        case state:
            return "settled", f"it ended {state} and is not asked again"


def plan_row(row: PromptRow, references: References) -> GenerationRequest:
    """Turn a row of the prompts table into the request it asks for.

    Raises:
        RowProblem: the row can't be sent; names the column at fault and the way to mend it.
    """
    endpoint = _endpoint(row)
    uses = _uses(row, endpoint, references)
    model = _input(row, endpoint, uses)
    advice = _checked(model, uses, references, row)
    arguments = wire(model)
    return GenerationRequest(
        prompt_id=row.prompt_id,
        batch=row.batch,
        row_number=row.row_number,
        endpoint=endpoint.name,
        arguments=arguments,
        pictures=uses,
        fingerprint=fingerprint(row.prompt_id, endpoint.id, arguments),
        price_usd=price(endpoint.name, model.rendering_speed, model.num_images),
        advice=advice,
        extra=row.extra,
    )


def _endpoint(row: PromptRow) -> Endpoint:
    name = row.endpoint or ("character" if row.reference_ids else "v3")
    endpoint = ENDPOINTS.get(name.removeprefix("fal-ai/ideogram/").lower())
    if endpoint is None:
        raise RowProblem("endpoint", f"there is no endpoint {name!r}; choose one of {', '.join(ENDPOINTS)}")
    return endpoint


def _uses(row: PromptRow, endpoint: Endpoint, references: References) -> tuple[PictureUse, ...]:
    asked: dict[str, tuple[str, ...]] = {
        "reference_image_urls": row.reference_ids,
        "reference_mask_urls": row.reference_mask_ids,
        "image_urls": row.style_reference_ids,
        "image_url": (row.image_id,) if row.image_id else (),
        "mask_url": (row.mask_id,) if row.mask_id else (),
    }
    uses: list[PictureUse] = []
    for field, ids in asked.items():
        for reference_id in ids:
            reference = _reference(PICTURE_COLUMNS[field], reference_id, references)
            uses.append(
                PictureUse(
                    field=field,
                    reference_id=reference_id,
                    uri=reference.uri,
                    sha256=reference.sha256,
                    path=picture_path(reference),
                )
            )
        needed = (
            field in endpoint.input_model.model_fields
            and endpoint.input_model.model_fields[field].is_required()
        )
        if needed and not ids:
            raise RowProblem(PICTURE_COLUMNS[field], f"it is empty; the endpoint {endpoint.name} needs it")
    return tuple(uses)


def _reference(column: str, reference_id: str, references: References) -> Reference:
    if reference_id in references.usable:
        return references.usable[reference_id]
    if reference_id in references.rejected:
        raise RowProblem(
            column, f"the reference {reference_id!r} can't be used: {references.rejected[reference_id]}"
        )
    raise RowProblem(column, f"there is no reference {reference_id!r} in the references table")


def _input(row: PromptRow, endpoint: Endpoint, uses: Sequence[PictureUse]) -> IdeogramInput:
    values = _given(row)
    for use in uses:
        if use.field in ("image_url", "mask_url"):
            values[use.field] = use.token
        else:
            values.setdefault(use.field, []).append(use.token)
    known = endpoint.input_model.model_fields
    if "prompt" not in known:
        values.pop("prompt", None)
    for field in values:
        if field not in known:
            column = PICTURE_COLUMNS.get(field, field)
            raise RowProblem(column, f"the endpoint {endpoint.name} has no {field}; leave the cell empty")
    for field, default in {"expand_prompt": False, "seed": derived_seed(row.prompt_id)}.items():
        if field in known:
            values.setdefault(field, default)
    try:
        return endpoint.input_model.model_validate(values)
    except ValidationError as error:
        field, reason = first_problem(error)
        raise RowProblem(PICTURE_COLUMNS.get(field, field), reason) from None


def _given(row: PromptRow) -> dict[str, Any]:
    """Return the cells that are not empty, under the endpoints' field names and in the endpoints' types."""
    values: dict[str, Any] = {
        "prompt": row.prompt,
        "negative_prompt": row.negative_prompt,
        "rendering_speed": row.rendering_speed,
        "style": row.style,
        "style_preset": row.style_preset,
        "style_codes": list(row.style_codes) or None,
        "color_palette": _palette(row.color_palette) if row.color_palette else None,
        "image_size": _image_size(row.image_size) if row.image_size else None,
        "num_images": row.num_images,
        "strength": row.strength,
        "expand_prompt": row.expand_prompt,
        "sync_mode": row.sync_mode,
        "seed": row.seed,
    }
    given = {field: value for field, value in values.items() if value is not None}
    return {field: value.upper() if field in _UPPER_CASE else value for field, value in given.items()}


def _image_size(text: str) -> Any:
    match = _SIZE.fullmatch(text)
    return {"width": int(match[1]), "height": int(match[2])} if match else text.lower()


def _palette(text: str) -> dict[str, Any]:
    if "#" not in text and "|" not in text and ":" not in text:
        return {"name": text.upper()}
    members = []
    for part in text.split("|"):
        match = _COLOR.fullmatch(part.strip())
        if not match:
            raise RowProblem(
                "color_palette", f"{part.strip()!r} is no colour; write `#RRGGBB:0.5|#RRGGBB:0.3`"
            )
        red, green, blue, weight = match.groups()
        member: dict[str, Any] = {"rgb": {"r": int(red, 16), "g": int(green, 16), "b": int(blue, 16)}}
        members.append(member | ({"color_weight": weight} if weight else {}))
    return {"members": members}


def _checked(
    model: IdeogramInput, uses: Sequence[PictureUse], references: References, row: PromptRow
) -> tuple[str, ...]:
    """Return the advice of the endpoint's rules; raise the first violation."""

    def facts(field: str) -> tuple[PictureFacts, ...]:
        found = [references.usable[use.reference_id] for use in uses if use.field == field]
        return tuple(PictureFacts(entry.kind, entry.bytes, entry.width, entry.height) for entry in found)

    pictures = Pictures(
        references=facts("reference_image_urls"),
        reference_masks=facts("reference_mask_urls"),
        style_references=facts("image_urls"),
        image=next(iter(facts("image_url")), None),
        mask=next(iter(facts("mask_url")), None),
    )
    findings = check(model, pictures)
    for finding in findings:
        if isinstance(finding, Violation):
            column = PICTURE_COLUMNS.get(finding.field, finding.field)
            raise RowProblem(column, f"{finding.message} {finding.fix} (rule {finding.rule})")
    advice = [str(finding) for finding in findings]
    if row.prompt and "prompt" not in type(model).model_fields:
        advice.append("prompt: the endpoint has no prompt; it is not sent")
    return tuple(advice)

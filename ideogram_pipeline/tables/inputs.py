"""From a row's cells to an endpoint's input, as far as the row alone tells, without its references' pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ideogram_pipeline.ideogram.endpoints import ENDPOINTS, Endpoint, IdeogramInput
from ideogram_pipeline.ideogram.rules import Finding, Violation, check
from ideogram_pipeline.ideogram.sizes import ASPECT_RATIOS, PRESET_SIZES
from ideogram_pipeline.tables.rows import Problem, PromptRow, RowProblem, problems_of

PICTURE_COLUMNS: Mapping[str, str] = {
    "reference_image_urls": "reference_id",
    "reference_mask_urls": "reference_mask_id",
    "image_urls": "style_reference_ids",
    "image_url": "image_id",
    "mask_url": "mask_id",
}
"""The prompts table's column for each of an endpoint's picture fields; every other field is named as its column."""

_ONE_PICTURE = ("image_url", "mask_url")
_UPPER_CASE = ("rendering_speed", "style", "style_preset")
_SIZE = re.compile(r"([0-9]{1,5})\s*[xX*]\s*([0-9]{1,5})")
_RATIO = re.compile(r"0?([0-9]{1,2})\s*:\s*0?([0-9]{1,2})(:00)?")
"""An aspect ratio, also as a spreadsheet shows it that takes it for a time of day: 16:09 or 16:09:00."""
_COLOR = re.compile(r"#?([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})(?::\s*([0-9.]+))?")


def named_pictures(row: PromptRow) -> dict[str, tuple[str, ...]]:
    """Return the ids of the references that a row names, by the endpoints' picture fields."""
    return {
        "reference_image_urls": row.reference_ids,
        "reference_mask_urls": row.reference_mask_ids,
        "image_urls": row.style_reference_ids,
        "image_url": (row.image_id,) if row.image_id else (),
        "mask_url": (row.mask_id,) if row.mask_id else (),
    }


def endpoint_of(row: PromptRow) -> Endpoint:
    """Return the endpoint that a row asks.

    Raises:
        RowProblem: there is no such endpoint.
    """
    name = row.endpoint or ("character" if row.reference_ids else "v3")
    endpoint = ENDPOINTS.get(name.removeprefix("fal-ai/ideogram/").lower())
    if endpoint is None:
        raise RowProblem(
            Problem("endpoint", f"there is no endpoint {name!r}; choose one of {', '.join(ENDPOINTS)}")
        )
    return endpoint


def input_of(
    row: PromptRow, endpoint: Endpoint, tokens: Mapping[str, Sequence[str]], seed: int
) -> tuple[IdeogramInput | None, list[Problem]]:
    """Return a row's input for an endpoint, and the cells that can't be part of it, which it is without.

    In the place of pictures it has `tokens`, by field; and `seed` where the row has none. There is no input where the
    endpoint takes none without these cells.
    """
    values, problems = _given(row)
    known = endpoint.input_model.model_fields
    if "prompt" not in known:
        values.pop("prompt", None)
    for field, named in tokens.items():
        if named:
            values[field] = named[0] if field in _ONE_PICTURE else list(named)
        elif field in known and known[field].is_required():
            problems.append(
                Problem(PICTURE_COLUMNS[field], f"it is empty; the endpoint {endpoint.name} needs it")
            )
            values[field] = "" if field in _ONE_PICTURE else []
    for field in [field for field in values if field not in known]:
        column = PICTURE_COLUMNS.get(field, field)
        problems.append(
            Problem(column, f"the endpoint {endpoint.name} has no {column}; leave the cell empty")
        )
        del values[field]
    for field, default in {"expand_prompt": False, "seed": seed}.items():
        if field in known:
            values.setdefault(field, default)
    try:
        return endpoint.input_model.model_validate(values), problems
    except ValidationError as error:
        found = problems_of(error)
    at_fault = {problem.column for problem in problems}
    in_the_table = [_in_the_table(problem, endpoint) for problem in found]
    problems += [problem for problem in in_the_table if problem.column not in at_fault]
    bad = {problem.column for problem in found}
    try:
        rest = {field: value for field, value in values.items() if field not in bad}
        return endpoint.input_model.model_validate(rest), problems
    except ValidationError:  # it needs one of these cells
        return None, problems


def violations(findings: Sequence[Finding], but: Sequence[Problem] = ()) -> list[Problem]:
    """Return what an endpoint's rules forbid, by the table's columns; `but` not of those that are at fault already."""
    at_fault = {problem.column for problem in but}
    found = [
        Problem(
            PICTURE_COLUMNS.get(finding.field, finding.field),
            f"{finding.message} {finding.fix} (rule {finding.rule})",
        )
        for finding in findings
        if isinstance(finding, Violation)
    ]
    return [problem for problem in found if problem.column not in at_fault]


def problems_of_cells(row: PromptRow) -> list[Problem]:
    """Return what is wrong with a row's cells, whatever its references are."""
    try:
        endpoint = endpoint_of(row)
    except RowProblem as problem:
        return list(problem.problems)
    model, problems = input_of(row, endpoint, named_pictures(row), 0)
    return problems + (violations(check(model), problems) if model else [])


def _in_the_table(problem: Problem, endpoint: Endpoint) -> Problem:
    column = PICTURE_COLUMNS.get(problem.column, problem.column)
    if problem.reason.startswith("it is empty"):
        return Problem(column, f"it is empty; the endpoint {endpoint.name} needs it")
    return Problem(column, problem.reason)


def _given(row: PromptRow) -> tuple[dict[str, Any], list[Problem]]:
    """Return the cells that are not empty, as the endpoints' fields and types, and those that can't be that."""
    problems: list[Problem] = []

    def read(text: str | None, how: Callable[[str], Any]) -> Any:
        try:
            return how(text) if text else None
        except RowProblem as problem:
            problems.extend(problem.problems)
            return None

    values: dict[str, Any] = {
        "prompt": row.prompt,
        "negative_prompt": row.negative_prompt,
        "rendering_speed": row.rendering_speed,
        "style": row.style,
        "style_preset": row.style_preset,
        "style_codes": list(row.style_codes) or None,
        "color_palette": read(row.color_palette, _palette),
        "image_size": read(row.image_size, _image_size),
        "num_images": row.num_images,
        "strength": row.strength,
        "expand_prompt": row.expand_prompt,
        "sync_mode": row.sync_mode,
        "seed": row.seed,
    }
    given = {field: value for field, value in values.items() if value is not None}
    return {
        field: value.upper() if field in _UPPER_CASE else value for field, value in given.items()
    }, problems


def _image_size(text: str) -> Any:
    if match := _SIZE.fullmatch(text):
        return {"width": int(match[1]), "height": int(match[2])}
    ratio = _RATIO.fullmatch(text)
    size = ASPECT_RATIOS.get((int(ratio[1]), int(ratio[2]))) if ratio else None
    if size is not None:
        return size if isinstance(size, str) else {"width": size.width, "height": size.height}
    if ratio:
        ratios = ", ".join(f"{width}:{height}" for width, height in ASPECT_RATIOS)
        raise RowProblem(
            Problem(
                "image_size", f"there is no aspect ratio {text}; write {ratios}, or a size such as 1280x720"
            )
        )
    if text.lower() not in PRESET_SIZES:
        presets = ", ".join(PRESET_SIZES)
        raise RowProblem(
            Problem(
                "image_size",
                f"{text!r} is no size; write {presets}, an aspect ratio such as 16:9, or a size such as 1280x720",
            )
        )
    return text.lower()


def _palette(text: str) -> dict[str, Any]:
    if "#" not in text and "|" not in text and ":" not in text:
        return {"name": text.upper()}
    members = []
    for part in text.split("|"):
        match = _COLOR.fullmatch(part.strip())
        if not match:
            raise RowProblem(
                Problem("color_palette", f"{part.strip()!r} is no colour; write `#RRGGBB:0.5|#RRGGBB:0.3`")
            )
        red, green, blue, weight = match.groups()
        member: dict[str, Any] = {"rgb": {"r": int(red, 16), "g": int(green, 16), "b": int(blue, 16)}}
        members.append(member | ({"color_weight": weight} if weight else {}))
    return {"members": members}

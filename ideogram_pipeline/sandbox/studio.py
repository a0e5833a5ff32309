"""What the model behind the queue does: judges an input, and paints what it asks for.

What belongs here: from a submission to how it ends, and to the bytes of its pictures. The first validates as fal's own
apps do and fetches every picture referred to; the second happens when somebody downloads, so that nothing large is
kept.
"""

import hashlib
import json
from asyncio import Semaphore, to_thread
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import JsonValue, TypeAdapter, ValidationError

from ideogram_pipeline.ideogram.endpoints import (
    ENDPOINTS_BY_ID,
    Characterful,
    IdeogramInput,
    Masked,
    Sourced,
)
from ideogram_pipeline.ideogram.prices import price
from ideogram_pipeline.sandbox.config import FaultKind
from ideogram_pipeline.sandbox.draw import draw, repeat
from ideogram_pipeline.sandbox.pictures import Picture, PictureProblem, PictureShelf
from ideogram_pipeline.sandbox.scene import Pictures, compose
from ideogram_pipeline.sandbox.state import Failed, Outcome, Rendered, State, Submission

_KEPT = 16
_MAX_SEED = 2**31  # Ideogram's bound; fal declares none
_DETAIL: TypeAdapter[list[dict[str, JsonValue]]] = TypeAdapter(list[dict[str, JsonValue]])


def input_digest(endpoint_id: str, arguments: Mapping[str, JsonValue], state: State) -> str:
    """Names an input by what it says: addresses of uploaded files count as the files' bytes.

    Raises ValueError when the arguments hold numbers that JSON does not have.
    """

    def by_content(value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return _uploaded(value, state) or value
        if isinstance(value, list):
            return [by_content(item) for item in value]
        if isinstance(value, dict):
            return {name: by_content(item) for name, item in value.items()}
        return value

    said = json.dumps([endpoint_id, by_content(dict(arguments))], sort_keys=True, allow_nan=False)
    return hashlib.sha256(said.encode()).hexdigest()


def _uploaded(address: str, state: State) -> str | None:
    if not address.startswith("http") or "/files/b/" not in address:
        return None
    try:
        return state.sha256_of(urlsplit(address).path)
    except ValueError:
        return None


class Studio:
    """Judges and paints; keeps the last few pictures."""

    def __init__(
        self,
        shelf: PictureShelf,
        mask_repaints: Literal["black", "white"],
        drawing: Literal["full", "plain"] = "full",
    ) -> None:
        """Fetch references from the shelf, read masks this way, and take so much trouble."""
        self._draw = draw if drawing == "full" else repeat
        self._mask_repaints = mask_repaints
        self._shelf = shelf
        self._painted: OrderedDict[str, bytes] = OrderedDict()
        self._easel = Semaphore(2)  # more painters than cores would only hold more pictures in memory

    async def judge(self, submission: Submission) -> Outcome:
        """How a request ends that is neither cancelled nor late."""
        if submission.fault in _ENDINGS:
            return _ENDINGS[submission.fault]
        endpoint = ENDPOINTS_BY_ID[submission.given.endpoint_id]
        try:
            parsed = _parse(submission)
        except ValidationError as error:
            return Failed(status=422, detail=_validation_detail(error))
        try:
            pictures = await self._pictures(parsed)
        except PictureProblem as problem:
            return _model_error(problem.field, problem.error_type, str(problem))
        if isinstance(parsed, Characterful) and pictures.reference is None:
            return _model_error("reference_image_urls", "sequence_too_short", "One reference is needed.")
        if pictures.mask and pictures.source and pictures.mask.size != pictures.source.size:
            return _model_error(
                "mask_url", "value_error", "mask_url and image_url differ in width or height."
            )
        usd = price(endpoint.name, parsed.rendering_speed, parsed.num_images)
        return Rendered(
            images=parsed.num_images,
            seed=int(submission.given.digest[:8], 16) % _MAX_SEED if parsed.seed is None else parsed.seed,
            usd=None if usd is None else str(usd),
        )

    async def paint(self, submission: Submission, outcome: Rendered, index: int) -> bytes:
        """The PNG with this index, 0 being the first. Raises PictureProblem when a reference has gone."""
        name = f"{submission.given.digest}/{index}"
        if painted := self._painted.get(name):
            return painted
        async with self._easel:
            parsed = _parse(submission)
            scene = compose(
                ENDPOINTS_BY_ID[submission.given.endpoint_id],
                parsed,
                await self._pictures(parsed),
                digest=submission.given.digest,
                seed=outcome.seed,
                index=index,
                mask_repaints=self._mask_repaints,
            )
            painted = await to_thread(self._draw, scene)
        self._painted[name] = painted
        if len(self._painted) > _KEPT:
            self._painted.popitem(last=False)
        return painted

    async def _pictures(self, parsed: IdeogramInput) -> Pictures:
        references = parsed.reference_image_urls if isinstance(parsed, Characterful) else ()
        masks = parsed.reference_mask_urls if isinstance(parsed, Characterful) else ()
        return Pictures(
            reference=await self._get("reference_image_urls", references[0] if references else None),
            reference_mask=await self._get("reference_mask_urls", masks[0] if masks else None),
            style=await self._get("image_urls", parsed.image_urls[0] if parsed.image_urls else None),
            source=await self._get("image_url", parsed.image_url if isinstance(parsed, Sourced) else None),
            mask=await self._get("mask_url", parsed.mask_url if isinstance(parsed, Masked) else None),
        )

    async def _get(self, field: str, address: str | None) -> Picture | None:
        try:
            return await self._shelf.get(address) if address is not None else None
        except PictureProblem as problem:
            problem.field = field
            raise


def _parse(submission: Submission) -> IdeogramInput:
    # fal's apps are FastAPI apps: fields they do not know are ignored, at every depth
    return ENDPOINTS_BY_ID[submission.given.endpoint_id].input_model.model_validate(
        submission.given.arguments, extra="ignore"
    )


def _validation_detail(error: ValidationError) -> list[JsonValue]:
    return [
        {**problem, "loc": ["body", *_list(problem["loc"])]}
        for problem in _DETAIL.validate_json(error.json())
    ]


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else [value]


def _model_error(field: str, error_type: str, message: str, status: int = 422) -> Failed:
    return Failed(
        status=status,
        detail=[
            {
                "loc": ["body", field],
                "msg": message,
                "type": error_type,
                "url": f"https://docs.fal.ai/errors#{error_type}",
            }
        ],
    )


_ENDINGS: Mapping[FaultKind | None, Failed] = {
    FaultKind.POLICY_REFUSAL: _model_error(
        "prompt",
        "content_policy_violation",
        "The content could not be processed: flagged by a content checker.",
    ),
    FaultKind.NO_MEDIA: _model_error("prompt", "no_media_generated", "The model returned no picture."),
    FaultKind.MODEL_500: _model_error("prompt", "internal_server_error", "The model failed.", status=500),
    FaultKind.RUNNER_503: Failed(status=503, detail="Runner disconnected", error_type="runner_disconnected"),
}

"""What a picture is to say of itself, from what the ledger knows of its request."""

from __future__ import annotations

import hashlib

from ideogram_pipeline.generation.ledger import Reserved
from ideogram_pipeline.marks import ALGORITHM, TRAINED_ALGORITHM, Marks


def marks_of(
    reserved: Reserved, request_id: str, seed: int | None, index: int, *, with_prompt: bool
) -> Marks:
    """Return the marks of one picture of a request; the seed is the one fal says it used, if it says.

    They depend on nothing else, so that a picture that is fetched again becomes the same file.
    """
    request, is_drawn = reserved.request, reserved.backend == "sandbox"
    prompt = request.arguments.get("prompt")
    text = prompt if isinstance(prompt, str) and prompt else None
    return Marks(
        source_type=ALGORITHM if is_drawn else TRAINED_ALGORITHM,
        system="ideogram_pipeline sandbox: a drawing, not a model's picture"
        if is_drawn
        else "Ideogram by fal.ai",
        system_version=f"{reserved.code_version}, for {request.endpoint_id}"
        if is_drawn
        else f"V3, {request.endpoint_id}",
        prompt=text if with_prompt else None,
        prompt_sha256=hashlib.sha256(text.encode()).hexdigest() if text else None,
        prompt_id=request.prompt_id,
        fingerprint=request.fingerprint,
        request_id=request_id,
        seed=request.seed if seed is None else seed,
        image_index=index,
        backend=reserved.backend,
    )

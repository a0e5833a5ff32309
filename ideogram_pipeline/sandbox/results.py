"""The body of a result with pictures.

What belongs here: an outcome in the shape of the endpoints' output, as the queue, the webhooks and the platform's
listing tell it.
"""

import base64

from pydantic import JsonValue

from ideogram_pipeline.sandbox.state import Rendered, Submission
from ideogram_pipeline.sandbox.studio import Studio


async def output(
    submission: Submission, outcome: Rendered, base_url: str, studio: Studio
) -> dict[str, JsonValue]:
    """What the model answers. Pictures are addresses below ``base_url``, or data URIs in sync mode."""
    images: list[JsonValue] = []
    for index in range(outcome.images):
        if submission.given.arguments.get("sync_mode") is True:
            painted = await studio.paint(submission, outcome, index)
            url = f"data:image/png;base64,{base64.b64encode(painted).decode()}"
        else:
            url = f"{base_url}/files/g/{submission.id}/{index}.png"
        images.append(
            {"url": url, "content_type": "image/png", "file_name": f"{index}.png", "file_size": None}
        )
    return {"images": images, "seed": outcome.seed}

"""What one would write with fal's own client: subscribe to every request, download its picture, keep nothing.

Reads a JSON object from its standard input (`url` of the sandbox, `reference` file, `prompts`, `in_flight`) and prints
one with the time of the last picture.
"""

import asyncio
import json
import sys
import time

import fal_client
import fal_client.client
import httpx


async def main() -> None:
    """Make every picture."""
    asked = json.load(sys.stdin)
    fal_client.client.QUEUE_URL_FORMAT = f"{asked['url']}/"
    fal_client.client.REST_URL = fal_client.client.CDN_URL = asked["url"]
    client = fal_client.AsyncClient(key="bench:bench")
    reference = await client.upload_file(asked["reference"])
    places = asyncio.Semaphore(asked["in_flight"])
    async with httpx.AsyncClient(
        limits=httpx.Limits(max_connections=asked["in_flight"]), timeout=60
    ) as files:

        async def make(prompt: str) -> int:
            async with places:
                result = await client.subscribe(
                    "fal-ai/ideogram/character", {"prompt": prompt, "reference_image_urls": [reference]}
                )
                answer = await files.get(result["images"][0]["url"])
                return len(answer.raise_for_status().content)

        await asyncio.gather(*(make(prompt) for prompt in asked["prompts"]))
    print(json.dumps({"last_picture_at": time.time()}))


asyncio.run(main())

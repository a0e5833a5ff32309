"""The URLs under which fal finds the references: uploaded once per content and run, or passed through."""

from __future__ import annotations

import asyncio

from pydantic import JsonValue

from ideogram_pipeline.fal import FalClient
from ideogram_pipeline.generation.requests import GenerationRequest, PictureUse
from ideogram_pipeline.storage import Store


class ReferenceUrls:
    """Hands out a URL for each reference. `https://` references are passed on as they are."""

    def __init__(self, fal: FalClient, store: Store) -> None:
        self._fal = fal
        self._store = store
        self._uploads: dict[str, asyncio.Task[str]] = {}

    async def filled_in(self, request: GenerationRequest) -> dict[str, JsonValue]:
        """Return the arguments with a URL in place of each picture's digest.

        Raises:
            FalError: an upload failed.
        """
        urls = {use.token: await self._url(use) for use in request.pictures}

        def filled(value: JsonValue) -> JsonValue:
            if isinstance(value, list):
                return [filled(member) for member in value]
            return urls.get(value, value) if isinstance(value, str) else value

        fields = {use.field for use in request.pictures}
        return {name: filled(value) if name in fields else value for name, value in request.arguments.items()}

    async def _url(self, use: PictureUse) -> str:
        if use.uri.startswith("https://"):
            return use.uri
        upload = self._uploads.get(use.sha256)
        if upload is None or (upload.done() and (upload.cancelled() or upload.exception())):
            upload = self._uploads[use.sha256] = asyncio.create_task(self._upload(use))
        return await asyncio.shield(upload)

    async def _upload(self, use: PictureUse) -> str:
        content = await self._store.get_async(use.path)
        uploaded = await self._fal.upload(content, file_name=use.path.rsplit("/", 1)[-1])
        return uploaded.url

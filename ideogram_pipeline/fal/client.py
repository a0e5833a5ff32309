"""The client, assembled from its parts."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx2

from ideogram_pipeline.fal.files import FileCalls
from ideogram_pipeline.fal.http import DEFAULT_TIMEOUTS, Http, Timeouts
from ideogram_pipeline.fal.keys import FalKey
from ideogram_pipeline.fal.media import MediaCalls
from ideogram_pipeline.fal.platform import PlatformCalls
from ideogram_pipeline.fal.subscribe import SubscribeCalls
from ideogram_pipeline.fal.urls import PUBLIC_FAL, FalHosts
from ideogram_pipeline.fal.webhooks import WebhookCalls


class FalClient(SubscribeCalls, FileCalls, MediaCalls, WebhookCalls, PlatformCalls):
    """fal's queue, storage, files, webhooks and Platform API, for use in one event loop.

    An asynchronous context manager; its connections are opened and closed with it. Every call gives its result or
    raises a `FalError`.

        async with FalClient(FalKey.from_environment()) as fal:
            request = await fal.submit("fal-ai/ideogram/v3", {"prompt": "a lighthouse"})
    """

    def __init__(
        self,
        key: FalKey | str,
        hosts: FalHosts = PUBLIC_FAL,
        *,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        max_connections: int = 100,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is opened yet. Raises `InvalidCall` for a key that can't be one.

        A `transport` carries every call in place of the network, for tests.
        """
        http = Http(
            key if isinstance(key, FalKey) else FalKey(key), hosts, timeouts, max_connections, transport
        )
        SubscribeCalls.__init__(self, http)
        FileCalls.__init__(self, http)
        WebhookCalls.__init__(self, http)

    @property
    def hosts(self) -> FalHosts:
        """Where this client talks to."""
        return self._http.hosts

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

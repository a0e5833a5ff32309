"""fal's queue protocol: an asynchronous, typed client that pays once. Knows no Ideogram and no Dagster.

    async with FalClient(FalKey.from_environment()) as fal:
        request = await fal.submit("fal-ai/ideogram/v3", {"prompt": "a lighthouse"})
        ...                                   # keep request.request_id: from here on it costs money
        while not isinstance(await fal.status(request), Completed):
            await asyncio.sleep(1)
        result = await fal.result(request)
        picture = await fal.download(result.payload["images"][0]["url"], max_bytes=50_000_000)

Another process, or another day, goes on from the two ids: `fal.attach(endpoint_id, request_id)`. For callers that
keep no ids, `fal.subscribe` does all of it.

What it promises: a submit is posted again only where the first can't have been accepted, and otherwise raises
`SubmitUnknown`; every call ends by its deadline, in its result or in a `FalError` that says whether to repeat, whether
to submit again and whether money may be due; the key goes to fal's hosts and shows nowhere.
"""

from ideogram_pipeline.fal.answers import JsonObject
from ideogram_pipeline.fal.client import FalClient
from ideogram_pipeline.fal.errors import (
    AccessRefused,
    AccountLocked,
    Cancelled,
    ConnectionFailed,
    DeadlineExceeded,
    EndpointNotFound,
    ErrorDetail,
    FalError,
    Forbidden,
    IngressError,
    InvalidCall,
    MediaUnavailable,
    ModelFailed,
    ModelRefused,
    NoAnswer,
    NotReady,
    RequestEnded,
    RequestFailed,
    RequestNotFound,
    ResultExpired,
    StartTimeout,
    SubmitUnknown,
    TooManyRequests,
    Unauthorized,
    UnexpectedAnswer,
    UnsafeUrl,
    WebhookRejected,
)
from ideogram_pipeline.fal.files import Uploaded
from ideogram_pipeline.fal.http import Timeouts
from ideogram_pipeline.fal.keys import FalKey
from ideogram_pipeline.fal.media import Downloaded
from ideogram_pipeline.fal.options import SubmitOptions
from ideogram_pipeline.fal.platform import BillingEvent, Estimate, Listing, PastRequest, Price
from ideogram_pipeline.fal.queue import (
    CancelAnswer,
    Completed,
    InProgress,
    InQueue,
    LogLine,
    QueuedRequest,
    QueueStatus,
    Result,
)
from ideogram_pipeline.fal.testing import no_waiting
from ideogram_pipeline.fal.urls import FalHosts
from ideogram_pipeline.fal.webhooks import Delivery

__all__ = [
    "AccessRefused",
    "AccountLocked",
    "BillingEvent",
    "CancelAnswer",
    "Cancelled",
    "Completed",
    "ConnectionFailed",
    "DeadlineExceeded",
    "Delivery",
    "Downloaded",
    "EndpointNotFound",
    "ErrorDetail",
    "Estimate",
    "FalClient",
    "FalError",
    "FalHosts",
    "FalKey",
    "Forbidden",
    "InProgress",
    "InQueue",
    "IngressError",
    "InvalidCall",
    "JsonObject",
    "Listing",
    "LogLine",
    "MediaUnavailable",
    "ModelFailed",
    "ModelRefused",
    "NoAnswer",
    "NotReady",
    "PastRequest",
    "Price",
    "QueueStatus",
    "QueuedRequest",
    "RequestEnded",
    "RequestFailed",
    "RequestNotFound",
    "Result",
    "ResultExpired",
    "StartTimeout",
    "SubmitOptions",
    "SubmitUnknown",
    "Timeouts",
    "TooManyRequests",
    "Unauthorized",
    "UnexpectedAnswer",
    "UnsafeUrl",
    "Uploaded",
    "WebhookRejected",
    "no_waiting",
]

"""rest.fal.ai's uploads, and the files of v3.fal.media.

What belongs here: the three ways fal's clients upload (a presigned PUT, the CDN with a token, and parts either way),
and the addresses that files are fetched from: uploads, and pictures painted when asked for.
"""

import hashlib
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ideogram_pipeline.sandbox.config import FaultKind
from ideogram_pipeline.sandbox.http import HangUp, base_url, detail, key_problem
from ideogram_pipeline.sandbox.queue import Queue
from ideogram_pipeline.sandbox.state import Phase, Rendered, State, Upload
from ideogram_pipeline.sandbox.studio import Studio

_TOKEN_LIFE = timedelta(hours=1)
_DOWNLOAD_FAULTS = (
    FaultKind.MISSING_DOWNLOAD,
    FaultKind.TRUNCATED_DOWNLOAD,
    FaultKind.CORRUPT_DOWNLOAD,
)


class Announcement(BaseModel):
    """What is going to be uploaded."""

    content_type: str = Field(default="application/octet-stream", description="MIME type.")
    file_name: str = Field(default="", description="Name to end the file's address with.")


class Part(BaseModel):
    """One part of an upload, as the uploader remembers it."""

    model_config = ConfigDict(populate_by_name=True)

    number: int = Field(alias="partNumber", description="1 for the first.")
    etag: str = Field(description="What the part's upload was answered with.")


class Parts(BaseModel):
    """All parts of an upload, in any order."""

    parts: list[Part] = Field(description="The parts.")


class StorageApi:
    """rest.fal.ai's storage and v3.fal.media."""

    def __init__(self, queue: Queue, state: State, studio: Studio) -> None:
        """Keep uploads in the state; have generated pictures painted by the studio."""
        self._queue = queue
        self._state = state
        self._studio = studio
        self._token = state.secret("cdn-token", secrets.token_hex(24).encode()).decode()

    def routes(self) -> list[Route]:
        """Uploads first: their addresses look like submits to an endpoint."""
        presigned = "/storage/uploads/{upload_id}"
        file = "/files/b/{upload_id}/{file_name}"
        return [
            Route("/storage/auth/token", self.token, methods=["POST"]),
            Route("/storage/upload/initiate", self.initiate, methods=["POST"]),
            Route("/storage/upload/initiate-multipart", self.initiate, methods=["POST"]),
            Route(presigned, self.put, methods=["PUT"]),
            Route(f"{presigned}/complete", self.complete, methods=["POST"]),
            Route(f"{presigned}/{{number:int}}", self.put_part, methods=["PUT"]),
            Route("/files/upload", self.cdn_upload, methods=["POST"]),
            Route("/files/upload/multipart", self.cdn_initiate, methods=["POST"]),
            Route(f"{file}/multipart/{{token_id}}/complete", self.cdn_complete, methods=["POST"]),
            Route(f"{file}/multipart/{{token_id}}/{{number:int}}", self.cdn_put_part, methods=["PUT"]),
            Route(file, self.uploaded, methods=["GET"]),
            Route("/files/g/{request_id}/{index:int}.png", self.generated, methods=["GET"]),
        ]

    def _announce(self, content_type: str, file_name: str) -> Upload:
        safe_name = re.sub(r"[^A-Za-z0-9._-]+", "_", file_name).strip("._") or "file"
        upload = Upload(secrets.token_hex(16), safe_name[-80:], content_type)
        self._state.announce(upload)
        return upload

    def _store(self, upload: Upload, content: bytes) -> None:
        self._state.count("uploads")
        self._state.complete(upload, content)

    # presigned: the address is the permission

    async def initiate(self, request: Request) -> Response:
        """Announce an upload; answers where to put the bytes and where they will be."""
        if problem := key_problem(request, self._queue.settings):
            return detail(401, problem)
        try:
            announced = Announcement.model_validate_json(await request.body())
        except ValidationError:
            return detail(422, "content_type and file_name are expected")
        upload = self._announce(announced.content_type, announced.file_name)
        base = base_url(request)
        return JSONResponse(
            {"upload_url": f"{base}/storage/uploads/{upload.id}?signed=1", "file_url": base + upload.path}
        )

    async def put(self, request: Request) -> Response:
        """Take a whole file."""
        upload = self._expected(request)
        if upload is None:
            return detail(404, "Upload not found")
        self._store(upload, await request.body())
        return Response()

    async def put_part(self, request: Request) -> Response:
        """Take one part of a file."""
        upload = self._expected(request)
        if upload is None:
            return detail(404, "Upload not found")
        number = request.path_params["number"]
        etag = self._state.add_part(upload, number, await request.body())
        return JSONResponse({"partNumber": number, "etag": etag}, headers={"ETag": etag})

    async def complete(self, request: Request) -> Response:
        """Put the parts together; every one of them must have come as the caller remembers it."""
        upload = self._expected(request)
        if upload is None:
            return detail(404, "Upload not found")
        try:
            told = Parts.model_validate_json(await request.body()).parts
        except ValidationError:
            return detail(422, "parts with partNumber and etag are expected")
        content = _assemble(self._state.parts(upload), told)
        if content is None:
            return detail(400, "The parts told are not the parts received")
        self._store(upload, content)
        return JSONResponse({"file_url": base_url(request) + upload.path})

    def _expected(self, request: Request) -> Upload | None:
        if "authorization" in request.headers and request.url.path.startswith("/storage/uploads/"):
            self._state.count("misplaced_keys")
        return self._state.upload(request.path_params["upload_id"])

    # the CDN: a token is the permission

    async def token(self, request: Request) -> Response:
        """A token for the CDN."""
        if problem := key_problem(request, self._queue.settings):
            return detail(401, problem)
        return JSONResponse(
            {
                "token": self._token,
                "token_type": "Bearer",
                "base_url": base_url(request),
                "expires_at": (datetime.now(UTC) + _TOKEN_LIFE).isoformat(),
            }
        )

    def _has_token(self, request: Request) -> bool:
        sent = request.headers.get("authorization", "")
        return secrets.compare_digest(sent.encode(), f"Bearer {self._token}".encode())

    def _cdn_announce(self, request: Request) -> Upload:
        headers = request.headers
        content_type = headers.get("content-type", "application/octet-stream")
        return self._announce(content_type, headers.get("x-fal-file-name", ""))

    async def cdn_upload(self, request: Request) -> Response:
        """Take a whole file."""
        if not self._has_token(request):
            return detail(401, "Unauthorized")
        upload = self._cdn_announce(request)
        self._store(upload, await request.body())
        return JSONResponse({"access_url": base_url(request) + upload.path})

    async def cdn_initiate(self, request: Request) -> Response:
        """Announce a file in parts."""
        if not self._has_token(request):
            return detail(401, "Unauthorized")
        upload = self._cdn_announce(request)
        return JSONResponse({"access_url": base_url(request) + upload.path, "uploadId": upload.id})

    async def cdn_put_part(self, request: Request) -> Response:
        """Take one part of a file."""
        return await self.put_part(request) if self._has_token(request) else detail(401, "Unauthorized")

    async def cdn_complete(self, request: Request) -> Response:
        """Put the parts together."""
        return await self.complete(request) if self._has_token(request) else detail(401, "Unauthorized")

    # fetching

    async def uploaded(self, request: Request) -> Response:
        """An uploaded file."""
        self._note_download(request)
        file = self._state.file(request.url.path)
        return Response(file.content, media_type=file.content_type) if file else detail(404, "Not found")

    async def generated(self, request: Request) -> Response:
        """A picture of a request that ended well, painted now."""
        self._note_download(request)
        found = self._queue.find(request.path_params["request_id"])
        if found is None or found.phase is not Phase.DONE or found.submission.is_forgotten:
            return detail(404, "Not found")
        outcome, index = await self._queue.outcome(found), request.path_params["index"]
        if not isinstance(outcome, Rendered) or index >= outcome.images:
            return detail(404, "Not found")
        given = found.submission.given
        fault = self._queue.fault(_DOWNLOAD_FAULTS, f"{given.digest}/{index}", given.prompt)
        if fault is FaultKind.MISSING_DOWNLOAD:
            return detail(404, "Not found")
        painted = await self._studio.paint(found.submission, outcome, index)
        if fault is FaultKind.TRUNCATED_DOWNLOAD:
            return HangUp(painted[: len(painted) // 2], promised=len(painted))
        if fault is FaultKind.CORRUPT_DOWNLOAD:
            middle = len(painted) // 2
            painted = painted[:middle] + bytes(64) + painted[middle + 64 :]
        return Response(painted, media_type="image/png")

    def _note_download(self, request: Request) -> None:
        self._state.count("downloads")
        if "authorization" in request.headers:
            self._state.count("misplaced_keys")


def _assemble(received: dict[int, bytes], told: Sequence[Part]) -> bytes | None:
    if sorted(part.number for part in told) != list(range(1, len(received) + 1)) or not received:
        return None
    if any(hashlib.sha256(received[part.number]).hexdigest() != part.etag.strip('"') for part in told):
        return None
    return b"".join(received[number] for number in sorted(received))

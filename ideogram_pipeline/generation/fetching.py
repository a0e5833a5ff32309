"""Bringing what a request made: waiting for its end, its result, its pictures, verified and in the store."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

from ideogram_pipeline.faces import Faces
from ideogram_pipeline.fal import Completed, FalClient, InQueue, QueuedRequest, QueueStatus
from ideogram_pipeline.fal.errors import AccessRefused, FalError, NotReady, RequestEnded
from ideogram_pipeline.fal.http import pause
from ideogram_pipeline.generation.answers import Answers
from ideogram_pipeline.generation.inbox import Inbox
from ideogram_pipeline.generation.ledger import Entry, Reserved, Settled, StoredImage
from ideogram_pipeline.generation.marking import (
    MakeMarked,
    Marked,
    Marking,
    as_stored,
    marked,
    marks_of,
    signature_path,
    signed,
    signed_then,
)
from ideogram_pipeline.generation.outcomes import Failed, LeftOpen, NotReached
from ideogram_pipeline.generation.picture_names import picture_path
from ideogram_pipeline.generation.polling import Kind, Polling
from ideogram_pipeline.generation.requests import GenerationRequest
from ideogram_pipeline.generation.window import Place
from ideogram_pipeline.ideogram.endpoints import Output
from ideogram_pipeline.marks import Marks
from ideogram_pipeline.marks.credentials import CannotSign, Reference
from ideogram_pipeline.pictures import BadPicture, Picture, verify
from ideogram_pipeline.storage import Store
from ideogram_pipeline.telemetry import POLLS, RETRIES, span

MAX_PICTURE_BYTES = 50 * 1024 * 1024
"""No answer's picture is downloaded beyond this."""
DOWNLOAD_ATTEMPTS = 3
"""A picture that arrives damaged is fetched again this often in all."""
THUMBNAIL_SIDE = 320
"""Pixels of a thumbnail's longer side."""
NEWS_EVERY_S = 0.25
"""Those who wait are told at most so often that what they wait by has changed: each look of so many costs time."""
STATUS_ATTEMPTS = 3
"""A status that can't be had is asked for so often, before the row is left to the next run."""
ASK_AGAIN_S = 2.0
"""Seconds before a status is asked for again that could not be had, or a result that was not ready."""
FINISHING = 16
"""So many requests at a time are fetched and stored, which bounds the pictures in memory."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A request's result, with every picture of it in the store."""

    completed: Completed
    """Its status at the end."""
    seed: int | None
    """The seed fal says it used."""
    images: tuple[StoredImage, ...]
    """Its pictures, in fal's order; none if fal's answer holds none."""


class NotRead(Exception):
    """Whether a request has brought anything can't be told from fal's answers; they may tell it later."""

    def __init__(self, error: FalError) -> None:
        super().__init__(str(error))
        self.error = error
        """The last of them."""


class OtherBytes(Exception):
    """fal gives other bytes for a picture than it did before."""


class Fetcher:
    """Fetches the requests of one run, whoever submitted them."""

    def __init__(
        self,
        fal: FalClient,
        store: Store,
        entries: Iterable[Entry],
        *,
        waiting: Polling,
        inbox: Inbox | None,
        max_wait_s: float,
        thumbnails: bool,
        marking: Marking,
        faces: Faces | None,
    ) -> None:
        """Begin with the pictures that lie in the store for `entries`; `thumbnails` says whether to make any.

        A request that isn't done after `max_wait_s` seconds is left for the next run to fetch. Without an inbox fal is
        asked how requests end.
        """
        self._fal = fal
        self._store = store
        self._thumbnail_side = THUMBNAIL_SIDE if thumbnails else None
        self._marking = marking
        self._faces = faces
        self._max_wait_s = max_wait_s
        self._finishing = asyncio.Semaphore(FINISHING)
        self._inbox = inbox
        self._answers = Answers(fal, inbox)
        self._polling = waiting
        self._told = waiting.revision
        self._news = asyncio.Event()
        self._waking: asyncio.TimerHandle | None = None
        # Decoding keeps a core busy; in asyncio's own threads it would keep the ledger's writes waiting.
        self._decoding = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self._there = _pictures_there(store, entries)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look for what fal delivers, where it does, until the block is left."""
        if self._inbox is None:
            yield
            return
        async with self._inbox.watched(self._wake):
            yield

    async def fetch(
        self, reserved: Reserved, queued: QueuedRequest, place: Place, *, submitted_here: bool
    ) -> Fetched:
        """Wait for a request's end and store its pictures; the place in the window is free once its result is read.

        `reserved` is the attempt by which it was submitted.

        Raises:
            RequestEnded: it ended without a result, and that is proven.
            NotRead: its end or its result can't be read for now.
            FalError: a picture can't be had for now.
            LeftOpen: it takes too long, or a picture keeps arriving damaged; it is fetched by the next run.
        """
        request = reserved.request
        with span("wait", **request.ids, request_id=queued.request_id):
            completed, output = await self._output(reserved, queued, submitted_here=submitted_here)
        place.give_back()
        async with self._finishing:
            images = await asyncio.gather(
                *(
                    self._store_image(
                        request,
                        url,
                        self._mark(reserved, queued.request_id, output.seed, index),
                        index=index,
                    )
                    for index, url in enumerate(output.images)
                )
            )
        return Fetched(completed, output.seed, tuple(images))

    async def _output(
        self, reserved: Reserved, queued: QueuedRequest, *, submitted_here: bool
    ) -> tuple[Completed, Output]:
        """Wait for a request's end and read its result."""
        begin = self._polling.submitted if submitted_here else self._polling.attached
        deadline = _now() + self._max_wait_s
        try:
            while True:
                begin(queued.request_id, Kind.of(reserved.request), _now())
                completed = await self._completed(reserved, queued, deadline)
                try:
                    return completed, await self._answers.output(reserved, queued)
                except NotReady:  # the result lags behind the status, or one of both is wrong
                    begin = self._polling.attached
                    await pause(ASK_AGAIN_S)
        except RequestEnded:
            raise
        except FalError as error:
            raise NotRead(error) from None

    def is_missing(self, image: StoredImage) -> bool:
        """Say whether a picture of the ledger is no longer in the store."""
        return image.path not in self._there

    async def fetch_again(
        self, reserved: Reserved, queued: QueuedRequest, settled: Settled, missing: Iterable[StoredImage]
    ) -> None:
        """Fetch pictures of a settled request that are no longer in the store, as far as fal still has them.

        They are marked and signed as they were then, or not at all.

        Raises:
            FalError, IndexError: fal has them no longer, or its answer can't be read for now.
            FileNotFoundError: what signing put into one is gone as well.
            OtherBytes: fal has other ones now; nothing was stored.
        """
        output = await self._answers.output(reserved, queued)
        for image in missing:
            marks = marks_of(
                reserved,
                queued.request_id,
                settled.seed,
                image.index,
                with_prompt=image.prompt_marked,
                version=image.marks_version,
            )
            make_marked = await self._mark_again(image, marks)
            url = output.images[image.index]
            await self._store_image(reserved.request, url, make_marked, index=image.index, known=image)

    def nothing_left_to_submit(self) -> None:
        """Ask in a hurry for what is still open: nobody else waits for a place."""
        self._polling.nothing_left()
        self._tell_news()

    def close(self) -> None:
        """End the threads that decode."""
        self._decoding.shutdown(wait=False, cancel_futures=True)

    async def _completed(self, reserved: Reserved, queued: QueuedRequest, deadline: float) -> Completed:
        """Wait for a request's end; what was delivered says nothing of how long the work took."""
        try:
            while _now() < deadline:
                if await self._is_delivered(reserved, queued.request_id, before=deadline):
                    self._polling.delivered(queued.request_id, _now())
                    return Completed()
                status = await self._status(queued)
                if isinstance(status, Completed):
                    self._polling.completed(queued.request_id, status.inference_s, _now())
                    return status
                if isinstance(status, InQueue):
                    self._polling.queued(queued.request_id, status.position, _now())
                else:
                    self._polling.in_progress(queued.request_id, _now())
        finally:
            self._polling.left(queued.request_id)
            self._tell_news()
        raise LeftOpen(NotReached, f"{queued.request_id} is still with fal; the next run fetches it")

    async def _status(self, queued: QueuedRequest) -> QueueStatus:
        """Ask how a request is getting on; an answer that can't be read may pass, so it is asked for again."""
        for attempt in range(1, STATUS_ATTEMPTS + 1):
            try:
                POLLS.add(1)
                return await self._fal.status(queued)
            except FalError as error:
                if isinstance(error, AccessRefused) or attempt == STATUS_ATTEMPTS:
                    raise
                await pause(ASK_AGAIN_S)
        raise AssertionError("the last attempt either returns or raises")

    async def _is_delivered(self, reserved: Reserved, request_id: str, *, before: float) -> bool:
        """Wait until a request's end is delivered, or it is time to ask about it; say whether it was delivered."""
        while not (self._inbox and self._inbox.holds(reserved, request_id)):
            wait_s = min(self._polling.next_ask(request_id), before) - _now()
            if wait_s <= 0:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
        return True

    def _tell_news(self) -> None:
        """Have everybody who waits for a turn look again in a moment, if it may have come nearer."""
        if self._told != self._polling.revision:
            self._told = self._polling.revision
            if self._waking is None:
                self._waking = asyncio.get_running_loop().call_later(NEWS_EVERY_S, self._wake)

    def _wake(self) -> None:
        if self._waking:
            self._waking.cancel()
            self._waking = None
        self._news.set()
        self._news = asyncio.Event()

    def _mark(self, reserved: Reserved, request_id: str, seed: int | None, index: int) -> MakeMarked:
        marks = marks_of(reserved, request_id, seed, index, with_prompt=self._marking.with_prompt)
        if self._marking.signer is None:
            return partial(marked, marks=marks)
        references = partial(self._references, reserved.request)
        return partial(signed, marks=marks, signer=self._marking.signer, references=references)

    async def _mark_again(self, image: StoredImage, marks: Marks) -> MakeMarked:
        if image.manifest_id:
            signature = await self._store.get_async(signature_path(image.path))
            return partial(signed_then, marks=marks, manifest_id=image.manifest_id, signature=signature)
        return partial(marked, marks=marks) if image.sha256_received else Marked

    def _references(self, request: GenerationRequest) -> list[Reference]:
        """Read the pictures that a request was made with, as far as they are still there."""
        found = {use.sha256: use.path for use in request.pictures}
        references = []
        for sha256, path in found.items():
            try:
                references.append(Reference(sha256, self._store.get(path)))
            except FileNotFoundError:
                references.append(Reference(sha256, None))
        return references

    async def _from_faces(self, request: GenerationRequest, content: bytes) -> float | None:
        """Return how far a picture's face is from those of its character references, if that is measured."""
        of_character = {
            use.sha256: partial(self._store.get, use.path)
            for use in request.pictures
            if use.field == "reference_image_urls"
        }
        if self._faces is None or not of_character:
            return None
        return await asyncio.get_running_loop().run_in_executor(
            self._decoding, self._faces.distance, content, of_character
        )

    async def _brought(
        self, request: GenerationRequest, url: str, make_marked: MakeMarked, *, index: int
    ) -> tuple[_Made, float | None]:
        """Return a picture that has arrived whole, as it is to be stored, and how far its face is from the references'.

        What fal sent is let go: many pictures wait for the store at a time.
        """
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            with span("download", **request.ids, image_index=index):
                downloaded = await self._fal.download(url, max_bytes=MAX_PICTURE_BYTES)
            try:
                made = await asyncio.get_running_loop().run_in_executor(
                    self._decoding, _made, downloaded.content, make_marked, self._thumbnail_side
                )
            except CannotSign as problem:
                reason = (
                    f"picture {index} can't be signed: {problem}; it is paid for and fetched again next run"
                )
                raise LeftOpen(Failed, reason) from None
            except BadPicture as problem:
                RETRIES.add(attempt < DOWNLOAD_ATTEMPTS, {"of": "download"})
                if attempt == DOWNLOAD_ATTEMPTS:
                    reason = f"picture {index} arrives damaged: {problem}; it is paid for and fetched again next run"
                    raise LeftOpen(Failed, reason) from None
            else:
                return made, await self._from_faces(request, downloaded.content)
        raise AssertionError("the last attempt either returns or raises")

    async def _store_image(
        self,
        request: GenerationRequest,
        url: str,
        make_marked: MakeMarked,
        *,
        index: int,
        known: StoredImage | None = None,
    ) -> StoredImage:
        """Bring a picture into the store: `known` is what the ledger says of it already.

        Two runs may bring the same one, and sign it differently. The first file stays: nobody overwrites what a ledger
        entry may name, and both record that file.
        """
        made, face_distance = await self._brought(request, url, make_marked, index=index)
        if known and made.sha256 != known.sha256:
            raise OtherBytes(known.path)
        path = known.path if known else picture_path(request, index, made.received.kind)
        with span("store", **request.ids, image_index=index, bytes=len(made.marked.content)):
            if not await self._store.create_async(path, made.marked.content):
                made = await self._as_stored(path, made)
            if made.marked.signature:
                await self._store.put_async(signature_path(path), made.marked.signature, durable=True)
            if made.thumbnail:
                await self._store.put_async(thumbnail_path(path), made.thumbnail)
        return StoredImage(
            index=index,
            path=path,
            sha256=made.sha256,
            sha256_received=made.received.sha256 if made.marked.is_changed else None,
            unmarked_because=made.marked.unmarked_because,
            prompt_marked=made.marked.tells_prompt,
            marks_version=made.marked.marks_version,
            manifest_id=made.marked.manifest_id,
            stamped_at=made.marked.stamped_at,
            unstamped_because=made.marked.unstamped_because,
            bytes=len(made.marked.content),
            width=made.received.width,
            height=made.received.height,
            format=made.received.kind,
            perceptual_hash=made.received.perceptual_hash,
            face_distance=face_distance,
        )

    async def _as_stored(self, path: str, made: _Made) -> _Made:
        """Return a picture as it lies in the store already; what isn't it, or is damaged, is replaced."""
        there = await self._store.get_async(path)
        stored = await asyncio.get_running_loop().run_in_executor(
            self._decoding, as_stored, there, made.received, made.marked
        )
        if stored is None:
            await self._store.put_async(path, made.marked.content, durable=True)
            return made
        return replace(made, marked=stored, sha256=hashlib.sha256(there).hexdigest())


@dataclass(frozen=True, slots=True)
class _Made:
    """What becomes of a picture that has arrived whole."""

    received: Picture
    """What fal sent."""
    marked: Marked
    """The file as it is stored."""
    sha256: str
    """Its hex digest."""
    thumbnail: bytes | None
    """The small picture, if there is to be one."""


def _made(content: bytes, make_marked: MakeMarked, thumbnail_side: int | None) -> _Made:
    received, thumbnail = verify(content, thumbnail_side=thumbnail_side)
    marked = make_marked(content)
    sha256 = hashlib.sha256(marked.content).hexdigest() if marked.is_changed else received.sha256
    return _Made(received, marked, sha256, thumbnail)


def _pictures_there(store: Store, entries: Iterable[Entry]) -> frozenset[str]:
    folders = {
        str(PurePosixPath(image.path).parent)
        for entry in entries
        for attempt in entry.attempts
        for image in (attempt.settled.images if attempt.settled else ())
    }
    return frozenset(found.path for folder in folders for found in store.objects(folder))


def _now() -> float:
    return asyncio.get_running_loop().time()


def thumbnail_path(image_path: str) -> str:
    """Return where in the store the thumbnail of a picture lies."""
    batch, name = image_path.removeprefix("images/").split("/", 1)
    return f"gallery/{batch}/thumbnails/{name.rsplit('.', 1)[0]}.webp"

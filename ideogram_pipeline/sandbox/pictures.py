"""The pictures an input refers to: fetched, decoded and kept for a while.

What belongs here: from an address to pixels. An address is one of the sandbox's own files, a data URI, or any http(s)
URL. What cannot be fetched or decoded is a ``PictureProblem``, named as fal names it.
"""

import base64
import binascii
import hashlib
import io
from asyncio import to_thread
from collections import OrderedDict
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2
from PIL import Image

from ideogram_pipeline.sandbox.http import outward_client
from ideogram_pipeline.sandbox.state import State
from ideogram_pipeline.seeing import flat, orientation, upright, upright_size

MAX_BYTES = 50 * 1024 * 1024
"""Larger pictures are refused: the largest limit Ideogram states for any picture."""
MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded."""
_LONGEST_SIDE = 1536  # of Ideogram's resolutions: nothing larger is ever drawn
_KEPT = 64
_FORMATS = ("JPEG", "PNG", "WEBP")


class PictureProblem(Exception):
    """A picture cannot be used."""

    def __init__(self, error_type: str, message: str) -> None:
        """Name the problem as fal's catalogue of model errors does, for example ``file_download_error``."""
        super().__init__(message)
        self.error_type = error_type
        """fal's name for the problem."""
        self.field = "image_url"
        """The input field that refers to the picture."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture, upright and no larger than anything the sandbox draws."""

    digest: str
    """SHA-256 of its bytes, in hexadecimal."""
    size: tuple[int, int]
    """Pixels across and down of the original, upright."""
    image: Image.Image = field(compare=False, repr=False)
    """The pixels, RGB."""


class PictureShelf:
    """Fetches pictures and keeps the last few."""

    def __init__(self, state: State) -> None:
        """Look for the sandbox's own files in this state."""
        self._state = state
        self._http = outward_client(follow_redirects=True, timeout_s=20.0)
        self._kept: OrderedDict[str, Picture] = OrderedDict()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def clear(self) -> None:
        """Keep nothing of what was fetched."""
        self._kept.clear()

    async def get(self, address: str) -> Picture:
        """The picture at this address. Raises PictureProblem."""
        name = hashlib.sha256(address.encode()).hexdigest() if address.startswith("data:") else address
        if picture := self._kept.get(name):
            self._kept.move_to_end(name)
            return picture
        picture = await to_thread(decode, await self._bytes(address))
        self._kept[name] = picture
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return picture

    async def _bytes(self, address: str) -> bytes:
        if address.startswith("data:"):
            head, _, content = address.partition(",")
            try:
                return (
                    base64.b64decode(content, validate=True) if head.endswith(";base64") else content.encode()
                )
            except binascii.Error as error:
                raise PictureProblem("image_load_error", "The data URI is not base64.") from error
        try:
            parts = urlsplit(address)
        except ValueError as error:
            raise PictureProblem("file_download_error", "The address is not a URL.") from error
        if file := self._state.file(parts.path):
            return file.content
        if parts.scheme not in ("http", "https"):
            raise PictureProblem(
                "file_download_error", "The address is neither an http(s) URL nor a data URI."
            )
        return await self._download(address)

    async def _download(self, address: str) -> bytes:
        content = bytearray()
        try:
            async with self._http.stream("GET", address) as answer:
                if answer.status_code != httpx2.codes.OK:
                    raise PictureProblem(
                        "file_download_error", f"The file's host answered {answer.status_code}."
                    )
                async for chunk in answer.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        raise PictureProblem("file_too_large", f"The file has more than {MAX_BYTES} bytes.")
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise PictureProblem("file_download_error", "The file could not be downloaded.") from error
        return bytes(content)


def decode(content: bytes) -> Picture:
    """The picture in these bytes. Raises PictureProblem."""
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
            seen = upright_size(opened, orientation(opened))
            if opened.width * opened.height > MAX_PIXELS:
                raise PictureProblem("image_too_large", f"The picture has more than {MAX_PIXELS} pixels.")
            opened.draft("RGB", (_LONGEST_SIDE, _LONGEST_SIDE))
            stored = orientation(opened)
            image = upright(flat(opened), stored)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureProblem("image_load_error", "The file is not a JPEG, PNG or WebP picture.") from error
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    return Picture(hashlib.sha256(content).hexdigest(), seen, image)

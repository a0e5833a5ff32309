"""Bytes from where a table says they are: a file, an object store, the web, or the cell itself."""

from __future__ import annotations

import asyncio
import base64
import posixpath
import stat
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from ideogram_pipeline.storage import Store

MAX_BYTES = 50 * 1024 * 1024
"""Nothing larger is read for a reference; fal's own download limit is the same (fal SDK, toolkit/image)."""
MAX_TABLE_BYTES = 1024 * 1024 * 1024
"""No larger table is read: it is taken apart in memory."""

DEADLINE_S = 120.0
"""Seconds that a file on the web may take, to its last byte."""

_OBJECT_STORES = ("s3://", "gs://", "az://")
_WEB = ("https://", "http://")


class Sources:
    """The files and objects that one table names. Each bucket is opened once. May be used from several threads."""

    def __init__(self, table: str, private_hosts: Collection[str] = ()) -> None:
        """Begin with the table's own path or URL: what it names by a path lies beside it.

        Files on the web may lie on `private_hosts` too, there also by http.
        """
        self._table = table
        self._private_hosts = frozenset(private_hosts)
        self._buckets: dict[str, Store] = {}
        self._opening = threading.Lock()

    def table(self) -> bytes:
        """Return the bytes of the table itself.

        Raises:
            OSError: nothing is there (`FileNotFoundError`), it can't be read, or it is too large.
            StoreError: the object store fails.
        """
        if "://" in self._table:
            return self._object(self._table, MAX_TABLE_BYTES)
        return _file(Path(self._table), MAX_TABLE_BYTES)

    def reference(self, uri: str) -> bytes:
        """Return the bytes of a reference: a data URI, `https://`, `s3://`, or a path relative to the table.

        What lies on the web is fetched once, from public hosts and those named as private, redirects included. Call
        this where no event loop runs.

        Raises:
            OSError: it is missing, unreachable, too large or malformed; the message says which.
            StoreError: the object store fails.
        """
        if uri.startswith("data:"):
            return _from_data_uri(uri)
        if uri.startswith(_WEB):
            return _from_web(uri, self._private_hosts)
        place = self._place(uri)
        if place.startswith(_OBJECT_STORES):
            return self._object(place, MAX_BYTES)
        if "://" in uri:
            raise OSError("references are given as a path, https://, s3:// or a data URI")
        path = Path(place)
        if not path.exists():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        return _file(path, MAX_BYTES)

    def stamp(self, uri: str) -> str:
        """Return what changes with the bytes of a reference and is known without reading them; empty if nothing is.

        A file has its size and time, an object its etag. What lies on the web is not asked: its address stands for it.

        Raises:
            StoreError: the object store can't be reached.
        """
        if uri.startswith("data:"):
            return ""
        place = self._place(uri)
        try:
            if place.startswith(_OBJECT_STORES):
                store, path = self._opened(place)
                return store.etag(path)
            if "://" in uri:
                return ""
            found = Path(place).stat()
        except (OSError, ValueError):  # a ValueError for a name that no file can have
            return "absent"
        return f"{found.st_size} {found.st_mtime_ns}"

    def _place(self, uri: str) -> str:
        """Return where a reference is: its own URL, or a path or URL beside the table."""
        if "://" in uri:
            return uri
        if "://" not in self._table:
            return str(Path(self._table).parent / uri)
        scheme, _, table = self._table.partition("://")
        bucket, _, path = table.partition("/")
        beside = posixpath.normpath(posixpath.join("/", posixpath.dirname(path), uri))
        return f"{scheme}://{bucket}{beside}"

    def _object(self, url: str, max_bytes: int) -> bytes:
        store, path = self._opened(url)
        return store.get(path, max_bytes=max_bytes)

    def _opened(self, url: str) -> tuple[Store, str]:
        """Return a bucket, and the path of an object in it."""
        from ideogram_pipeline.storage import Store

        scheme, _, rest = url.partition("://")
        bucket, _, path = rest.partition("/")
        if not bucket or not path or path.endswith("/"):
            raise OSError(f"{url!r} names no object; write it as s3://bucket/folder/name")
        root = f"{scheme}://{bucket}"
        with self._opening:
            if root not in self._buckets:
                self._buckets[root] = Store.open(root)
        return self._buckets[root], path


def _file(path: Path, max_bytes: int) -> bytes:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{str(path)!r} is a folder, not a file")
    if not stat.S_ISREG(mode):  # a pipe would be waited for, and a device read, without end
        raise OSError(f"{str(path)!r} is no file, but a pipe, a socket or a device")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"the file is larger than {max_bytes // 1024 // 1024} MiB")
    return content


def _from_data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma:
        raise OSError("the data URI has no comma between its type and its bytes")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except ValueError as error:
        raise OSError(f"the data URI is not valid base64 ({error})") from None


def _from_web(uri: str, private_hosts: frozenset[str]) -> bytes:
    from ideogram_pipeline.fal import FalError, MediaUnavailable, UnsafeUrl
    from ideogram_pipeline.fal.media import fetch_file

    try:
        fetched = fetch_file(uri, private=private_hosts, deadline_s=DEADLINE_S, max_bytes=MAX_BYTES)
        return asyncio.run(fetched).content
    except UnsafeUrl as error:
        if not error.guidance:  # no URL, or too many redirects
            raise OSError(error.message) from None
        raise OSError(
            f"{error.message} Use a public https:// address, put the file beside the table, or name the host in "
            "IDEOGRAM_PRIVATE_HOSTS if it is yours."
        ) from None
    except FalError as error:
        if isinstance(error, MediaUnavailable) and error.status is None:
            raise OSError(f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB") from None
        raise OSError(f"it can't be fetched ({error.message})") from None

"""Bytes from where a table says they are: a file, an object store, the web, or the cell itself."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import unquote_to_bytes

MAX_BYTES = 50 * 1024 * 1024
"""Nothing larger is read for a reference; fal's own download limit is the same (fal SDK, toolkit/image)."""


def read_bytes(url: str) -> bytes:
    """Return the bytes at a file path or an object-store URL.

    Raises:
        OSError: nothing is there (`FileNotFoundError`) or it can't be read.
    """
    if "://" not in url:
        return Path(url).read_bytes()
    from ideogram_pipeline.storage import Store

    root, _, name = url.rpartition("/")
    if root.endswith("/") or not name:
        raise OSError(f"{url!r} names no object; write it as s3://bucket/folder/name")
    return Store.open(root).get(name)


def read_reference(uri: str, beside: str) -> bytes:
    """Return the bytes of a reference: a data URI, `https://`, `s3://`, or a path relative to the table `beside`.

    Raises:
        OSError: it is missing, unreachable, too large or malformed; the message says which.
    """
    if uri.startswith("data:"):
        return _from_data_uri(uri)
    if uri.startswith("https://"):
        return _from_web(uri)
    if uri.startswith(("s3://", "gs://", "az://")):
        return read_bytes(uri)
    if "://" in uri:
        raise OSError("references are given as a path, https://, s3:// or a data URI")
    if "://" in beside:
        return read_bytes(f"{beside.rpartition('/')[0]}/{uri}")
    path = Path(beside).parent / uri
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.stat().st_size > MAX_BYTES:
        raise OSError(f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB")
    return path.read_bytes()


def stamp(uri: str, beside: str) -> str:
    """Return what changes with the bytes of a reference and is known without reading them; empty if nothing is.

    A file has its size and time, an object its etag. What lies on the web is not asked: its address stands for it.

    Raises:
        StoreError: the object store can't be reached.
    """
    if "://" in beside and "://" not in uri and not uri.startswith("data:"):
        uri = f"{beside.rpartition('/')[0]}/{uri}"
    try:
        if uri.startswith(("s3://", "gs://", "az://")):
            from ideogram_pipeline.storage import Store

            root, _, name = uri.rpartition("/")
            return Store.open(root).etag(name)
        if "://" in uri or uri.startswith("data:"):
            return ""
        found = (Path(beside).parent / uri).stat()
    except (OSError, ValueError):  # a ValueError for a name that no file can have
        return "absent"
    return f"{found.st_size} {found.st_mtime_ns}"


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


def _from_web(uri: str) -> bytes:
    import httpx2

    chunks: list[bytes] = []
    try:
        with httpx2.stream("GET", uri, follow_redirects=True, timeout=30) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                chunks.append(chunk)
                if sum(map(len, chunks)) > MAX_BYTES:
                    raise OSError(f"the file is larger than {MAX_BYTES // 1024 // 1024} MiB")
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:  # the last: no host name
        raise OSError(f"it can't be fetched ({error})") from None
    return b"".join(chunks)

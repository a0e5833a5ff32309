"""What tells that a table, or a picture it names, was changed: found without taking rows apart or opening pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ideogram_pipeline.tables.reader import read_rows, read_table
from ideogram_pipeline.tables.sources import Sources

_READ_AS = b"upright"
"""Changes with what is read of a picture, so that an upgrade reads a table anew that nobody has changed."""


def prompts_version(url: str, defaults: Mapping[str, Any]) -> str:
    """Return a digest of a prompts table as it is now, and of the values its empty cells take.

    Raises:
        TableError: the file is missing or unreadable.
    """
    return _digest([read_table(url), json.dumps(defaults, sort_keys=True, default=str).encode()])


def references_version(url: str) -> str:
    """Return a digest of a references table as it is now, and of size and time, or etag, of every picture it names.

    Raises:
        TableError: the file is missing or unreadable, or lacks a column.
        StoreError: an object store with pictures can't be reached.
    """
    content = read_table(url)
    uris = [str(row.cells.get("uri", "")).strip() for row in read_rows(url, required=("reference_id", "uri"))]
    sources = Sources(url)
    with ThreadPoolExecutor(max_workers=16) as threads:
        stamps = threads.map(lambda uri: sources.stamp(uri).encode(), uris)
        return _digest([_READ_AS, content, *stamps])


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()

"""What tells that a table, or a picture it names, was changed: found without taking rows apart or opening pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ideogram_pipeline.tables.reader import read_rows, read_table
from ideogram_pipeline.tables.sources import Sources

_READ_AS = b"upright"
"""Changes with what is read of a picture, so that an upgrade reads a table anew that nobody has changed."""


def prompts_version(url: str, defaults: Mapping[str, Any], extra_columns: Collection[str] = ()) -> str:
    """Return a digest of a prompts table as it is now, of the values its empty cells take, and of its extra columns.

    Raises:
        TableError: the file is missing or unreadable.
    """
    values = json.dumps(defaults, sort_keys=True, default=str).encode()
    return _digest([read_table(url), values, *_names(extra_columns)])


def references_version(url: str, extra_columns: Collection[str] = ()) -> str:
    """Return a digest of a references table as it is now, and of size and time, or etag, of every picture it names.

    Its extra columns count as well.

    Raises:
        TableError: the file is missing or unreadable, or lacks a column.
        StoreError: an object store with pictures can't be reached.
    """
    content = read_table(url)
    uris = [str(row.cells.get("uri", "")).strip() for row in read_rows(url, required=("reference_id", "uri"))]
    sources = Sources(url)
    with ThreadPoolExecutor(max_workers=16) as threads:
        stamps = threads.map(lambda uri: sources.stamp(uri).encode(), uris)
        return _digest([_READ_AS, content, *stamps, *_names(extra_columns)])


def _names(columns: Collection[str]) -> list[bytes]:
    return [json.dumps(sorted(columns)).encode()] if columns else []


def _digest(parts: Iterable[bytes]) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()

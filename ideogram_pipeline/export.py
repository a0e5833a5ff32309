"""Pictures and their rows in the formats that people train from: WebDataset shards, and Parquet with the bytes inside.

The batches' own folders are the third one: each loads as a Hugging Face ImageFolder as it lies.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.rows import ImageRow
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.parquet import arrow_schema

Format = Literal["webdataset", "parquet"]

PART_BYTES = 256 * 1024 * 1024
"""A part is closed with the picture that brings it over this many bytes of pictures."""
GROUP_BYTES = 32 * 1024 * 1024
"""So many bytes of pictures are in a row group of Parquet, and in memory."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    images: int
    """Pictures."""
    parts: tuple[str, ...]
    """The files, in order."""
    missing: tuple[str, ...]
    """Pictures of the metadata that are not in the store."""


@dataclass(frozen=True, slots=True)
class _Sample:
    row: ImageRow
    content: bytes


def export(
    store: Store,
    folder: Path,
    into: Format,
    *,
    batches: Iterable[str] = (),
    all_takes: bool = False,
    told: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write the pictures of batches, or of all, into a new or empty folder; `told` is told how many there are so far.

    Pictures that were replaced by a later take, or whose row was edited since, are left out, unless `all_takes` says
    otherwise. The same pictures give the same files. A part has its name only once it is whole.

    Raises:
        ConfigurationError: a batch was never run, or the folder holds something.
        StoreError: the store can't be read.
    """
    known = files.batches_with_results(store)
    chosen = list(dict.fromkeys(batches)) or known
    for batch in chosen:
        if batch not in known:
            raise ConfigurationError(
                f"The batch {batch!r} was never run; there are {', '.join(known) or 'none'}."
            )
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ConfigurationError(
            f"{str(folder)!r} is not empty: name a new folder, so that no two exports mix."
        )
    missing: list[str] = []
    parts: list[str] = []
    images = 0
    samples = _samples(store, chosen, missing, all_takes=all_takes)
    write = _write_shard if into == "webdataset" else _write_parquet
    ending = "tar" if into == "webdataset" else "parquet"
    for part in _parts(samples):
        path = folder / f"part-{len(parts):05}.{ending}"
        unfinished = path.with_suffix(".unfinished")
        for written in write(unfinished, part):
            images += written
            told(images)
        os.replace(unfinished, path)
        parts.append(str(path))
    return Exported(images, tuple(parts), tuple(missing))


def _samples(
    store: Store, batches: Iterable[str], missing: list[str], *, all_takes: bool
) -> Iterator[_Sample]:
    for batch in batches:
        for row in files.images(store, batch):
            if row.current or all_takes:
                path = f"images/batch={batch}/{row.file_name}"
                try:
                    yield _Sample(row, store.get(path))
                except FileNotFoundError:
                    missing.append(path)


def _parts(samples: Iterator[_Sample]) -> Iterator[Iterator[_Sample]]:
    """Yield what goes into each part; every part has to be gone through before the next."""
    for first in samples:

        def part(first: _Sample = first) -> Iterator[_Sample]:
            size = len(first.content)
            yield first
            while size < PART_BYTES and (sample := next(samples, None)):
                size += len(sample.content)
                yield sample

        yield part()


def _write_shard(path: Path, samples: Iterable[_Sample]) -> Iterator[int]:
    """Write a tar as WebDataset reads it: `<key>.<format>`, `<key>.json` and `<key>.txt` for each picture."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        for sample in samples:
            key, _, ending = sample.row.file_name.rpartition(".")
            key = f"{sample.row.batch}/{key}".replace(".", "_")  # a key ends at its first dot
            members = {
                ending: sample.content,
                "json": sample.row.model_dump_json().encode(),
                "txt": (sample.row.prompt or "").encode(),
            }
            for name, content in members.items():
                about = tarfile.TarInfo(f"{key}.{name}")
                about.size = len(content)
                shard.addfile(about, io.BytesIO(content))
            yield 1


def _write_parquet(path: Path, samples: Iterable[_Sample]) -> Iterator[int]:
    """Write Parquet with a column `image` of bytes and path, as `datasets` reads it, before the other columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
    rows = arrow_schema(ImageRow)
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    schema = pa.schema(
        [pa.field("image", image, metadata={"description": "The file, and its name."}), *rows],
        metadata={"huggingface": json.dumps(features)},
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _groups(samples):
            pictures = [{"bytes": sample.content, "path": sample.row.file_name} for sample in group]
            columns = pa.Table.from_pylist([sample.row.model_dump() for sample in group], rows)
            writer.write_table(pa.table([pa.array(pictures, image), *columns.columns], schema=schema))
            yield len(group)


def _groups(samples: Iterable[_Sample]) -> Iterator[list[_Sample]]:
    group: list[_Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += len(sample.content)
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group

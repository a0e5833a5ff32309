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
from functools import partial
from pathlib import Path
from typing import Literal

from ideogram_pipeline.errors import ConfigurationError
from ideogram_pipeline.generation import files
from ideogram_pipeline.generation.rows import ImageRow
from ideogram_pipeline.storage import Store
from ideogram_pipeline.storage.parquet import arrow_schema, columns
from ideogram_pipeline.tables.reviews import ReviewsTable

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
    rejected: int
    """Pictures that were left out because a review rejects them."""


@dataclass(frozen=True, slots=True)
class _Sample:
    row: ImageRow
    content: bytes


class Selection:
    """Which pictures an export takes: the same ones whatever the format."""

    def __init__(
        self,
        store: Store,
        batches: Iterable[str] = (),
        *,
        all_takes: bool = False,
        with_rejected: bool = False,
        reviews: ReviewsTable | None = None,
    ) -> None:
        """Choose among the pictures of batches, or of all that a prompts table has.

        Left out are pictures that were replaced by a later take, whose row was edited since, or whose batch is in no
        table any more, unless `all_takes` are asked for; and those that a review rejects, unless it is `with_rejected`.
        `reviews` are read besides those that the store keeps, and are newer than what it keeps of the same table.

        Raises:
            ConfigurationError: a batch was never run, or none of it can be current.
        """
        known, asked_for = files.batches_with_results(store), files.batches(store)
        for batch in batches:
            if batch not in known:
                raise ConfigurationError(
                    f"The batch {batch!r} was never run; there are {', '.join(known) or 'none'}."
                )
            if batch not in asked_for and not all_takes:
                raise ConfigurationError(
                    f"No prompts table has the batch {batch!r} any more, so that none of its pictures is current. "
                    "Add --all-takes to export them."
                )
        self._store = store
        self._asked_for = asked_for.keys()
        self._all_takes = all_takes
        self._batches = list(dict.fromkeys(batches)) or known
        self._rejected = {
            one.image: one.sha256
            for one in (() if with_rejected else files.all_reviews(store, reviews))
            if one.review == "rejected"
        }

    def __iter__(self) -> Iterator[ImageRow]:
        """Yield the rows, batch by batch; `current` is false where the batch is in no table any more."""
        return (row for row in self._of_batches() if not self._is_rejected(row))

    @property
    def rejected(self) -> int:
        """How many a review rejects; goes through all rows."""
        return sum(self._is_rejected(row) for row in self._of_batches()) if self._rejected else 0

    def _of_batches(self) -> Iterator[ImageRow]:
        for batch in self._batches:
            is_asked_for = batch in self._asked_for
            for row in files.images(self._store, batch):
                if self._all_takes or (row.current and is_asked_for):
                    yield row if is_asked_for else row.model_copy(update={"current": False})

    def _is_rejected(self, row: ImageRow) -> bool:
        return self._rejected.get(_path(row)) == row.sha256


def export(
    store: Store,
    folder: Path,
    into: Format,
    chosen: Selection,
    *,
    told: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write chosen pictures into a new or empty folder; `told` is told how many there are so far.

    The same pictures give the same files. A part has its name only once it is whole.

    Raises:
        ConfigurationError: the folder holds something.
        StoreError: the store can't be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(not there.name.startswith(".") for there in folder.iterdir()):
        raise ConfigurationError(
            f"{str(folder)!r} is not empty: name a new folder, so that no two exports mix."
        )
    missing: list[str] = []
    parts: list[str] = []
    images = 0
    write = partial(_write_shard, _ending(chosen)) if into == "webdataset" else _write_parquet
    ending = "tar" if into == "webdataset" else "parquet"
    for part in _parts(_samples(store, chosen, missing)):
        path = folder / f"part-{len(parts):05}.{ending}"
        unfinished = path.with_suffix(".unfinished")
        for written in write(unfinished, part):
            images += written
            told(images)
        os.replace(unfinished, path)
        parts.append(str(path))
    return Exported(images, tuple(parts), tuple(missing), chosen.rejected)


def _samples(store: Store, rows: Iterable[ImageRow], missing: list[str]) -> Iterator[_Sample]:
    for row in rows:
        try:
            yield _Sample(row, store.get(_path(row)))
        except FileNotFoundError:
            missing.append(_path(row))


def _path(row: ImageRow) -> str:
    return f"images/batch={row.batch}/{row.file_name}"


def _ending(rows: Iterable[ImageRow]) -> str:
    """Return how the pictures of all samples end: loaders learn from the first ones what a sample has.

    Where formats are mixed it is `png` for all; loaders look at the bytes.
    """
    endings = {row.file_name.rpartition(".")[2] for row in rows}
    return endings.pop() if len(endings) == 1 else "png"


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


def _write_shard(ending: str, path: Path, samples: Iterable[_Sample]) -> Iterator[int]:
    """Write a tar as WebDataset reads it: `<key>.<ending>`, `<key>.json` and `<key>.txt` for each picture."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as shard:
        for sample in samples:
            key, _, _ = sample.row.file_name.rpartition(".")
            key = f"{sample.row.batch}/{key}".replace(".", "_")  # a key ends at its first dot
            members = {
                ending: sample.content,
                "json": json.dumps(_always_typed(sample.row), ensure_ascii=False).encode(),
                "txt": (sample.row.prompt or "").encode(),
            }
            for name, content in members.items():
                about = tarfile.TarInfo(f"{key}.{name}")
                about.size = len(content)
                shard.addfile(about, io.BytesIO(content))
            yield 1


def _always_typed(row: ImageRow) -> dict[str, object]:
    """Return a row whose values have the same types in every sample, with no null and no list among them.

    `datasets` takes the types from the first five samples and fails where later ones differ (5.2.0). So a column that
    may be empty is text: what stands in it, as JSON unless it is text already, or nothing.
    """
    cells = row.model_dump(mode="json")
    return {
        column.name: _as_text(cells[column.name]) if column.nullable or column.is_list else cells[column.name]
        for column in columns(ImageRow)
    }


def _as_text(cell: object) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)


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
            cells = pa.Table.from_pylist([sample.row.model_dump() for sample in group], rows)
            writer.write_table(pa.table([pa.array(pictures, image), *cells.columns], schema=schema))
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

"""The store: a root URL under which pictures, tables, plans and the ledger lie.

Nothing here knows what is stored. A write appears whole or not at all; `create` writes only where nothing is yet, and
is what claims between processes and hosts are built from (local disks, S3, GCS and Azure all offer it).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ideogram_pipeline.errors import StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

Result = TypeVar("Result")

REPEAT_FOR_S = 15.0
"""What fails while a run works is repeated for so long: less than an interrupted run is given to let go."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as a listing shows it."""

    path: str
    """Path below the store's root, `/` between folders."""
    size: int
    """Bytes."""
    etag: str | None
    """Changes whenever the content does."""
    modified: datetime
    """UTC, when it was last written, by the store's clock."""


class Store:
    """Objects below one root URL.

    Paths are relative to the root, with `/` between folders. Every method raises `StoreError`, naming the path and the
    cause, where the medium fails; a missing object raises `FileNotFoundError`. The asynchronous methods, which work
    while requests are with fal, repeat what the medium failed before they raise: what they write may be a paid
    request's only trace.
    """

    def __init__(self, url: str, backend: ObjectStore, folder: Path | None) -> None:
        self.url = url
        """The root as it was configured, without credentials."""
        self.folder = folder
        """The root as a local folder, or None where the store is remote."""
        self._backend = backend
        self._root = _identity(folder) if folder else None
        self._durable_folders: set[Path] = set()

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the store at a folder path or an `s3://`, `gs://`, `az://` or `memory://` URL; a folder is created."""
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, MemoryStore, from_url

        try:
            if "://" not in url:
                folder = Path(url).expanduser().resolve()
                return cls(url, LocalStore(folder, mkdir=True), folder)
            if url.startswith("memory://"):
                return cls(url, MemoryStore(), None)
            if not url.startswith(("s3://", "gs://", "az://")):
                raise ValueError("a store is a folder, or an s3://, gs:// or az:// URL")
            return cls(url, from_url(url), None)
        except (OSError, ValueError, BaseError) as error:
            raise StoreError(
                f"The store {url!r} can't be opened: {_first_line(error)}. Check IDEOGRAM_STORE."
            ) from None

    def where(self, path: str) -> str:
        """Return what a person can open: a file path for a local store, a URL otherwise."""
        return str(self.folder / path) if self.folder else f"{self.url.rstrip('/')}/{path}"

    def get(self, path: str) -> bytes:
        """Return an object's bytes."""
        import obstore

        with self._failures("read", path):
            return bytes(obstore.get(self._backend, path).bytes())

    async def get_async(self, path: str) -> bytes:
        """Return an object's bytes."""
        import obstore

        async def once() -> bytes:
            with self._failures("read", path):
                self._check_root()
                return bytes(await (await obstore.get_async(self._backend, path)).bytes_async())

        return await _repeating(once)

    def put(self, path: str, content: bytes) -> str:
        """Write an object, replacing what was there; return its mark, as a listing shows it until the next write."""
        import obstore

        with self._failures("write", path):
            return obstore.put(self._backend, path, content)["e_tag"] or ""

    async def put_async(self, path: str, content: bytes, *, durable: bool = False) -> None:
        """Write an object, replacing what was there; a durable one has survived a power cut when this returns."""
        import obstore

        async def once() -> None:
            with self._failures("write", path):
                self._check_root()
                await obstore.put_async(self._backend, path, content)
                if durable:
                    await self._flush(path)

        await _repeating(once)

    def create(self, path: str, content: bytes, *, durable: bool = False) -> bool:
        """Write an object only if nothing is there yet; return whether this call wrote it.

        A durable one has survived a power cut when this returns True.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._failures("create", path):
            try:
                obstore.put(self._backend, path, content, mode="create")
            except AlreadyExistsError:
                return False
            if durable and self.folder:
                self._flush_local(self.folder / path, self.folder)
        return True

    async def create_async(self, path: str, content: bytes) -> bool:
        """Write an object durably, only if nothing is there yet; return whether this call wrote it.

        The very same content there counts as written by this call: a write may have succeeded that seemed to fail.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        async def once() -> bool:
            with self._failures("create", path):
                self._check_root()
                try:
                    await obstore.put_async(self._backend, path, content, mode="create")
                except AlreadyExistsError:
                    if await self.get_async(path) != content:
                        return False
                await self._flush(path)
                return True

        return await _repeating(once)

    def delete(self, path: str) -> None:
        """Remove an object; one that isn't there is no error."""
        import obstore

        with self._failures("delete", path):
            try:
                obstore.delete(self._backend, path)
            except FileNotFoundError:
                return

    def exists(self, path: str) -> bool:
        """Say whether an object is there."""
        import obstore

        with self._failures("look up", path):
            try:
                obstore.head(self._backend, path)
            except FileNotFoundError:
                return False
        return True

    def etag(self, path: str) -> str:
        """Return an object's mark of its content as the store keeps it, without reading the object."""
        import obstore

        with self._failures("look up", path):
            return obstore.head(self._backend, path)["e_tag"] or ""

    def objects(self, folder: str) -> Iterator[StoredObject]:
        """Yield every object below a folder, in no order."""
        import obstore

        with self._failures("list", folder):
            for chunk in obstore.list(self._backend, prefix=folder):
                for meta in chunk:
                    yield StoredObject(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly below a folder, sorted."""
        import obstore

        with self._failures("list", folder):
            listing = obstore.list_with_delimiter(self._backend, prefix=folder)
            return sorted(prefix.rsplit("/", 1)[-1] for prefix in listing["common_prefixes"])

    def _check_root(self) -> None:
        """Fail where a local root is no longer the folder that was opened: it would be made anew, and empty."""
        if self.folder and _identity(self.folder) != self._root:
            raise OSError("the store's folder was replaced by another one since it was opened")

    async def _flush(self, path: str) -> None:
        """Bring a local file and the names that lead to it from the system's memory to the disk."""
        if self.folder:
            await asyncio.to_thread(self._flush_local, self.folder / path, self.folder)

    def _flush_local(self, file: Path, root: Path) -> None:
        _fsync(file)
        named = []
        for folder in file.parents:
            _fsync(folder)
            if folder == root or folder in self._durable_folders:
                break
            named.append(folder)
        self._durable_folders.update(named)

    @contextmanager
    def _failures(self, verb: str, path: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            if self.folder and not self.folder.is_dir():
                raise StoreError(
                    f"Can't {verb} {self.where(path)!r}: the store's folder {str(self.folder)!r} is gone. "
                    "Bring it back and run again."
                ) from None
            raise FileNotFoundError(f"There is no {self.where(path)!r}.") from None
        except (OSError, ValueError, BaseError) as error:  # a ValueError for a path that leaves the root
            raise StoreError(f"Can't {verb} {self.where(path)!r}: {_first_line(error)}") from error


async def _repeating(call: Callable[[], Awaitable[Result]]) -> Result:
    """Make a call until it succeeds, `REPEAT_FOR_S` are over, or the path itself is what is wrong."""
    import stamina

    def may_pass(error: Exception) -> bool:
        return isinstance(error, StoreError) and not isinstance(error.__cause__, ValueError)

    try:
        return await call()  # nearly every call, for which stamina would be the dearest part
    except StoreError as error:
        if not may_pass(error):
            raise
    async for attempt in stamina.retry_context(
        on=may_pass, attempts=None, timeout=REPEAT_FOR_S, wait_initial=0.1, wait_max=2.0
    ):
        with attempt:
            return await call()
    raise AssertionError("stamina either returns or raises")


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]

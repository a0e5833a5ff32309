"""The store: a root URL under which pictures, tables, plans and the ledger lie.

Nothing here knows what is stored. A write appears whole or not at all; `create` writes only where nothing is yet, and
is what claims between processes and hosts are built from (local disks, S3, GCS and Azure all offer it).
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

from ideogram_pipeline.errors import StoreError
from ideogram_pipeline.storage import remote
from ideogram_pipeline.threads import to_its_end

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

Result = TypeVar("Result")

REPEAT_FOR_S = 15.0
"""What fails while a run works is repeated for so long: less than an interrupted run is given to let go."""

LETTING_GO_S = 0.05
"""obstore's threads hand over their last answer in less; cut off by the end of Python (before 3.14) they abort it."""
_REMEMBERED = 1000
"""Folders that are known to be on the disk; each that is forgotten costs one flush more."""
_PAGE = 1000
_PART = 5 * 1024 * 1024
_READ_PART = 256 * 1024
_LEFTOVER = re.compile(r"#\d+$|(^|/)\.[0-9a-f]{32}\.new$")
_NO_NAME = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|#\d+$")
"""In the name of a file that can't be an object, or, as far as anybody else sees, isn't one yet."""
_BEGAN_AT = time.time()
_LARGE = 256 * 1024
"""Bytes. What is larger and on the disk needn't stay in the system's memory as well: a run doesn't read it again."""


@atexit.register
def _let_go() -> None:
    time.sleep(LETTING_GO_S)


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

    def is_older_than(self, age: timedelta) -> bool:
        """Say whether it was last written longer ago than that."""
        return datetime.now(UTC) - self.modified > age


class Store:
    """Objects below one root URL.

    Paths are relative to the root, with `/` between folders. Every method raises `StoreError`, naming the path and the
    cause, where the medium fails; a missing object raises `FileNotFoundError`. What an object store fails is repeated
    for some seconds before that, where it is safe. The asynchronous methods, which work while requests are with fal,
    repeat everything, and on a local disk too: what they write may be a paid request's only trace.
    """

    def __init__(
        self, url: str, backend: ObjectStore, *, folder: Path | None = None, s3: remote.S3 | None = None
    ) -> None:
        self.url = url
        """The root as it was configured, without credentials."""
        self.folder = folder
        """The root as a local folder, or None where the store is remote."""
        self.requests: Counter[str] = Counter()
        """Requests made through this object, by kind (`read`, `write`, `create`, `look up`, `list`, `delete`), as an
        object store bills them: a page of a listing and a part of a large write are one each. Repeats don't count.
        """
        self._backend = backend
        self._s3 = s3
        self._root = _identity(folder) if folder else None
        self._durable_folders: set[str] = set()
        self._counting = threading.Lock()

    @classmethod
    def open(cls, url: str) -> Store:
        """Open the store at a folder path or an `s3://`, `gs://`, `az://` or `memory://` URL; a folder is created."""
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, MemoryStore

        try:
            if "://" not in url:
                folder = Path(url).expanduser().resolve()
                return cls(url, LocalStore(folder, mkdir=True), folder=folder)
            if url.startswith("memory://"):
                return cls(url, MemoryStore())
            if url.startswith("s3://"):
                s3 = remote.open_s3(url)
                return cls(url, s3.backend, s3=s3)
            if not url.startswith(remote.SCHEMES):
                raise ValueError(
                    "a store is a folder, or an s3://, az:// or gs:// URL; gs:// has not been tried yet"
                )
            return cls(url, remote.open_other(url))
        except (OSError, ValueError, BaseError) as error:
            raise StoreError(
                f"The store {url!r} can't be opened: {_first_line(error).rstrip('.')}."
            ) from None

    def where(self, path: str) -> str:
        """Return what a person can open: a file path for a local store, a URL otherwise."""
        return str(self.folder / path) if self.folder else f"{self.url.rstrip('/')}/{path}"

    @property
    def s3(self) -> remote.S3 | None:
        """The bucket, for an S3 store; None for every other one."""
        return self._s3

    @property
    def is_remote(self) -> bool:
        """Whether it is a bucket of somebody's servers."""
        return self.url.startswith(remote.SCHEMES)

    @property
    def endpoint(self) -> str | None:
        """Base URL of the server that answers for an S3 store; None for every other one."""
        return self._s3.endpoint if self._s3 else None

    async def presigned(self, path: str, *, lasting_s: float) -> str | None:
        """Return a URL under which anybody can read an object, at least for so many seconds.

        None where there is none: outside S3, on a server that not everybody trusts, or where the credentials may end
        sooner, and the URL with them. The URL opens the object to whoever knows it: it belongs in no log, file or
        exception.
        """
        import obstore

        if self._s3 is None or self._s3.is_private or lasting_s > remote.SIGNED_FOR.total_seconds():
            return None
        with self._failures("sign a URL of", path, requests=0):
            if not await asyncio.to_thread(self._s3.credentials_last, lasting_s):
                return None
            return await obstore.sign_async(self._s3.backend, "GET", path, remote.SIGNED_FOR)

    def get(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """Return an object's bytes; one of more than `max_bytes` is a `StoreError`, and is not read."""
        import obstore

        with self._failures("read", path):
            found = obstore.get(self._backend, path)
            if max_bytes is not None and found.meta["size"] > max_bytes:
                raise ValueError(f"it is larger than {max_bytes // 1024 // 1024} MiB")
            return bytes(found.bytes())

    def parts(self, path: str) -> Iterator[bytes]:
        """Yield an object's bytes in parts, for those who don't need all of a large one at once, or ever."""
        import obstore

        with self._failures("read", path):
            for part in obstore.get(self._backend, path).stream(min_chunk_size=_READ_PART):
                yield bytes(part)

    async def get_async(self, path: str) -> bytes:
        """Return an object's bytes."""
        import obstore

        async def once() -> bytes:
            with self._failures("read", path):
                self._check_root()
                return bytes(await (await obstore.get_async(self._backend, path)).bytes_async())

        return await _repeating(once)

    def put(self, path: str, content: bytes) -> str:
        """Write an object, replacing what was there; return its mark, as a listing shows it until the next write.

        What is large goes to an object store in parts.
        """
        import obstore

        with self._failures("write", path, _requests_of(len(content))):
            self._check_root()
            return obstore.put(self._backend, path, content)["e_tag"] or ""

    def put_whole(self, path: str, content: bytes) -> str:
        """Write an object as `put` does, into a folder that others read whole: nothing half-written ever shows there.

        On a local disk it gets its name once it is written; before that it begins with a dot, which readers leave out.
        """
        import obstore

        if not self.folder:
            return self.put(path, content)
        folder, _, _ = path.rpartition("/")
        aside = f"{folder}/.{uuid4().hex}.new".lstrip("/")
        self.put(aside, content)
        with self._failures("write", path, requests=0):
            obstore.rename(self._backend, aside, path)
        return self.etag(path)

    def put_parts(self, path: str, parts: Iterable[bytes]) -> None:
        """Write an object of parts that needn't be in memory together, whole or not at all, over what was there."""
        import obstore

        remaining = iter(parts)
        first: list[bytes] = []
        size = 0
        for part in remaining:
            first.append(part)
            size += len(part)
            if size > _PART:
                break
        else:
            self.put(path, b"".join(first))
            return
        written = 0

        def counted() -> Iterator[bytes]:
            nonlocal written
            for part in chain([b"".join(first)], remaining):
                written += len(part)
                yield part

        with self._failures("write", path, requests=0):
            obstore.put(self._backend, path, counted(), chunk_size=_PART, max_concurrency=1)
        self._count("write", _requests_of(written))

    async def put_async(self, path: str, content: bytes, *, durable: bool = False) -> None:
        """Write an object, replacing what was there; a durable one has survived a power cut when this returns."""
        import obstore

        def here() -> None:
            with self._failures("write", path, _requests_of(len(content))):
                self._check_root()
                obstore.put(self._backend, path, content)
                if durable:
                    self._flush(path)

        async def once() -> None:
            if self.folder:
                await to_its_end(here)
                return
            with self._failures("write", path, _requests_of(len(content))):
                await obstore.put_async(self._backend, path, content)

        await _repeating(once)

    def create(self, path: str, content: bytes, *, durable: bool = False) -> bool:
        """Write an object only if nothing is there yet; return whether this call wrote it.

        A durable one has survived a power cut when this returns True. The very same content there counts as written by
        this call: a write may have succeeded that seemed to fail.
        """
        once = partial(self._created, path, content, durable=durable)
        return once() if self.folder else _repeating_here(once)

    async def create_async(self, path: str, content: bytes) -> bool:
        """Write an object durably, only if nothing is there yet; return whether this call wrote it.

        The very same content there counts as written by this call: a write may have succeeded that seemed to fail.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        async def once() -> bool:
            if self.folder:
                return await to_its_end(partial(self._created, path, content, durable=True))
            with self._failures("create", path):
                try:
                    await obstore.put_async(self._backend, path, content, mode="create")
                except AlreadyExistsError:
                    return await asyncio.to_thread(self._there_meanwhile, path) == content
                return True

        return await _repeating(once)

    def delete(self, path: str) -> None:
        """Remove an object; one that isn't there is no error."""
        import obstore

        def once() -> None:
            with self._failures("delete", path):
                try:
                    obstore.delete(self._backend, path)
                except FileNotFoundError as error:
                    if remote.bucket_is_gone(error):
                        raise

        return once() if self.folder else _repeating_here(once)

    def delete_empty_folder(self, folder: str) -> None:
        """Remove a folder of a local disk if it holds nothing but empty folders; object stores have none."""
        if self.folder:
            for parent, _, _ in os.walk(self.folder / folder, topdown=False):
                with suppress(OSError):
                    os.rmdir(parent)

    def delete_empty(self, path: str) -> bool:
        """Remove an object of no bytes, as a power cut leaves one of a local disk; return whether there was one.

        Of several that find it so on a disk, nobody removes what another one has written in its place meanwhile.
        """
        try:
            if self.folder:
                with self._failures("delete", path):
                    return _unlink_empty(self.where(path))
            if self.get(path):
                return False
        except FileNotFoundError:
            return False
        self.delete(path)
        return True

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
        """Yield every object below a folder, in no order. Files whose names no store can hold are passed over."""
        import obstore

        if self.folder:
            yield from self._local_objects(folder)
            return
        with self._failures("list", folder):
            for page, chunk in enumerate(obstore.list(self._backend, prefix=folder, chunk_size=_PAGE)):
                if page:
                    self._count("list")
                yield from map(_stored, chunk)

    async def objects_async(self, folder: str) -> list[StoredObject]:
        """Return every object below a folder, in no order."""
        import obstore

        async def once() -> list[StoredObject]:
            if self.folder:
                with self._failures("list", folder, requests=0):
                    self._check_root()
                return await asyncio.to_thread(list, self._local_objects(folder))
            with self._failures("list", folder):
                listing = await obstore.list(self._backend, prefix=folder, chunk_size=_PAGE).collect_async()
                self._count("list", max(len(listing) - 1, 0) // _PAGE)
                return list(map(_stored, listing))

        return await _repeating(once)

    async def delete_async(self, paths: Sequence[str]) -> None:
        """Remove objects, in as few requests as the medium allows; those that aren't there are no error."""
        import obstore

        async def once() -> None:
            with self._failures("delete", paths[0]):
                try:
                    await obstore.delete_async(self._backend, paths)
                except FileNotFoundError as error:
                    if remote.bucket_is_gone(error):
                        raise
                    # A missing object ends the call where the medium deletes one by one; the rest is still to do.
                    for path in paths:
                        with suppress(FileNotFoundError):
                            await obstore.delete_async(self._backend, path)

        if paths:
            await _repeating(once)

    def leftovers(self, folder: str, *, but: Callable[[str], bool] = lambda _: False) -> list[str]:
        """Return the half-written files below a folder, `name#1`, of processes that were killed, or that write now.

        Only a local disk has any; nothing else shows them. Folders with names for which `but` holds aren't looked into.
        """
        if not self.folder:
            return []
        found = []
        for parent, folders, names in os.walk(self.folder / folder):
            folders[:] = [name for name in folders if not but(name)]
            below = Path(parent).relative_to(self.folder)
            found += [(below / name).as_posix() for name in names if _LEFTOVER.search(name)]
        return found

    def delete_leftover(self, path: str) -> None:
        """Remove a half-written file; one that isn't there is no error."""
        assert _LEFTOVER.search(path)
        with self._failures("delete", path):
            Path(self.where(path)).unlink(missing_ok=True)

    def sweep(self, folder: str, *, but: Callable[[str], bool] = lambda _: False) -> int:
        """Remove the half-written files below a folder that were left before this process began; say how many.

        Whoever writes has done so for less time than that, or begins anew where its file is taken from it. Folders are
        left out as by `leftovers`.
        """
        swept = 0
        for path in self.leftovers(folder, but=but):
            with suppress(FileNotFoundError):
                if os.stat(self.where(path)).st_mtime < _BEGAN_AT:
                    self.delete_leftover(path)
                    swept += 1
        return swept

    def folders(self, folder: str) -> list[str]:
        """Return the names of the folders directly below a folder, sorted."""
        import obstore

        with self._failures("list", folder):
            if self.folder:
                try:
                    with os.scandir(self.folder / folder) as found:
                        return sorted(
                            one.name for one in found if one.is_dir() and not _NO_NAME.search(one.name)
                        )
                except FileNotFoundError:
                    if not self.folder.is_dir():
                        raise
                    return []
            listing = obstore.list_with_delimiter(self._backend, prefix=folder)
            return sorted(prefix.rsplit("/", 1)[-1] for prefix in listing["common_prefixes"])

    def _local_objects(self, folder: str) -> Iterator[StoredObject]:
        """Yield the objects below a folder of a local disk.

        obstore's listing ends at a name that no object can have, such as macOS's `Icon\r`. Then the rest is walked.
        """
        import obstore
        from obstore.exceptions import GenericError, InvalidPathError

        seen = set()
        with self._failures("list", folder):
            try:
                for chunk in obstore.list(self._backend, prefix=folder, chunk_size=_PAGE):
                    for meta in chunk:
                        seen.add(meta["path"])
                        yield _stored(meta)
            except (GenericError, InvalidPathError):
                for path in self._walked(folder):
                    if path not in seen:
                        with suppress(FileNotFoundError):  # it went meanwhile
                            yield _stored(obstore.head(self._backend, path))

    def _walked(self, folder: str) -> Iterator[str]:
        """Yield the paths of what a local folder holds, whole and under a name that an object can have.

        Raises:
            OSError: a folder can't be read.
        """
        assert self.folder is not None

        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        entered = set()
        for parent, folders, names in os.walk(self.folder / folder, onerror=fail, followlinks=True):
            here = os.stat(parent)
            if (here.st_dev, here.st_ino) in entered:
                folders.clear()  # links may lead round in a circle
                continue
            entered.add((here.st_dev, here.st_ino))
            folders[:] = [name for name in folders if not _NO_NAME.search(name)]
            below = Path(parent).relative_to(self.folder)
            for name in names:
                if not _NO_NAME.search(name) and os.path.isfile(os.path.join(parent, name)):
                    yield (below / name).as_posix()

    def _check_root(self) -> None:
        """Fail where a local root is no longer the folder that was opened: it would be made anew, and empty."""
        if self.folder and _identity(self.folder) != self._root:
            raise OSError("the store's folder was replaced by another one since it was opened")

    def _created(self, path: str, content: bytes, *, durable: bool) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._failures("create", path):
            self._check_root()
            try:
                obstore.put(self._backend, path, content, mode="create")
            except AlreadyExistsError:
                if self._there_meanwhile(path) != content:
                    return False
            if durable:
                self._flush(path)
            return True

    def _flush(self, path: str) -> None:
        """Bring a local file and the names that lead to it from the system's memory to the disk."""
        if self.folder is None:
            return
        # As text: a flush takes twice as long with path objects.
        name, root = self.where(path), str(self.folder)
        _fsync(name)
        named = []
        while name != root:
            name = os.path.dirname(name)
            _fsync(name)
            if name in self._durable_folders:
                break
            named.append(name)
        if len(self._durable_folders) >= _REMEMBERED:
            self._durable_folders.clear()
        self._durable_folders.update(named)

    def _there_meanwhile(self, path: str) -> bytes:
        """Return what keeps an object from being created."""
        try:
            return self.get(path)
        except FileNotFoundError:
            # S3 answers so while another write of the object is under way, which may come to nothing.
            raise OSError("somebody else is writing it at this moment") from None

    def _count(self, kind: str, number: int = 1) -> None:
        with self._counting:
            self.requests[kind] += number

    @contextmanager
    def _failures(self, verb: str, path: str, requests: int = 1) -> Iterator[None]:
        from obstore.exceptions import BaseError

        self._count(verb, requests)
        try:
            yield
        except FileNotFoundError as error:
            if self.folder and not self.folder.is_dir():
                raise StoreError(
                    f"Can't {verb} {self.where(path)!r}: the store's folder {str(self.folder)!r} is gone. "
                    "Bring it back and run again."
                ) from None
            if remote.bucket_is_gone(error):
                raise StoreError(
                    f"Can't {verb} {self.where(path)!r}: {remote.explained(error, self.url)}."
                ) from None
            if verb in ("write", "create"):
                raise StoreError(
                    f"Can't {verb} {self.where(path)!r}: it was taken away while it was written."
                ) from None
            raise FileNotFoundError(f"There is no {self.where(path)!r}.") from None
        except ValueError as error:  # a path that leaves the root, an object that is too large
            raise StoreError(f"Can't {verb} {self.where(path)!r}: {_first_line(error)}") from error
        except BaseError as error:
            if self.url.startswith(remote.SCHEMES):
                raise StoreError(
                    f"Can't {verb} {self.where(path)!r}: {remote.explained(error, self.url)}."
                ) from None  # an answer may quote what was signed
            raise StoreError(f"Can't {verb} {self.where(path)!r}: {_first_line(error)}") from error
        except OSError as error:
            raise StoreError(f"Can't {verb} {self.where(path)!r}: {_first_line(error)}") from error


async def _repeating(call: Callable[[], Awaitable[Result]]) -> Result:
    """Make a call until it succeeds, `REPEAT_FOR_S` are over, or the path itself is what is wrong."""
    import stamina

    try:
        return await call()  # nearly every call, for which stamina would be the dearest part
    except StoreError as error:
        if not _may_pass(error):
            raise
    async for attempt in stamina.retry_context(
        on=_may_pass, attempts=None, timeout=REPEAT_FOR_S, wait_initial=0.1, wait_max=2.0
    ):
        with attempt:
            return await call()
    raise AssertionError("stamina either returns or raises")


def _repeating_here(call: Callable[[], Result]) -> Result:
    """Do the same for a call that obstore does not repeat, because it may have had its effect."""
    import stamina

    try:
        return call()
    except StoreError as error:
        if not _may_pass(error):
            raise
    for attempt in stamina.retry_context(
        on=_may_pass, attempts=None, timeout=REPEAT_FOR_S, wait_initial=0.1, wait_max=2.0
    ):
        with attempt:
            return call()
    raise AssertionError("stamina either returns or raises")


def _may_pass(error: Exception) -> bool:
    return isinstance(error, StoreError) and not isinstance(error.__cause__, ValueError)


def _requests_of(size: int) -> int:
    """Return the requests that a write takes: large ones go in parts, with one to begin and one to end them."""
    return 1 if size <= _PART else -(-size // _PART) + 2


def _stored(meta: ObjectMeta) -> StoredObject:
    return StoredObject(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"])


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _unlink_empty(path: str) -> bool:
    """Unlink a file of no bytes; who else would do so waits, and sees that the name is another file's by then."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        held, named = os.fstat(descriptor), os.stat(path)
        if named.st_size or (held.st_dev, held.st_ino) != (named.st_dev, named.st_ino):
            return False
        os.unlink(path)
        return True
    finally:
        os.close(descriptor)


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if hasattr(os, "posix_fadvise") and os.fstat(descriptor).st_size > _LARGE:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]

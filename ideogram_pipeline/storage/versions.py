"""Earlier versions of objects: a bucket may keep what was overwritten or deleted, and so what was erased.

obstore lists and deletes no versions, boto3 does, in every bucket that speaks S3. Google's and Azure's may keep deleted
objects too (soft delete, versions). That is untried here, so it is only said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ideogram_pipeline.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

_ELSEWHERE = (
    "deleted objects and earlier versions (soft delete, versioning), which can't be seen through the store"
)
"""What Google's and Azure's buckets may keep."""
_PERMISSIONS = "s3:GetBucketVersioning, s3:ListBucketVersions and s3:DeleteObjectVersion"
_DENIED = "denied"
_AT_ONCE = 1000
"""Versions that one call deletes."""
_UNKNOWN_CALL = frozenset({"NotImplemented", "MethodNotAllowed", "501", "405"})
"""How servers answer that have no versions at all."""


class Version(NamedTuple):
    """One version of an object, or the mark that it was deleted."""

    path: str
    """The object, as the store calls it; what a console makes as a folder ends with `/`."""
    id: str
    """The bucket's id of the version."""
    is_latest: bool
    """Whether nothing newer is there."""
    is_marker: bool
    """Whether it says that the object was deleted."""

    @property
    def is_folder(self) -> bool:
        """Whether it is what a console makes as a folder."""
        return self.path.endswith("/")


@dataclass(frozen=True, slots=True)
class Purged:
    """What became of earlier versions."""

    deleted: int
    """Versions and marks of deletion that are gone."""
    left: tuple[str, ...]
    """What remains, or may remain, a line each."""


def keeping(store: Store) -> str:
    """Say that a store keeps what is deleted from it, and what an erasure needs; empty where it keeps nothing."""
    bucket = _bucket_of(store)
    if bucket is None:
        if not store.is_remote:
            return ""
        return f"{store.url} may keep {_ELSEWHERE}. `erase` can't delete them, says so, and ends with exit code 3"
    status, locked = bucket.versioning(), bucket.is_locked()
    if not status and not locked:
        return ""
    if status == _DENIED:
        return f"nobody can tell whether the bucket keeps earlier versions: allow {_PERMISSIONS}"
    lock = "; its object lock may forbid that" if locked else ""
    return (
        f"the bucket keeps earlier versions of objects ({status or 'object lock'}). `erase` deletes those of what it "
        f"takes back, and needs {_PERMISSIONS}{lock}"
    )


def purge(store: Store, wanted: Callable[[Iterable[Version]], Sequence[Version]]) -> Purged:
    """Delete the versions of objects that are `wanted` of all there are, in that order; marks of deletion last of all.

    What can't be deleted, because of an object lock or a missing permission, is said.
    """
    bucket = _bucket_of(store)
    if bucket is None:
        return Purged(0, (_in_console(store),) if store.is_remote else ())
    status = bucket.versioning()
    try:
        found = wanted(bucket.versions())
    except bucket.errors as error:
        code = _code(error)
        if not status or code in _UNKNOWN_CALL:
            return Purged(0, ())  # it never kept any
        return Purged(
            0,
            (
                f"the earlier versions of the bucket can't be listed ({code}). Allow {_PERMISSIONS}, and erase again",
            ),
        )
    contents = [one for one in found if not one.is_marker]
    refused = dict(bucket.delete(contents))
    held = {one.path for one in refused}
    # A mark of deletion that went before its versions would bring them back.
    marks = [one for one in found if one.is_marker and one.path not in held]
    refused |= dict(bucket.delete(marks))
    return Purged(
        len(contents) + len(marks) - len(refused),
        tuple(f"version {one.id} of {one.path} ({code})" for one, code in refused.items()),
    )


def _in_console(store: Store) -> str:
    return f"perhaps {_ELSEWHERE}: delete them in the console of {store.url}"


class _Bucket:
    """An S3 bucket as boto3 reaches it."""

    def __init__(self, client: Any, name: str, prefix: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        self.errors = (BotoCoreError, ClientError)
        self._client = client
        self._name = name
        self._prefix = f"{prefix}/" if prefix else ""

    def versioning(self) -> str:
        """Return `Enabled`, `Suspended`, `denied` where nobody may ask, and nothing where it never kept any."""
        try:
            return str(self._client.get_bucket_versioning(Bucket=self._name).get("Status", ""))
        except self.errors as error:
            return "" if _code(error) in _UNKNOWN_CALL else _DENIED

    def is_locked(self) -> bool:
        """Say whether the bucket has an object lock, as far as it tells."""
        try:
            found = self._client.get_object_lock_configuration(Bucket=self._name)
        except self.errors:
            return False
        return bool(found.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def versions(self) -> Iterator[Version]:
        """Yield every version of every object of the store."""
        pages = self._client.get_paginator("list_object_versions").paginate(
            Bucket=self._name, Prefix=self._prefix
        )
        for page in pages:
            for kind in ("Versions", "DeleteMarkers"):
                for one in page.get(kind, ()):
                    yield Version(
                        one["Key"].removeprefix(self._prefix),
                        one["VersionId"],
                        one["IsLatest"],
                        kind == "DeleteMarkers",
                    )

    def delete(self, versions: Sequence[Version]) -> Iterator[tuple[Version, str]]:
        """Delete versions, and yield those that can't be, each with the bucket's code for why."""
        for start in range(0, len(versions), _AT_ONCE):
            some = versions[start : start + _AT_ONCE]
            named = [{"Key": f"{self._prefix}{one.path}", "VersionId": one.id} for one in some]
            try:
                done = self._client.delete_objects(
                    Bucket=self._name, Delete={"Objects": named, "Quiet": True}
                )
            except self.errors as error:
                yield from ((one, _code(error)) for one in some)
                continue
            refused: Mapping[tuple[str, str], str] = {
                (one["Key"], one.get("VersionId", "")): one.get("Code", "") for one in done.get("Errors", ())
            }
            for one, name in zip(some, named, strict=True):
                if (code := refused.get((name["Key"], name["VersionId"]))) is not None:
                    yield one, code


def _bucket_of(store: Store) -> _Bucket | None:
    """Return the store's bucket as boto3 reaches it, with the credentials that the store is opened with."""
    if store.s3 is None:
        return None
    from botocore.config import Config
    from botocore.session import Session

    from ideogram_pipeline.storage.remote import trust

    session = Session()
    trust(session)
    client = session.create_client(
        "s3",
        region_name=store.s3.region,
        endpoint_url=store.s3.endpoint,
        config=Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "total_max_attempts": 5}),
    )
    name, _, prefix = store.url.partition("://")[2].partition("/")
    return _Bucket(client, name, prefix.strip("/"))


def _code(error: Any) -> str:
    told = getattr(error, "response", {}).get("Error", {}).get("Code", "")
    return str(told) or type(error).__name__

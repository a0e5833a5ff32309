"""Object stores: how they are opened, with whose credentials, and what their errors mean to a person.

Amazon's credentials, region and endpoint are looked for as boto3 does (environment, profile, SSO, roles, instance), so
that what works for the AWS command line works here. Other servers that speak S3 are named by `AWS_ENDPOINT_URL_S3` or
`AWS_ENDPOINT_URL`. Google's and Azure's are found by obstore, from their own variables.

Every call is repeated by obstore where that is safe, for `REPEAT_FOR_S`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Store

SCHEMES = ("s3://", "gs://", "az://")
"""How the URLs of object stores begin."""
REPEAT_FOR_S = 10.0
"""obstore repeats a call that failed until it began so many seconds ago."""
SIGNED_FOR = timedelta(days=7)
"""A signed URL lives at most so long (AWS, Signature Version 4)."""

_CREDENTIALS_FOR = timedelta(minutes=10)
"""Credentials are asked for again after so long. botocore hands out none that end sooner, if it can renew them."""
_STALLED = timedelta(seconds=30)
_TRANSFER = timedelta(minutes=10)

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")


@dataclass(frozen=True, slots=True)
class S3:
    """An opened S3 bucket, or what lies below a prefix in it."""

    backend: S3Store
    """The objects."""
    endpoint: str
    """Base URL of the server."""
    region: str
    """Region that requests are signed for."""
    credentials: Credentials
    """botocore's; they renew themselves."""

    def credentials_last(self, seconds: float) -> bool:
        """Say whether the credentials of now are certain to be accepted for so many seconds more."""
        from botocore.credentials import RefreshableCredentials

        if not self.credentials.get_frozen_credentials().token:
            return True
        if not isinstance(self.credentials, RefreshableCredentials):
            return False  # a token whose end nobody knows
        return not self.credentials.refresh_needed(refresh_in=int(seconds))


def open_s3(url: str) -> S3:
    """Open an `s3://bucket/prefix`; nothing is asked of the server yet.

    Raises:
        ValueError: the URL names no bucket, there are no credentials, or AWS is not configured as it should be.
    """
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Store

    bucket, prefix = _bucket(url)
    try:
        session = Session()
        if session.get_credentials() is None:
            raise ValueError(
                "there are no AWS credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, log "
                "in with `aws sso login`, or give the machine a role"
            )
        region = os.environ.get("AWS_REGION") or session.get_config_variable("region") or "us-east-1"
        configured = ConfiguredEndpointProvider(
            session.full_config, session.get_scoped_config(), "s3"
        ).provide()
        provider = Boto3CredentialProvider(session, ttl=_CREDENTIALS_FOR)
    except BotoCoreError as error:
        raise ValueError(str(error)) from None
    endpoint = configured or f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    backend = S3Store(
        bucket,
        prefix=prefix,
        endpoint=endpoint,
        region=region,
        virtual_hosted_style_request=False,
        credential_provider=provider,
        client_options=_client(allow_http=endpoint.startswith("http://")),
        retry_config=_retries(),
    )
    return S3(backend, endpoint, region, provider.credentials)


def open_other(url: str) -> ObjectStore:
    """Open a `gs://bucket/prefix` or an `az://container/prefix`.

    Raises:
        ValueError: the URL names no bucket.
        BaseError: obstore finds no account or no credentials.
    """
    from obstore.store import from_url

    _bucket(url)
    return from_url(url, client_options=_client(allow_http=False), retry_config=_retries())


def bucket_is_gone(error: Exception) -> bool:
    """Say whether an error means that the whole bucket isn't there, rather than one object."""
    return _BY_CODE.get(_code(error)) == "gone"


def explained(error: Exception, url: str) -> str:
    """Return what an object store's error means, and what to do about it. It quotes no answer: one may hold keys."""
    code, found = _code(error), _STATUS.search(str(error))
    status = found[1] if found else ""
    if not status:
        return _without_an_answer(_first_line(error), url)
    kind = (
        _BY_CODE.get(code) or _BY_STATUS.get(status) or ("elsewhere" if status.startswith("3") else "other")
    )
    return _MEANINGS[kind].format(
        answer=f"{status} {code}".rstrip(), bucket=_bucket(url)[0], seconds=REPEAT_FOR_S
    )


def _without_an_answer(said: str, url: str) -> str:
    if "redirect" in said.lower():
        return _MEANINGS["elsewhere"].format(bucket=_bucket(url)[0])
    if "credential provider" in said:
        return f"the credentials can't be had: {said.partition('provider: ')[2]}. Log in again"
    variable = " and AWS_ENDPOINT_URL" if url.startswith("s3://") else ""
    return f"the store does not answer ({said.rpartition(' - ')[2]}). Check the network{variable}; {_NOTHING_IS_LOST}"


_NOTHING_IS_LOST = "then run again: what was paid for is fetched"
_MEANINGS = {
    "gone": "the bucket {bucket!r} is not there. Bring it back or correct its name; " + _NOTHING_IS_LOST,
    "elsewhere": "the bucket {bucket!r} lies in another region. Set AWS_REGION to its own",
    "key": "the credentials are not accepted ({answer}). Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "AWS_PROFILE; log in again if they have expired",
    "denied": "access is denied ({answer}). The credentials have to allow listing the bucket {bucket!r}, and reading, "
    "writing and deleting objects in it",
    "clock": "this machine's clock is wrong, so that no signature is accepted. Set it; " + _NOTHING_IS_LOST,
    "lacking": "the server can't do what was asked of it ({answer}). Claims need conditional writes "
    "(`If-None-Match: *`); set IDEOGRAM_STORE to a store that has them",
    "busy": "the store takes no more requests for now ({answer}), and was asked for {seconds:g} s. Wait, or lower "
    "IDEOGRAM_MAX_IN_FLIGHT; " + _NOTHING_IS_LOST,
    "other": "the store answers {answer}. Wait a while; " + _NOTHING_IS_LOST,
}
_BY_CODE = {
    "NoSuchBucket": "gone",
    "ContainerNotFound": "gone",
    "PermanentRedirect": "elsewhere",
    "TemporaryRedirect": "elsewhere",
    "AuthorizationHeaderMalformed": "elsewhere",
    "IllegalLocationConstraintException": "elsewhere",
    "InvalidAccessKeyId": "key",
    "SignatureDoesNotMatch": "key",
    "ExpiredToken": "key",
    "InvalidToken": "key",
    "RequestTimeTooSkewed": "clock",
    "NotImplemented": "lacking",
}
_BY_STATUS = {"501": "lacking", "401": "key", "403": "denied", "429": "busy", "503": "busy"}


def _bucket(url: str) -> tuple[str, str | None]:
    """Return the bucket's name and the prefix, if there is one."""
    bucket, _, prefix = url.partition("://")[2].partition("/")
    if not bucket or "?" in url or "#" in url:
        raise ValueError(f"write it as {urlsplit(url).scheme}://bucket/folder")
    return bucket, prefix.strip("/") or None


def _client(*, allow_http: bool) -> ClientConfig:
    return {"allow_http": allow_http, "read_timeout": _STALLED, "timeout": _TRANSFER}


def _retries() -> RetryConfig:
    return {
        "max_retries": 20,
        "retry_timeout": timedelta(seconds=REPEAT_FOR_S),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=2),
            "base": 2,
        },
    }


def _code(error: Exception) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]

"""Object stores: how they are opened, with whose credentials, and what their errors mean to a person.

Amazon's credentials, region and endpoint are looked for as boto3 does (environment, profile, SSO, roles, instance), so
that what works for the AWS command line works here. Other servers that speak S3 are named by `AWS_ENDPOINT_URL_S3` or
`AWS_ENDPOINT_URL`, and their authorities by `AWS_CA_BUNDLE`. Azure's are found as `azure` says. Google's are found by
obstore, from its own variables; that has never been tried.

Every call is repeated by obstore where that is safe, for `REPEAT_FOR_S`.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ideogram_pipeline import network
from ideogram_pipeline.storage import azure

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from botocore.session import Session
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
_ASKED = re.compile(r"performing [A-Z]+ (\S+) in ")
_UNTRUSTED = re.compile(r"InvalidCertificate\(\s*(\w+)")


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
    is_private: bool
    """Whether perhaps only this machine trusts the server, so that nobody else is given a URL that leads to it."""

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
    network.check()
    try:
        session = Session()
        if session.get_credentials() is None:
            raise ValueError(
                "there are no AWS credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, log "
                "in with `aws sso login`, or give the machine a role"
            )
        authorities = trust(session)
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
        client_options={**_client(endpoint), **authorities},
        retry_config=_retries(),
    )
    trusts_others = bool(authorities or os.environ.get("SSL_CERT_FILE"))
    is_own = bool(configured) and endpoint.startswith("https://") and ".amazonaws.com" not in endpoint
    return S3(backend, endpoint, region, provider.credentials, is_private=trusts_others and is_own)


def open_other(url: str) -> ObjectStore:
    """Open a `gs://bucket/prefix` or an `az://container/prefix`.

    Raises:
        ValueError: the URL names no bucket, or the variables don't say enough.
        BaseError: obstore can't use a variable's value.
    """
    from obstore.store import from_url

    bucket, prefix = _bucket(url)
    network.check()
    if url.startswith("az://"):
        return azure.open_container(bucket, prefix, _client(azure.endpoint()), _retries())
    return from_url(url, client_options=_client(""), retry_config=_retries())


def bucket_is_gone(error: Exception) -> bool:
    """Say whether an error means that the whole bucket isn't there, rather than one object."""
    return _BY_CODE.get(_code(error)) == "gone"


def explained(error: Exception, url: str) -> str:
    """Return what an object store's error means, and what to do about it. It quotes no answer: one may hold keys."""
    code, found = _code(error), _STATUS.search(str(error))
    status = found[1] if found else ""
    if not status and (stopped := _stopped_on_the_way(str(error), url)):
        return stopped
    if "token request" in _first_line(error):
        return f"there are no credentials that the store takes. {_CREDENTIALS[_scheme(url)]}"
    if not status:
        return _without_an_answer(str(error), url)
    through = network.proxy_for(_address(str(error)))
    if status == "407" or (through and "<html" in str(error).lower()):
        return network.refused_by_proxy(_host(str(error)), int(status), through)
    kind = (
        _BY_CODE.get(code) or _BY_STATUS.get(status) or ("elsewhere" if status.startswith("3") else "other")
    )
    return _meaning(kind, url, f"{status} {code}".rstrip())


def _meaning(kind: str, url: str, answer: str = "") -> str:
    return _MEANINGS[kind].format(
        answer=answer, bucket=_bucket(url)[0], seconds=REPEAT_FOR_S, credentials=_CREDENTIALS[_scheme(url)]
    )


def _without_an_answer(said: str, url: str) -> str:
    first = said.strip().split("\n", 1)[0]
    if "redirect" in first.lower():
        return _meaning("elsewhere", url)
    if "credential provider" in first:
        return _without_credentials(first.partition("provider: ")[2])
    if "dns error" in said:
        what = f"the name {_host(said)} is not known here"
    else:
        what = f"the store does not answer ({first.rpartition(' - ')[2]})"
    variable = f" and {_ADDRESSES[_scheme(url)]}" if _scheme(url) in _ADDRESSES else ""
    return f"{what}. Check the network{variable}; {_NOTHING_IS_LOST}"


def _stopped_on_the_way(said: str, url: str) -> str:
    """Return what a proxy or a certificate has against a connection, from obstore's words for it; empty if nothing."""
    host, through = _host(said), network.proxy_for(_address(said))
    if found := _UNTRUSTED.search(said):
        reason = re.sub(r"(?<!^)([A-Z])", r" \1", found[1]).lower()
        also = " (or AWS_CA_BUNDLE, for this store alone)" if url.startswith("s3://") else ""
        return network.distrusted(host, reason).replace("SSL_CERT_FILE", f"SSL_CERT_FILE{also}")
    if "InvalidMessage(" in said:
        return f"{host} does not speak TLS at this port. Check the address"
    if "ProxyAuthRequired" in said:
        return network.refused_by_proxy(host, 407, through)
    if "TunnelUnsuccessful" in said:
        return network.refused_by_proxy(host, 0, through)
    if through and "kind: Connect" in said:
        return f"no connection to the store, or to the proxy of {through}. Check the proxy's address and the network"
    return ""


def _without_credentials(why: str) -> str:
    """Return what it means that botocore could not ask for credentials."""
    if "SSL validation failed" in why or "CERTIFICATE_VERIFY_FAILED" in why:
        found = re.search(r"for https://([^/\s:]+)", why)
        untrusted = network.distrusted(found[1] if found else "Amazon's login", "as boto3 says")
        return untrusted.replace("SSL_CERT_FILE", "SSL_CERT_FILE or AWS_CA_BUNDLE")
    if "proxy" in why.lower():
        status = 407 if "407" in why else 0
        return "the credentials can't be had: " + network.refused_by_proxy("Amazon's login", status, None)
    return f"the credentials can't be had: {why}. Log in again"


_NOTHING_IS_LOST = "then run again: what was paid for is fetched"
_CREDENTIALS = {
    "s3": "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; log in again if they have expired",
    "az": "Check AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or "
    "AZURE_STORAGE_SAS_TOKEN; or give the machine an identity",
    "gs": "Check GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account",
}
_ADDRESSES = {"s3": "AWS_ENDPOINT_URL", "az": "AZURE_STORAGE_ENDPOINT"}
_MEANINGS = {
    "gone": "the bucket {bucket!r} is not there. Bring it back or correct its name; " + _NOTHING_IS_LOST,
    "no name": "no bucket or container can be called {bucket!r} ({answer}). Correct its name",
    "elsewhere": "the bucket {bucket!r} lies in another region. Set AWS_REGION to its own",
    "key": "the credentials are not accepted ({answer}). {credentials}",
    "denied": "access is denied ({answer}). The credentials have to allow listing the bucket {bucket!r}, and reading, "
    "writing and deleting objects in it",
    "key or denied": "access is denied ({answer}). {credentials}. They have to allow listing {bucket!r}, and reading, "
    "writing and deleting in it, and the account's firewall has to let this machine in",
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
    "InvalidBucketName": "no name",
    "InvalidResourceName": "no name",
    "OutOfRangeInput": "no name",
    "PermanentRedirect": "elsewhere",
    "TemporaryRedirect": "elsewhere",
    "AuthorizationHeaderMalformed": "elsewhere",
    "IllegalLocationConstraintException": "elsewhere",
    "InvalidAccessKeyId": "key",
    "SignatureDoesNotMatch": "key",
    "ExpiredToken": "key",
    "InvalidToken": "key",
    "AuthenticationFailed": "key",
    "InvalidAuthenticationInfo": "key",
    "AuthorizationFailure": "key or denied",
    "RequestTimeTooSkewed": "clock",
    "NotImplemented": "lacking",
}
_BY_STATUS = {"501": "lacking", "401": "key", "403": "denied", "429": "busy", "503": "busy"}


def _scheme(url: str) -> str:
    return url.partition("://")[0]


def _address(said: str) -> str:
    """Return the URL that obstore asked, as its error tells, without what may stand in the query."""
    found = _ASKED.search(said)
    return found[1].partition("?")[0] if found else ""


def _host(said: str) -> str:
    return urlsplit(_address(said)).hostname or "the store"


def _bucket(url: str) -> tuple[str, str | None]:
    """Return the bucket's name and the prefix, if there is one."""
    bucket, _, prefix = url.partition("://")[2].partition("/")
    if not bucket or "?" in url or "#" in url:
        raise ValueError(f"write it as {urlsplit(url).scheme}://bucket/folder")
    return bucket, prefix.strip("/") or None


def _client(endpoint: str) -> ClientConfig:
    config: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "read_timeout": _STALLED,
        "timeout": _TRANSFER,
    }
    host = urlsplit(endpoint).hostname or ""
    if network.is_this_machine(host):  # a proxy of one's own takes the place of the environment's
        config |= {"proxy_url": endpoint, "proxy_excludes": host}
    return config


def trust(session: Session) -> ClientConfig:
    """Return what S3 has to trust beside the system's authorities, and have botocore trust what all else does.

    Raises:
        ValueError: there is nothing to read.
    """
    found = session.get_config_variable("ca_bundle")
    if not found:
        session.set_config_variable("ca_bundle", os.environ.get("SSL_CERT_FILE"))
        return {}
    try:
        ssl.create_default_context(cafile=Path(found).expanduser())
        return {"root_certificate": Path(found).expanduser().read_bytes()}
    except OSError as error:
        reason = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
        raise ValueError(
            f"AWS_CA_BUNDLE, or ca_bundle in AWS's configuration, is {found!r}, which can't be used: {reason}"
        ) from None


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

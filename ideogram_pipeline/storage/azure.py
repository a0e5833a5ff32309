"""Azure's containers: how they are opened from the variables that people have.

The single variables are obstore's, and are read by it. What it doesn't know is a connection string, the form in which
Azure's portal, its command line and Azurite hand out all of them at once.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import AzureConfig, AzureStore, ClientConfig, RetryConfig

CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
ACCOUNT = ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT")
_ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_EMULATOR, _EMULATOR_URL = "http://127.0.0.1:10000", "AZURITE_BLOB_STORAGE_URL"


def open_container(
    container: str, prefix: str | None, client: ClientConfig, retries: RetryConfig
) -> AzureStore:
    """Open a container, or what lies below a prefix in it; nothing is asked of the server yet.

    Raises:
        ValueError: no account is named, or the connection string or key is none.
        BaseError: obstore can't use a variable's value.
    """
    from obstore.exceptions import BaseError
    from obstore.store import AzureStore

    config = _configured()
    try:
        return AzureStore(
            container, prefix=prefix, config=config, client_options=client, retry_config=retries
        )
    except BaseError as error:
        if "Access Key" not in str(error):
            raise
        raise ValueError(
            f"AZURE_STORAGE_ACCOUNT_KEY, or the AccountKey of {CONNECTION_STRING}, is no key: it is not in base64"
        ) from None


def endpoint(config: AzureConfig | None = None) -> str:
    """Return the base URL of the server that the variables lead to, without the account's name."""
    config = _configured() if config is None else config
    if found := config.get("endpoint"):
        return found
    if config.get("use_emulator") or _is_on(os.environ.get("AZURE_STORAGE_USE_EMULATOR", "")):
        return os.environ.get(_EMULATOR_URL) or _EMULATOR
    account = config.get("account_name") or _first(ACCOUNT)
    return _first(_ENDPOINTS) or f"https://{account}.blob.core.windows.net"


def _configured() -> AzureConfig:
    """Return what obstore has to be told beside the variables that it reads."""
    if given := os.environ.get(CONNECTION_STRING):
        return _from_connection_string(given)
    if not _first(ACCOUNT) and not _is_on(os.environ.get("AZURE_STORAGE_USE_EMULATOR", "")):
        raise ValueError(
            f"no Azure account is named. Set {CONNECTION_STRING}, or AZURE_STORAGE_ACCOUNT_NAME and "
            "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
        )
    return {}


def _from_connection_string(given: str) -> AzureConfig:
    parts = {}
    for part in filter(None, (part.strip() for part in given.split(";"))):
        name, sign, value = part.partition("=")
        if not sign:
            raise ValueError(f"{CONNECTION_STRING} is no connection string: it reads Name=value;Name=value")
        parts[name.strip().lower()] = value.strip()
    if _is_on(parts.get("usedevelopmentstorage", "")):
        return {"use_emulator": True}
    account, key, signature = (
        parts.get(name) for name in ("accountname", "accountkey", "sharedaccesssignature")
    )
    blobs = parts.get("blobendpoint", "").rstrip("/")
    if not account and blobs:
        account = _account_of(blobs)
    if not account or not (key or signature):
        raise ValueError(
            f"{CONNECTION_STRING} lacks its AccountName, or both AccountKey and SharedAccessSignature. Copy it again "
            "from the account's access keys"
        )
    named = _first(ACCOUNT)
    if named and named != account:
        raise ValueError(
            f"{CONNECTION_STRING} and AZURE_STORAGE_ACCOUNT_NAME name different accounts, {account!r} and {named!r}. "
            "Unset one of them"
        )
    scheme, suffix = parts.get("defaultendpointsprotocol", "https"), parts.get("endpointsuffix")
    config: AzureConfig = {
        "account_name": account,
        "endpoint": blobs or f"{scheme}://{account}.blob.{suffix or 'core.windows.net'}",
    }
    if key:
        return {**config, "account_key": key, "credential_type": "access_key"}
    return {**config, "sas_key": (signature or "").removeprefix("?"), "credential_type": "sas_token"}


def _account_of(blobs: str) -> str:
    """Return the account that an endpoint names: the first part of Azure's host, the last of an emulator's path."""
    host, _, path = blobs.partition("://")[2].partition("/")
    return path.rpartition("/")[2] or host.partition(".")[0]


def _first(names: tuple[str, ...]) -> str:
    return next((value for name in names if (value := os.environ.get(name))), "")


def _is_on(value: str) -> bool:
    return value.strip().lower() in ("true", "1", "t", "yes", "y", "on")

"""The way out of this machine, as its environment describes it: proxies, and whom TLS connections trust.

What belongs here: what every client of ours has to do alike, whatever it talks to. This machine itself is always talked
to directly: a proxy would look for `127.0.0.1` on its own machine.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress
from functools import cache
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

if TYPE_CHECKING:
    import httpx2

DIRECT: dict[str, httpx2.AsyncBaseTransport | None] = {
    "all://localhost": None,
    "all://*.localhost": None,
    "all://127.0.0.0/8": None,
    "all://[::1]": None,
}
"""`mounts` of an httpx2 client that leave the environment's proxies aside for this machine."""


def is_this_machine(host: str) -> bool:
    """Say whether a host name or address is this machine's own."""
    name = host.lower().strip("[]")
    try:
        return name == "localhost" or name.endswith(".localhost") or ip_address(name).is_loopback
    except ValueError:
        return False


def trust() -> ssl.SSLContext:
    """Return what every connection trusts: the system's authorities, or `SSL_CERT_FILE` or `SSL_CERT_DIR` instead.

    Raises:
        ValueError: the variable names nothing that certificates can be read from.
    """
    return _trust(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _trust(file: str | None, folder: str | None) -> ssl.SSLContext:
    """Read the certificates once: that costs more than many calls."""
    import httpx2

    try:
        return httpx2.create_ssl_context()
    except OSError as error:  # ssl.SSLError is one
        variable, value = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", folder)
        reason = "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror or error
        raise ValueError(
            f"{variable} is {value!r}, which can't be used: {reason}. It has to name a file of certificates (PEM)."
        ) from None


def check() -> None:
    """Check what the environment says of proxies and certificates.

    Raises:
        ValueError: it can't be followed; the message names the variable and shows no password.
    """
    for scheme in ("http", "https", "all"):
        if url := getproxies().get(scheme):
            _check_proxy(_variable(scheme), url if "://" in url else f"http://{url}")
    trust()


def proxy_for(url: str) -> str | None:
    """Return the variable that sends a URL through a proxy, and the proxy's address; None where there is none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    found = getproxies()
    scheme = next((name for name in (parts.scheme, "all") if found.get(name)), None)
    if scheme is None or is_this_machine(host) or _is_excepted(host, found.get("no", "")):
        return None
    return f"{_variable(scheme)} ({found[scheme].rpartition('@')[2].rpartition('://')[2].rstrip('/')})"


def distrusted(host: str, reason: str) -> str:
    """Return what it means that a host's certificate is not trusted, and what to do."""
    if "expired" in reason.lower():
        return f"the certificate of {host} has expired, or this machine's clock is wrong ({reason})"
    if "mismatch" in reason.lower() or "not valid for" in reason.lower():
        return f"the certificate of {host} is another host's ({reason}). Check the address"
    return (
        f"the certificate of {host} is not trusted ({reason}). Where the network has an authority of its own, set "
        "SSL_CERT_FILE to a file (PEM) with its certificate and the public ones"
    )


def refused_by_proxy(host: str, status: int, through: str | None) -> str:
    """Return what a proxy's refusal means, and what to do. `through` is what `proxy_for` says."""
    variable = (through or "HTTPS_PROXY").partition(" ")[0]
    named = through or "the environment"
    if status == 407:
        return (
            f"the proxy of {named} wants a login (407). Write it into {variable} as http://user:password@host:port, or "
            f"correct the one there; characters such as @ and : as %40 and %3A"
        )
    return (
        f"the proxy of {named} does not let {host} through{f' ({status})' if status else ''}. Have it allowed there, "
        "or name the host in NO_PROXY if it can be reached directly"
    )


def _is_excepted(host: str, no_proxy: str) -> bool:
    """Say whether `NO_PROXY` names a host, by a name, a domain, an address or a network."""
    if proxy_bypass(host):  # which knows no networks
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        with suppress(ValueError):
            if address in ip_network(entry.strip(), strict=False):
                return True
    return False


def _check_proxy(variable: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        scheme = url.partition("://")[0]
        kind = f" A {scheme}:// proxy can't be used." if scheme.startswith("socks") else ""
        raise ValueError(
            f"{variable} is no address of an HTTP proxy.{kind} Write it like http://proxy.example:3128, or with a "
            "login as http://user:password@proxy.example:3128."
        )


def _variable(scheme: str) -> str:
    """Return the variable that a proxy was found in; the lower-case one counts first, as for curl."""
    lower = f"{scheme}_proxy"
    return lower if os.environ.get(lower) else lower.upper()

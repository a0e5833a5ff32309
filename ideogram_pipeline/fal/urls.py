"""Where things are: fal's hosts, the URLs of a queue request, and which URLs this client will talk to."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote

import httpx2

from ideogram_pipeline.fal.errors import InvalidCall, UnsafeUrl

PUBLIC_QUEUE = "https://queue.fal.run"
PUBLIC_BACKUP_QUEUE = "https://queue.falrun.com"
NAMESPACES = frozenset({"workflows", "comfy"})
"""First segments that are followed by owner and app, rather than being the owner."""
_ENDING_IN_IPV4 = tuple(map(IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_REMEMBERED = 1024
"""URLs that are not taken apart anew: those of some hundred requests in flight."""


@dataclass(frozen=True, slots=True)
class FalHosts:
    """The base URLs of fal, or of something that speaks its protocol. The key goes to these and nowhere else."""

    queue: str = PUBLIC_QUEUE
    """Submit, status, result, cancel."""
    rest: str = "https://rest.fal.ai"
    """Storage, CDN tokens and the webhook keys."""
    api: str = "https://api.fal.ai"
    """The Platform API, with or without the `/v1` that all of its paths begin with."""
    backup_queue: str | None = PUBLIC_BACKUP_QUEUE
    """Where a submit goes when `queue` can't be connected to; None for a queue that isn't fal's."""
    media: tuple[str, ...] = ()
    """Base URLs files may be fetched from and put to besides public https."""
    private: frozenset[str] = frozenset()
    """Names and addresses of hosts, in lower case, that files may be fetched from though they aren't public, by http as
    well."""

    def __post_init__(self) -> None:
        if self.queue != PUBLIC_QUEUE and self.backup_queue == PUBLIC_BACKUP_QUEUE:
            object.__setattr__(self, "backup_queue", None)
        for name in ("queue", "rest", "api"):
            object.__setattr__(self, name, getattr(self, name).rstrip("/"))
        object.__setattr__(self, "api", self.api.removesuffix("/v1").rstrip("/"))
        for base in self.keyed + self.media:
            origin_of(base)

    @classmethod
    def at(cls, base: str) -> FalHosts:
        """All of fal behind one base URL, as a local stand-in serves it."""
        return cls(queue=base, rest=base, api=base, backup_queue=None)

    @property
    def names(self) -> frozenset[str]:
        """The host names of all configured base URLs, and the private ones."""
        return frozenset(origin_of(base)[1] for base in self.keyed + self.media) | self.private

    @property
    def keyed(self) -> tuple[str, ...]:
        """The base URLs the key may be sent to."""
        return (self.queue, self.rest, self.api, *([self.backup_queue] if self.backup_queue else []))

    def takes_key(self, url: str) -> bool:
        """Whether the key may be sent to this URL."""
        try:
            return origin_of(url) in {origin_of(base) for base in self.keyed}
        except UnsafeUrl:
            return False

    def check_media(self, url: str) -> httpx2.URL:
        """The URL parsed, if a file may be fetched from or put to it. Raises `UnsafeUrl`.

        That is any https URL with a host name or a public address, and any URL on a configured or `private` host.
        Whether a host name leads to a public address is checked when it is resolved, so that the address checked is
        the one used.
        """
        scheme, host, _ = origin = origin_of(url)
        if (
            host not in self.private
            and origin not in {origin_of(base) for base in self.keyed + self.media}
            and not (scheme == "https" and (not is_address(host) or is_public(host)))
        ):
            raise UnsafeUrl(message=f"{shown(url)} is neither public https nor on a configured host.")
        return parsed(url)


@lru_cache(maxsize=_REMEMBERED)
def parsed(url: str) -> httpx2.URL:
    """The URL as the client takes it apart, which is the dearest part of a small call, so that it is done once.

    Raises what `httpx2.URL` does.
    """
    return httpx2.URL(url)


@lru_cache(maxsize=_REMEMBERED)
def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an http(s) URL without credentials. Raises `UnsafeUrl` for anything else."""
    try:
        parts = parsed(url)
    except (httpx2.InvalidURL, TypeError, ValueError):
        parts = httpx2.URL("")
    if parts.scheme not in {"http", "https"} or not parts.host or parts.userinfo:
        raise UnsafeUrl(message=f"{shown(url)!r} is not a plain http or https URL.", guidance="")
    return parts.scheme, parts.host.lower(), parts.port or (443 if parts.scheme == "https" else 80)


def shown(url: str) -> str:
    """The URL as messages may show it: without the query, which may hold a signature, and without credentials."""
    bare = url.partition("?")[0].partition("#")[0][:200]
    return "(URL not shown)" if bare.startswith("data:") or "@" in bare else bare


def is_address(host: str) -> bool:
    """Whether the host is an IP address rather than a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet: not private, loopback, link-local, multicast or reserved.

    An IPv6 address that leads to an IPv4 one, by a translator or a tunnel on the way, is judged by that.
    """
    parsed = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        parsed = _embedded(parsed) or parsed
    return parsed.is_global and not parsed.is_multicast


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address in an IPv6 one: mapped, compatible, 6to4 (RFC 3056), or for NAT64 (RFC 6052, 8215)."""
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if any(address in network for network in _ENDING_IN_IPV4):
        return last
    return address.ipv4_mapped or address.sixtofour


def app_path(endpoint_id: str) -> str:
    """The part of an endpoint id that a request's URLs use: `owner/app`, or `namespace/owner/app`.

    fal-ai/ideogram/character -> fal-ai/ideogram, workflows/me/flow/step -> workflows/me/flow; the legacy form
    12345-app means 12345/app. Raises `InvalidCall` for what is no endpoint id.
    """
    parts = normal_endpoint(endpoint_id).split("/")
    return "/".join(parts[: 3 if parts[0] in NAMESPACES else 2])


def normal_endpoint(endpoint_id: str) -> str:
    """The endpoint id as a submit's path: checked, percent-encoded and with the legacy form rewritten."""
    number, dash, name = endpoint_id.partition("-")
    if "/" not in endpoint_id and number.isdecimal() and number.isascii() and dash and name:
        endpoint_id = f"{number}/{name}"
    parts = endpoint_id.split("/")
    needed = 3 if parts[0] in NAMESPACES else 2
    if len(parts) < needed or any(part in {"", ".", ".."} or not part.isprintable() for part in parts):
        raise InvalidCall(
            message=f"{endpoint_id!r} is not an endpoint id.",
            guidance="It reads owner/app[/path], such as fal-ai/ideogram/character.",
        )
    return "/".join(quote(part, safe="@:+~") for part in parts)


PUBLIC_FAL = FalHosts()
"""fal itself."""

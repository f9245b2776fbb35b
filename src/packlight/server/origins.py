"""Which names of this server, and which web pages, a request may come by.

A browser sends the name that a page used as `Host`. One that this server does not go by is that of a page elsewhere,
whose name was pointed at this machine (DNS rebinding). `Origin` tells whose page asks.
"""

import dataclasses
import ipaddress
import re
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from packlight.common.errors import ConfigError

ANY = "*"
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)
NAME = re.compile(r"[a-z]{1,16}", re.IGNORECASE)  # of a scheme
DEFAULT_PORTS = {"http": "80", "https": "443"}


def host_name(host: str) -> str | None:
    """The name in a `Host` header, in small letters and without port, brackets and last dot. None: it is malformed."""
    found = HOST.fullmatch(host.strip().lower())
    return found[1].strip("[]").removesuffix(".") if found else None


def address_of(name: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    """The IP address that a name is, if it is one."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(name: str) -> bool:
    """Whether only this machine can come by the name."""
    address = address_of(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


@dataclasses.dataclass(frozen=True)
class Origins:
    """What this server goes by, and whose pages may use it."""

    bound: str = "127.0.0.1"  # the address or name that it listens on
    allowed_hosts: tuple[str, ...] = ()  # further names, or ANY
    cors_origins: tuple[str, ...] = ()  # as browsers write them: scheme://host[:port], or ANY

    def __post_init__(self):
        for host in self.allowed_hosts:
            if host != ANY and (host_name(host) is None or HOST.fullmatch(host.lower())[2]):  # pyright: ignore[reportOptionalSubscript]
                raise ConfigError(f"--allowed_hosts={host} is no name of a host: it has no scheme, port or path")
        for origin in self.cors_origins:
            parts = urlsplit(origin)
            if origin != ANY and (not NAME.fullmatch(parts.scheme) or f"{parts.scheme}://{parts.netloc}" != origin):
                raise ConfigError(f"--cors_origins={origin} is no origin: it is like https://example.org or {ANY}")

    def goes_by(self, host: str) -> bool:
        """Whether a `Host` header names this server: this machine's own names for itself, what it listens on, and what
        was allowed. On a network any address does, as no page's name can be pointed at it.
        """
        if ANY in self.allowed_hosts:
            return True
        name = host_name(host)
        if name is None:
            return False
        if is_loopback(name) or name in {self.bound.lower(), *(each.lower() for each in self.allowed_hosts)}:
            return True
        if is_loopback(self.bound):
            return False
        return address_of(name) is not None or name == socket.gethostname().lower()

    def shares_with(self, origin: str) -> bool:
        """Whether pages of this origin may read answers."""
        return ANY in self.cors_origins or origin in self.cors_origins

    def own(self, origin: str, host: str) -> bool:
        """Whether a page of this origin was served under the name that the request came by."""
        scheme, separator, place = origin.lower().partition("://")
        port = DEFAULT_PORTS.get(scheme)
        host = host.lower()
        return bool(separator) and place.removesuffix(f":{port}") == host.removesuffix(f":{port}")

    def cors_headers(self, origin: str) -> Sequence[tuple[bytes, bytes]]:
        """The headers of an answer to a page of this origin. None let it send cookies: keys are sent in a header."""
        if not self.shares_with(origin):
            return ()
        named = ANY if ANY in self.cors_origins else origin
        return (
            (b"access-control-allow-origin", named.encode("latin-1")),
            (b"access-control-expose-headers", b"Retry-After, X-Ignored-Params"),
            (b"vary", b"Origin"),
        )

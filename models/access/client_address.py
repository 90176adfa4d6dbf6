"""The client address by which limits are counted, also behind trusted proxies."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from models.config.settings import settings

# An internet provider gives each customer at least one IPv6 network of this size.
NETWORK_BITS = 64
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def bucket_name(peer: str | None, forwarded_for: str) -> str | None:
    """The name of a client's limit: an IPv4 address or an IPv6 network; None: a program on this machine.

    peer: of the connection. forwarded_for: X-Forwarded-For, read from its end, because each proxy appends its own peer. Reading stops at
    the first address that is neither a proxy on this machine nor one of NOWSERVING_TRUSTED_PROXIES.
    """
    client = None
    for hop in (peer, *reversed(forwarded_for.split(","))):
        address = _parse(hop)
        if address is None:
            break
        client = address
        if not _is_proxy(address):
            break
    return None if client is None or client.is_loopback else _name(client)


def _is_proxy(address: Address) -> bool:
    return address.is_loopback or any(address in network for network in _networks(settings().trusted_proxies))


@lru_cache(maxsize=8)
def _networks(names: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(name) for name in names)


def _parse(text: str | None) -> Address | None:
    try:
        address = ipaddress.ip_address((text or "").strip())
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _name(address: Address) -> str:
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address.packed, NETWORK_BITS), strict=False))

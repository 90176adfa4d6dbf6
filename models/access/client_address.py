"""The address of a client, behind trusted proxies too, as limits for each address name it."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from models.config.settings import settings

# One person's share of IPv6.
NETWORK_BITS = 64
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def bucket_name(peer: str | None, forwarded_for: str) -> str | None:
    """An IPv4 address or an IPv6 network; None: a program on this machine.

    peer: of the connection. forwarded_for: X-Forwarded-For, read from its end, where each proxy has written its own peer, and only as
    far as these are proxies on this machine or of NOWSERVING_TRUSTED_PROXIES.
    """
    seen = None
    for hop in (peer, *reversed(forwarded_for.split(","))):
        address = _parse(hop)
        if address is None:
            break
        seen = address
        if not _is_proxy(address):
            break
    return None if seen is None or seen.is_loopback else _name(seen)


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

"""How many new own keys one address may bring: each makes rows that stay, and costs its sender nothing."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable
from functools import lru_cache

from flask import Request

from models.errors import LineFull
from models.settings import settings

HOUR_S = 3_600.0
ADDRESSES_MOST = 100_000
# What one person has of IPv6.
NETWORK_BITS = 64
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Newcomers:
    """What each address has brought to this process: a hoard of NOWSERVING_NEW_KEYS_PER_IP_PER_HOUR, filled again evenly in an hour."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: when the hoard of each address is full again
        self._full_at: dict[str, float] = {}

    def admit(self, address: str | None) -> None:
        """One more new key from this address; None: from this machine, which brings as many as it likes. Raises LineFull."""
        most = settings().new_keys_per_ip_per_hour
        if address is None or not most:
            return
        with self._lock:
            now, worth_s = self._clock(), HOUR_S / most
            full_at = max(now, self._full_at.get(address, 0.0)) + worth_s
            if full_at - now > HOUR_S:
                raise LineFull(
                    f"{most} new keys an hour are accepted from one address. Use a key that is known here, or come back later.",
                    code="too_many_new_keys",
                    retry_after_s=full_at - now - HOUR_S,
                )
            if len(self._full_at) >= ADDRESSES_MOST:
                self._full_at = {one: at for one, at in self._full_at.items() if at > now}
            self._full_at[address] = full_at


def address_of(request: Request) -> str | None:
    """Whose request this is, as its hoard is named: an IPv4 address, an IPv6 network. None: a program on this machine.

    X-Forwarded-For is read from its end, where each proxy has written whom it saw, and only as far as these are proxies on this machine
    or of NOWSERVING_TRUSTED_PROXIES.
    """
    seen = None
    for hop in (request.remote_addr, *reversed(request.headers.get("X-Forwarded-For", "").split(","))):
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
        found = ipaddress.ip_address((text or "").strip())
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _name(address: Address) -> str:
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address.packed, NETWORK_BITS), strict=False))

"""The limit on new keys of one address. A new key costs its sender nothing and adds rows that stay."""

from __future__ import annotations

import time
from collections.abc import Callable

from flask import Request

from models.access import client_address
from models.access.address_limit import AddressLimit
from models.config.settings import settings
from models.platform.errors import QueueFull

HOUR_S = 3_600.0


class SignupLimit:
    """A token bucket of NOWSERVING_NEW_KEYS_PER_IP_PER_HOUR for each address, in this process; it refills evenly within an hour."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = AddressLimit(period_s=HOUR_S, clock=clock)

    def check(self, address: str | None) -> None:
        """Counts a new key of this address. Raises QueueFull at the limit. None: this machine, which has no limit."""
        limit = settings().new_keys_per_ip_per_hour
        if address is None or not limit:
            return
        if wait_s := self._limit.take(address, limit=limit):
            raise QueueFull(
                f"{limit} new keys an hour are accepted from one address. Use a key that is known here, or come back later.",
                code="too_many_new_keys",
                retry_after_s=wait_s,
            )


def client_address_of(request: Request) -> str | None:
    """The client address of this request (models/access/client_address.py). None: a program on this machine."""
    return client_address.bucket_name(request.remote_addr, request.headers.get("X-Forwarded-For", ""))

"""Celery's Redis transport without what nobody needs: a client for each message, and acks of messages that were taken without.

kombu makes a client for every message it publishes, a third of what that costs; and Celery acknowledges what needs no ack.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis

from models.config import redis_sentinel


class _Plain:
    """Speaks through the client it made first, for as long as its connections are the same."""

    _plain: Any = None

    def _create_client(self: Any, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # of the channel beside it
        if self._plain is None or self._plain.connection_pool is not self.pool:
            self._plain = super()._create_client()  # type: ignore[misc]
        return self._plain

    def basic_ack(self: Any, delivery_tag: str, multiple: bool = False) -> None:
        if delivery_tag in self.qos._delivered:
            super().basic_ack(delivery_tag, multiple)  # type: ignore[misc]


class Channel(_Plain, redis.Channel):
    """Of one server."""


class SentinelChannel(_Plain, redis.SentinelChannel):
    """Of the server that the Sentinels call the master."""


class Transport(redis.Transport):
    """What redis:// and rediss:// mean here."""

    Channel = Channel


class SentinelTransport(redis.SentinelTransport):
    """What sentinel:// means here."""

    Channel = SentinelChannel


def register() -> None:
    """Connections that are opened from now on have it."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"


def broker_address(url: str) -> tuple[str, dict[str, Any]]:
    """NOWSERVING_REDIS_URL as kombu reads it: a URL, and what else its transport has to know."""
    watched = redis_sentinel.parse_url(url)
    if watched is None:
        return url, {}
    patience = {"socket_timeout": 1, "socket_connect_timeout": 1, "password": watched.sentinel_password}
    return watched.each(), {"master_name": watched.master, "sentinel_kwargs": patience}

"""A kombu Redis transport that reuses one client and skips acks of no_ack messages.

kombu creates a client for every message that it publishes, a third of the cost of publishing. Celery acknowledges no_ack messages too.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis

from models.config import redis_sentinel


class _ReusedClient:
    """Reuses its first client as long as the connection pool is the same."""

    _reused: Any = None

    def _create_client(self: Any, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[misc]  # defined by the channel class
        if self._reused is None or self._reused.connection_pool is not self.pool:
            self._reused = super()._create_client()  # type: ignore[misc]
        return self._reused

    def basic_ack(self: Any, delivery_tag: str, multiple: bool = False) -> None:
        if delivery_tag in self.qos._delivered:
            super().basic_ack(delivery_tag, multiple)  # type: ignore[misc]


class Channel(_ReusedClient, redis.Channel):
    """Channel of a single Redis server."""


class SentinelChannel(_ReusedClient, redis.SentinelChannel):
    """Channel of the master that the Sentinels name."""


class Transport(redis.Transport):
    """Transport of the schemes redis:// and rediss://."""

    Channel = Channel


class SentinelTransport(redis.SentinelTransport):
    """Transport of the scheme sentinel://."""

    Channel = SentinelChannel


def register() -> None:
    """Registers the transports for connections that are opened from now on."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
    TRANSPORT_ALIASES["sentinel"] = f"{__name__}:SentinelTransport"


def broker_address(url: str) -> tuple[str, dict[str, Any]]:
    """Converts NOWSERVING_REDIS_URL for kombu: a URL, and options of its transport."""
    sentinels = redis_sentinel.parse_url(url)
    if sentinels is None:
        return url, {}
    options = {"socket_timeout": 1, "socket_connect_timeout": 1, "password": sentinels.sentinel_password}
    return sentinels.kombu_url(), {"master_name": sentinels.master, "sentinel_kwargs": options}

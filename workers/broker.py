"""Celery's Redis transport without what nobody needs: a client for each message, and acks of messages that were taken without.

kombu makes a client for every message it publishes, a third of what that costs; and Celery acknowledges what needs no ack.
"""

from __future__ import annotations

from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis


class Channel(redis.Channel):
    """Speaks through the client it made first, for as long as its connections are the same."""

    _plain: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]  # kombu is typed in part
        if self._plain is None or self._plain.connection_pool is not self.pool:
            self._plain = super()._create_client()  # type: ignore[no-untyped-call]
        return self._plain

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        if delivery_tag in self.qos._delivered:
            super().basic_ack(delivery_tag, multiple)  # type: ignore[no-untyped-call]


class Transport(redis.Transport):
    """What redis:// and rediss:// mean here."""

    Channel = Channel


def use() -> None:
    """Connections that are opened from now on have it."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"

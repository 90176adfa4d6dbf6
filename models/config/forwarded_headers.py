"""Checks the list of request headers that are forwarded to the upstream: never headers of the connection or of this system."""

from __future__ import annotations

import re

# Header names, and prefixes of header names, that are never forwarded.
NEVER = frozenset({
    "accept", "accept-encoding", "api-key", "authorization", "connection", "cookie", "cookie2", "date", "expect", "forwarded", "host",
    "http2-settings", "keep-alive", "max-forwards", "origin", "prefer", "set-cookie", "te", "trailer", "transfer-encoding", "upgrade",
    "via", "x-client-request-id", "x-real-ip",
})  # fmt: skip
NEVER_BEGINNING = ("content-", "if-", "proxy-", "sec-", "x-forwarded-", "x-nowserving-")
NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def check_name(name: str) -> str:
    """The name of a header that may be forwarded. Raises ValueError."""
    if not NAME.fullmatch(name) or name.lower() in NEVER or name.lower().startswith(NEVER_BEGINNING):
        raise ValueError(f"{name!r} is never sent on to the upstream: take it out of the list")
    return name

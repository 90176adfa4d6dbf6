"""Describes a failed connection for callers and operators: the kind of failure, with host and port."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpcore2
import httpx2

TIMEOUTS = (TimeoutError, httpx2.TimeoutException, httpcore2.TimeoutException)


def describe(error: BaseException, *, origin: str, proxy: str | None) -> str:
    """For example `the name api.example.com cannot be resolved`. origin, proxy: their addresses; passwords are not shown."""
    causes = list(_chain(error))
    upstream, hop = _host_and_port(origin), f"the proxy {_host_and_port(proxy)}" if proxy else _host_and_port(origin)
    for cause in causes:
        match cause:
            case httpx2.ProxyError() | httpcore2.ProxyError():
                return f"{hop} refuses to connect to {upstream}: {str(cause).strip() or 'without a reason'}"
            case ssl.SSLCertVerificationError():
                return f"the TLS certificate of {upstream} is not accepted: {cause.verify_message}"
            case ssl.SSLError():
                return f"no TLS connection to {upstream}: {cause.reason or 'the other side hung up'}"
            case socket.gaierror():
                return f"the name {hop.rpartition(':')[0]} cannot be resolved ({cause.strerror})"
            case ConnectionRefusedError():
                return f"{hop} refuses connections"
    return _describe_others(causes, hop)


def _describe_others(causes: list[BaseException], hop: str) -> str:
    if any(isinstance(cause, httpx2.ConnectTimeout | httpcore2.ConnectTimeout) for cause in causes):
        return f"connecting to {hop} timed out"
    if any(isinstance(cause, TIMEOUTS) for cause in causes):
        return f"{hop} timed out"
    if any(isinstance(cause, ConnectionError) for cause in causes):
        return f"{hop} reset the connection"
    if any(isinstance(cause, httpx2.RemoteProtocolError | httpcore2.RemoteProtocolError) for cause in causes):
        message = str(causes[-1])
        is_silent = "without sending" in message or "closed connection" in message
        return f"{hop} closed the connection before its answer was whole" if is_silent else f"the answer of {hop} is not HTTP"
    system = next((cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror), None)
    return f"{hop}: {system or type(causes[-1]).__name__}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes. httpcore2 raises `from None`, so the operating system's error is only in the context."""
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _host_and_port(address: str) -> str:
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{port}"

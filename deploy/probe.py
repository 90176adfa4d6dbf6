"""Whether something on this machine answers yet."""

from __future__ import annotations

import http.client
import socket

TIMEOUT_S = 2


def answers(path: str, *, port: int, host: str = "127.0.0.1") -> bool:
    """Whether GET of this path gives 200. No proxy is ever asked: http.client knows none."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listens(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether something accepts connections there."""
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True


def reachable(host: str) -> str:
    """The address at which a server that listens on this one can be asked from here."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)

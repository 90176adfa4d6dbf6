"""The send timeout of responses on open connections."""

from __future__ import annotations

import socket

from flask import Request

SEND_TIMEOUT_S = 10


def limit_sending(request: Request) -> socket.socket | None:
    """Sets the send timeout and returns the connection. Without it a client that stops reading would hold its waiter forever."""
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is not None:
        connection.settimeout(SEND_TIMEOUT_S)
    return connection

"""The time limit for a client to read: a response on an open connection must not hold its waiter for ever."""

from __future__ import annotations

import socket

from flask import Request

SEND_TIMEOUT_S = 10


def limit_sending(request: Request) -> socket.socket | None:
    """The client's connection. A reader that stops reading is cut off, instead of holding its stream for ever."""
    connection: socket.socket | None = request.environ.get("gunicorn.socket")
    if connection is not None:
        connection.settimeout(SEND_TIMEOUT_S)
    return connection

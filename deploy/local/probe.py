"""Readiness probes of servers on this machine."""

from __future__ import annotations

import http.client
import socket
import struct

TIMEOUT_S = 2
PROTOCOL_3 = 196_608


def http_ok(path: str, *, port: int, host: str = "127.0.0.1") -> bool:
    """Returns whether GET of this path returns 200. http.client uses no proxy."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listens(port: int, *, host: str = "127.0.0.1") -> bool:
    """Returns whether the port accepts connections."""
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True


def postgres_ready(port: int, *, host: str = "127.0.0.1") -> bool:
    """Returns whether PostgreSQL requests a password. While it starts or stops it sends an error instead."""
    startup = struct.pack("!i", PROTOCOL_3) + b"user\0postgres\0\0"
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
            connection.sendall(struct.pack("!i", len(startup) + 4) + startup)
            return connection.recv(1024)[:1] == b"R"
    except OSError:
        return False


def redis_ready(port: int, password: str, *, host: str = "127.0.0.1") -> bool:
    """Returns whether Redis accepts this password and answers PING."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            replies = connection.makefile("rb")
            return [replies.readline(), replies.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
    except OSError:
        return False


def reachable(host: str) -> str:
    """Returns the address at which a server that listens on `host` is reachable from this machine."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)

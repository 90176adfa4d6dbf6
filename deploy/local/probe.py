"""Whether something on this machine answers yet."""

from __future__ import annotations

import http.client
import socket
import struct

TIMEOUT_S = 2
PROTOCOL_3 = 196_608


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


def postgres_accepts(port: int, *, host: str = "127.0.0.1") -> bool:
    """Whether PostgreSQL takes connections: it asks for a password, where one that is starting or stopping sends an error."""
    startup = struct.pack("!i", PROTOCOL_3) + b"user\0postgres\0\0"
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
            connection.sendall(struct.pack("!i", len(startup) + 4) + startup)
            return connection.recv(1024)[:1] == b"R"
    except OSError:
        return False


def redis_answers(port: int, password: str, *, host: str = "127.0.0.1") -> bool:
    """Whether Redis takes this password and answers PING."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answers = connection.makefile("rb")
            return [answers.readline(), answers.readline()] == [b"+OK\r\n", b"+PONG\r\n"]
    except OSError:
        return False


def reachable(host: str) -> str:
    """The address at which a server that listens on this one can be asked from here."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)

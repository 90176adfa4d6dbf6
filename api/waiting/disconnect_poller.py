"""The client-disconnect detector: one thread checks the connection of each waiter once a second, without reading from it."""

from __future__ import annotations

import _socket  # not `socket`: gevent patches that one, and its recv would wait for data
import socket
import threading

from api.waiting.waiters import Waiters

POLL_INTERVAL_S = 1.0
# TCP_ESTABLISHED of linux/tcp.h, the first byte of tcp_info.
ESTABLISHED = 1


class DisconnectPoller:
    """Marks the waiters whose client has closed its connection."""

    def __init__(self, waiters: Waiters) -> None:
        self._waiters = waiters
        self._closing = threading.Event()

    def close(self) -> None:
        """Makes `run` return soon."""
        self._closing.set()

    def run(self) -> None:
        """Polls until `close` is called."""
        while not self._closing.wait(POLL_INTERVAL_S):
            for waiter in self._waiters.all():
                if waiter.connection is not None and not waiter.is_disconnected and is_closed(waiter.connection):
                    waiter.mark_disconnected()


def is_closed(connection: socket.socket) -> bool:
    """Whether the client has closed or reset its connection, or closed its sending half (FIN).

    On Linux the check reads the TCP state, so unread bytes in the buffer do not hide a FIN.
    """
    number = connection.fileno()
    if number < 0:
        return True
    # This object borrows the file descriptor. `detach` makes sure that it never closes it.
    borrowed = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, number)
    try:
        state = _tcp_state(borrowed)
        return state != ESTABLISHED if state is not None else not borrowed.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        borrowed.detach()


def _tcp_state(borrowed: _socket.socket) -> int | None:
    """The TCP state of this connection, None where the kernel does not report it."""
    try:
        return borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (AttributeError, OSError):  # not Linux, or not TCP
        return None

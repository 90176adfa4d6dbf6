"""One thread that notices which callers have gone: a look at each of their connections once a second, without reading from them."""

from __future__ import annotations

import _socket  # not `socket`: gevent's own waits there until something comes
import socket
import threading

from api.waiting.waiter import Seats

LOOK_EVERY_S = 1.0
# Of linux/tcp.h, the first byte of tcp_info.
ESTABLISHED = 1


class Door:
    """Tells seats that their client has gone."""

    def __init__(self, seats: Seats) -> None:
        self._seats = seats
        self._closing = threading.Event()

    def close(self) -> None:
        """`run` returns soon."""
        self._closing.set()

    def run(self) -> None:
        """Looks until closed."""
        while not self._closing.wait(LOOK_EVERY_S):
            for seat in self._seats.everybody():
                if seat.connection is not None and not seat.is_gone and is_closed(seat.connection):
                    seat.lose()


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has hung up: closed or reset its connection, or closed its sending half (FIN).

    Where the kernel tells (Linux), bytes that we have not read yet do not hide it.
    """
    number = connection.fileno()
    if number < 0:
        return True
    # Borrowed, not owned: whatever happens, the connection must not be closed with it.
    looked = _socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, number)
    try:
        state = _tcp_state(looked)
        return state != ESTABLISHED if state is not None else not looked.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        looked.detach()


def _tcp_state(looked: _socket.socket) -> int | None:
    """TCP's state of this connection, None where it is not known."""
    try:
        return looked.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except (AttributeError, OSError):  # not Linux, or no TCP
        return None

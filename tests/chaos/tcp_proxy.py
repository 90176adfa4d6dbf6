"""A TCP proxy between a service and a server.

It can be cut silently, as by a network fault, or with a reset, and can rewrite commands.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.chaos import broker_faults

RESET = struct.pack("ii", 1, 0)  # close() then sends RST
MODES = ("open", "silent", "reset")


class TcpProxy:
    """Forwards bytes from its own port to the server's.

    In mode `silent` no byte passes; in mode `reset` no connection stays open.
    """

    def __init__(self, to_port: int, *, rewrite: Callable[[], broker_faults.CommandRewriter] | None = None) -> None:
        self._to_port = to_port
        self._rewrite = rewrite
        self._server = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._server.getsockname()[1])
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._passing = threading.Event()
        self._passing.set()
        self._refuses = False
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: str) -> None:
        """Set the mode.

        open: forward bytes; connections that were silent until now are reset. silent: no byte passes. reset: no
        connection stays open.
        """
        assert mode in MODES
        self._refuses = mode == "reset"
        was_silent = not self._passing.is_set()
        if mode == "silent":
            self._passing.clear()
        if mode == "reset" or was_silent:
            self._reset_all()
        if mode != "silent":
            self._passing.set()

    def close(self) -> None:
        """Stop listening and reset all connections."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._passing.set()
        self._reset_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            try:
                if self._refuses:
                    raise ConnectionRefusedError
                server = socket.create_connection(("127.0.0.1", self._to_port), timeout=2)
                server.settimeout(None)
            except OSError:
                _reset(client)
                continue
            for sock in (client, server):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            rewriter = self._rewrite() if self._rewrite else None
            threading.Thread(target=self._forward, args=(client, server, rewriter), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, None), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, rewriter: broker_faults.CommandRewriter | None) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                self._passing.wait()
                sent = rewriter.feed(chunk) if rewriter else chunk
                if sent:
                    target.sendall(sent)
        # One side closed: the other side is closed once the proxy passes bytes again.
        self._passing.wait()
        for sock in (source, target):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _reset_all(self) -> None:
        with self._lock:
            dropped, self._open = self._open, set()
        for sock in dropped:
            _reset(sock)


def _reset(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.shutdown(socket.SHUT_RD)  # wakes the thread that reads the socket; close() alone would not
    sock.close()

"""A wire between a part and a server that can be cut: silently, as a network does it, or with a reset. And one that reads doorbells."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from tests.chaos import broker_faults

RESET = struct.pack("ii", 1, 0)  # close() then sends RST
MODES = ("open", "silent", "reset")


class Link:
    """Passes bytes on between a port of its own and that one. While `silent` nothing arrives; while `reset` nothing stays open."""

    def __init__(self, to_port: int, *, rewrite: Callable[[], broker_faults.Rewriter] | None = None) -> None:
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
        """open: as usual; connections that were silent until now are reset. silent: no byte passes. reset: no connection stays."""
        assert mode in MODES
        self._refuses = mode == "reset"
        was_silent = not self._passing.is_set()
        if mode == "silent":
            self._passing.clear()
        if mode == "reset" or was_silent:
            self._drop()
        if mode != "silent":
            self._passing.set()

    def close(self) -> None:
        """Nobody can connect any more."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._passing.set()
        self._drop()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            try:
                if self._refuses:
                    raise ConnectionRefusedError
                there = socket.create_connection(("127.0.0.1", self._to_port), timeout=2)
                there.settimeout(None)
            except OSError:
                _reset(here)
                continue
            for one in (here, there):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {here, there}
            rewriter = self._rewrite() if self._rewrite else None
            threading.Thread(target=self._pass, args=(here, there, rewriter), daemon=True).start()
            threading.Thread(target=self._pass, args=(there, here, None), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, rewriter: broker_faults.Rewriter | None) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self._passing.wait()
                sent = rewriter.feed(piece) if rewriter else piece
                if sent:
                    target.sendall(sent)
        # Whoever hung up: the other side hears of it, once the wire carries anything again.
        self._passing.wait()
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            with self._lock:
                self._open.discard(one)
            one.close()

    def _drop(self) -> None:
        with self._lock:
            dropped, self._open = self._open, set()
        for one in dropped:
            _reset(one)


def _reset(one: socket.socket) -> None:
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.shutdown(socket.SHUT_RD)  # wakes the thread that reads it; close() alone would not
    one.close()

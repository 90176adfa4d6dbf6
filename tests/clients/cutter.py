"""A proxy that cuts connections: what a client sees when the network breaks while it waits."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

RESET = struct.pack("ii", 1, 0)  # close() then sends RST


class Cutter:
    """Passes bytes on between its own port and that one. opened: connections so far. answered: bytes that came back."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.opened = self.answered = 0
        self._run(self._accept)

    def cut(self) -> None:
        """Every connection that is open now is reset at both ends."""
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.shutdown(socket.SHUT_RD)  # wakes the thread that reads it; close() alone would not
                one.close()
            self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._to_port))
            with self._lock:
                self._open += [here, there]
                self.opened += 1
            self._run(self._pass, here, there, False)
            self._run(self._pass, there, here, True)

    def _pass(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                self.answered += len(piece) * is_answer
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def _run(self, act: Callable[..., None], *words: object) -> None:
        thread = threading.Thread(target=act, args=words, daemon=True)
        self._threads.append(thread)
        thread.start()

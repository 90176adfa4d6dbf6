"""An upstream that answers every call with these bytes, piece by piece."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Sequence


class RawServer:
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._server = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"
        self.calls = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        with client:
            said = b""
            while b"\r\n\r\n" not in said:
                if not (part := client.recv(65536)):
                    return
                said += part
            head, _, body = said.partition(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head.lower())
            while len(body) < (int(found[1]) if found else 0):
                body += client.recv(65536)
            self.calls += 1
            for piece in self._pieces:
                client.sendall(piece)
                time.sleep(0.03)

    def close(self) -> None:
        self._server.close()

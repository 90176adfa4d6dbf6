"""Small upstreams with scripted answers: from a function of each call, or as raw bytes."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Call:
    """One call as it arrived. Header names are in lower case."""

    key: str
    body: bytes
    headers: Mapping[str, str]


#: Status, more headers, body.
Answer = tuple[int, dict[str, str], bytes]


class OddUpstream:
    """Answers each POST with the result of `answer`."""

    def __init__(self, answer: Callable[[Call], Answer]) -> None:
        self.calls: list[Call] = []
        self._answer = answer
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                upstream.respond(self)

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def respond(self, to: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in to.headers.items()}
        call = Call(headers["authorization"].removeprefix("Bearer "), to.rfile.read(int(headers.get("content-length", 0))), headers)
        self.calls.append(call)
        status, more, body = self._answer(call)
        to.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **more}.items():
            to.send_header(name, value)
        to.end_headers()
        to.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class RawUpstream:
    """Answers every call with these bytes, piece by piece, and closes the connection."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._server = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._server.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._respond, args=(client,), daemon=True).start()

    def _respond(self, client: socket.socket) -> None:
        with client:
            head, _, body = _until(client, b"\r\n\r\n").partition(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head.lower())
            while found and len(body) < int(found[1]):
                body += client.recv(65_536)
            for piece in self._pieces:
                client.sendall(piece)
                time.sleep(0.03)  # so that the pieces arrive one by one

    def close(self) -> None:
        self._server.close()


def chat(text: str = "hi", **members: Any) -> bytes:
    """A chat completion with this text; `members` replace those of the answer."""
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    result = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
    return json.dumps({**result, **members}).encode()


def error(message: str, **members: Any) -> bytes:
    """An error in OpenAI's shape."""
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **members}}).encode()


def events(*result: object) -> bytes:
    """Server-sent events with these data: bytes as they are, anything else as JSON."""
    return b"".join(b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in result)


def _until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received and (part := client.recv(65_536)):
        received += part
    return received

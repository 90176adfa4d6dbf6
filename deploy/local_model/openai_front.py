"""OpenAI front of the local model: OpenAI's routes, errors and model list. It forwards chats and draws images."""

from __future__ import annotations

import json
import logging
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from deploy.local_model import fake_images

CHAT_MODEL = "smollm2-135m"
FORWARDED = ("/v1/chat/completions", "/v1/responses")
MAX_BODY_BYTES = 4 * 1024 * 1024
TIMEOUT_S = 600

JsonObject = dict[str, Any]
log = logging.getLogger(__name__)


class Refused(Exception):
    """The error response to the request, in OpenAI's format."""

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class RequestHandler(BaseHTTPRequestHandler):
    """Serves one connection of a client with its successive requests."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    llama_port = 0

    def do_GET(self) -> None:
        self._respond(None)

    def do_POST(self) -> None:
        self._respond(self._body)

    do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing: a request line could contain a key."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Sends the standard library's own errors (bad request line, unknown method) in OpenAI's format."""
        self.close_connection = True
        self._send(code, Refused(code, f"{message or 'The request cannot be understood'}.").body)

    def _respond(self, read: Callable[[], bytes] | None) -> None:
        try:
            self._route(read() if read else None)
        except Refused as refusal:
            self._send(refusal.status, refusal.body)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:  # the border of a request
            log.exception("a request failed")
            self.close_connection = True
            self._send(500, Refused(500, "The local model failed. Its log says why.").body)

    def _route(self, body: bytes | None) -> None:
        path = self.path.split("?")[0].rstrip("/")
        if body is None and self.command == "GET" and path == "/v1/models":
            self._send(200, {"object": "list", "data": [_model(name) for name in (CHAT_MODEL, fake_images.MODEL)]})
        elif body is None and self.command == "GET" and path in (f"/v1/models/{CHAT_MODEL}", f"/v1/models/{fake_images.MODEL}"):
            self._send(200, _model(path.rpartition("/")[2]))
        elif body is not None and path == "/v1/images/generations":
            self._send(200, _generate_images(_parse(body)))
        elif body is not None and path in FORWARDED:
            self._forward(path, body, model=_parse(body).get("model"))
        else:
            raise Refused(
                404, f"There is no {self.command} {path} here; there is /v1/chat/completions, /v1/images/generations, /v1/models."
            )

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # the body follows on this connection, not a request
            raise Refused(413 if length.isdecimal() else 411, f"Send a body with a Content-Length of at most {MAX_BODY_BYTES} bytes.")
        return self.rfile.read(int(length))

    def _forward(self, path: str, body: bytes, *, model: object) -> None:
        """Streams the response of llama.cpp. A disconnect of the client aborts it."""
        if model != CHAT_MODEL:
            raise Refused(404, f"The model `{model}` does not exist. Here it is {CHAT_MODEL}.", code="model_not_found", param="model")
        upstream = HTTPConnection("127.0.0.1", self.llama_port, timeout=TIMEOUT_S)
        try:
            upstream.request("POST", path, body, {"Content-Type": "application/json"})
            _wait_for_response(upstream.sock, unless_closed=self.connection)
            answer = upstream.getresponse()
            if answer.status >= 400:
                raise _refusal(answer)
            self._stream(answer)
        except HTTPException as error:
            raise Refused(502, "The model's server did not answer. Try again.") from error
        finally:
            upstream.close()

    def _stream(self, answer: HTTPResponse) -> None:
        length = answer.getheader("Content-Length")
        framing = ("Content-Length", length) if length else ("Transfer-Encoding", "chunked")
        self._head(answer.status, answer.getheader("Content-Type") or "application/json", framing)
        for chunk in _chunks(answer):
            self.wfile.write(chunk if length else b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if not length:
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, status: int, value: JsonObject) -> None:
        body = json.dumps(value).encode()
        self._head(status, "application/json", ("Content-Length", str(len(body))))
        self.wfile.write(body)

    def _head(self, status: int, content_type: str, framing: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", content_type), framing, ("x-request-id", f"req_{uuid4().hex}")):
            self.send_header(name, value)
        self.end_headers()


class FrontServer(ThreadingHTTPServer):
    """HTTP server with a thread per connection. The backlog covers all threads of a worker."""

    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Logs nothing: only client disconnects end here."""


def _parse(body: bytes) -> JsonObject:
    with suppress(ValueError, RecursionError):
        if isinstance(value := json.loads(body), dict):
            return value
    raise Refused(400, "Send a JSON object.")


def _generate_images(body: JsonObject) -> JsonObject:
    try:
        return fake_images.generate(body, now=int(time.time()))
    except fake_images.InvalidImageRequest as error:
        raise Refused(400, str(error), param=error.param) from error


def _model(name: str) -> JsonObject:
    return {"id": name, "object": "model", "created": 1_730_000_000, "owned_by": "this machine"}


def _refusal(answer: HTTPResponse) -> Refused:
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(answer.read())["error"]
        return Refused(answer.status, str(error["message"]), code=str(error.get("type") or "") or None)
    return Refused(answer.status, "The model's server refused the request.")


def _wait_for_response(upstream: socket.socket, *, unless_closed: socket.socket) -> None:
    """Waits until the upstream responds. Raises ConnectionError when the client disconnects."""
    watched = [upstream, unless_closed]
    while upstream not in (readable := select.select(watched, [], [])[0]):
        if not unless_closed.recv(1, socket.MSG_PEEK):
            raise ConnectionAbortedError
        watched = [upstream] if unless_closed in readable else watched  # its next request has arrived, so it is connected


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    while chunk := answer.read1(65_536):
        yield chunk

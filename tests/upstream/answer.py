"""Responses of the fake upstream: a status with a JSON body or a list of server-sent events, and their bytes."""

from __future__ import annotations

import itertools
import json
import secrets
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

JsonObject = dict[str, Any]

REASONS = {status.value: status.phrase for status in HTTPStatus}
SSE = "text/event-stream; charset=utf-8"
END_OF_CHUNKS = b"0\r\n\r\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode
_numbers = itertools.count(1)
_run = secrets.token_hex(8)


@dataclass(slots=True)
class Answer:
    """A response. events: None for a plain body. headers: whole lines, each with its CRLF."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    events: list[bytes] | None = None
    headers: str = ""

    def head(self, more: str = "", *, length: int | None = None) -> bytes:
        """The status line and headers. length: a wrong content-length."""
        if self.events is None:
            size = f"content-length: {len(self.body) if length is None else length}\r\n"
        else:
            size = "transfer-encoding: chunked\r\n"
        first = f"HTTP/1.1 {self.status} {REASONS.get(self.status, 'Unknown')}\r\ncontent-type: {self.content_type}\r\n"
        return f"{first}{more}{self.headers}{size}\r\n".encode("latin-1")

    def whole(self, more: str = "") -> bytes:
        """Head and body as one byte string."""
        if self.events is None:
            return self.head(more) + self.body
        return self.head(more) + b"".join(map(chunk, self.events)) + END_OF_CHUNKS


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def fresh(prefix: str) -> str:
    """A unique id."""
    return f"{prefix}{_run}{next(_numbers):012x}"


def encode(shape: JsonObject) -> bytes:
    text = _encode(shape)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate of the prompt is returned as its JSON escape
        return json.dumps(shape).encode()


def plain(shape: JsonObject, *, status: int = 200) -> Answer:
    return Answer(status, encode(shape))


def error(status: int, message: str, *, type: str, code: str | None = None, param: str | None = None, headers: str = "") -> Answer:
    shape = {"error": {"message": message, "type": type, "param": param, "code": code}}
    return Answer(status, encode(shape), headers=headers)


def event(shape: JsonObject, *, name: str = "") -> bytes:
    first = f"event: {name}\n".encode() if name else b""
    return first + b"data: " + encode(shape) + b"\n\n"

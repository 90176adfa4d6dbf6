"""Responses with status 200 that are invalid in one way each."""

from __future__ import annotations

from dataclasses import replace

from tests.upstream.answer import Answer
from tests.upstream.wire import Connection

PAGE = b"<!doctype html><html><head><title>Just a moment...</title></head><body>Checking your browser.</body></html>"
WRONG_VALUES = {"nul": b'"\\u0000"', "surrogate": b'"\\ud800"', "nan": b"NaN"}
CLOSES = ("long", "short", "not_http")


def spoil(answer: Answer, kind: str, connection: Connection, head_lines: str) -> None:
    """Send an invalid response. A stream is sent as one body of events."""
    if kind == "not_http":
        connection.write(b"\x16\x03\x01\x02\x00 this is not HTTP\r\n\r\n")
        return connection.close()
    body = b"".join(answer.events) if answer.events is not None else answer.body
    length = {"long": len(body) + 100, "short": len(body) // 2}.get(kind)
    spoiled = replace(answer, events=None, body=_spoiled(body, kind))
    if kind == "no_content":
        return connection.write(f"HTTP/1.1 204 No Content\r\n{head_lines}\r\n".encode())
    if kind in ("html", "type"):
        spoiled.content_type = "text/html; charset=utf-8" if kind == "html" else "text/plain"
    connection.write(spoiled.head(head_lines, length=length) + spoiled.body)
    if kind in CLOSES:  # the lengths differ, so the client could not parse another response
        connection.close()


def _spoiled(body: bytes, kind: str) -> bytes:
    if kind == "html":
        return PAGE
    if kind == "empty":
        return b""
    if kind == "truncated":
        return body[: len(body) // 2]
    if kind == "trailing_comma":
        return body[:-1] + b",}"
    if kind == "objects":
        return body + b"\n" + body
    if kind == "binary":
        return bytes(range(256))
    if wrong := WRONG_VALUES.get(kind):
        given = wrong.strip(b'"')
        return body.replace(b"{", b'{"x_wrong":' + wrong + b",", 1).replace(b'"echo: ', b'"echo: ' + given, 1)
    return body

"""Responses with more bytes than announced, and connections that fail after a valid answer."""

from __future__ import annotations

import asyncio

from tests.upstream.answer import Answer
from tests.upstream.wire import Connection

KINDS = ("twice", "late", "chunked", "no_content", "http10", "close")
ENDINGS = ("close", "reset", "reset_next", "deaf")
LATE_S = 0.05
FOREIGN = b'{"id":"foreign","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"foreign"}}]}'


async def overflow(answer: Answer, kind: str, connection: Connection, head_lines: str) -> None:
    """The answer and an unexpected second one: in the same write, or 50 ms later (`late`)."""
    foreign = Answer(200, FOREIGN).whole()
    if kind == "late":
        connection.write(answer.whole(head_lines))
        await asyncio.sleep(LATE_S)
        return connection.write(foreign)
    whole = answer.whole(head_lines)
    if kind == "chunked":
        head = answer.head(head_lines).replace(b"content-length: %d" % len(answer.body), b"transfer-encoding: chunked")
        whole = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer.body), answer.body)
    elif kind == "no_content":
        whole = whole.replace(b"200 OK", b"204 No Content", 1)
    elif kind == "http10":
        whole = whole.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    elif kind == "close":
        whole = whole.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
    connection.write(whole + foreign)


def leave(connection: Connection, ending: str) -> None:
    """End the connection after a valid answer."""
    if ending == "close":
        connection.close()
    elif ending == "reset":
        connection.abort()
    else:
        connection.goes_deaf(resets=ending == "reset_next")

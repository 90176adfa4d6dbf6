"""Server-sent events: parses bytes as they arrive into events, and encodes events as ASCII bytes.

Source: the WHATWG HTML standard, 9.2.6. `id:` and `retry:` lines, comments and an incomplete last event are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from workers.upstream import answer_body

DONE = b"[DONE]"
_LINE_END = re.compile(rb"\r\n|\n|\r")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Event:
    """name: of the `event:` line, else empty. data: JSON or [DONE] as one ASCII line; others are escaped, line ends are spaces."""

    name: bytes
    data: bytes

    def encoded(self) -> bytes:
        """The whole event with its empty line."""
        first = b"event: %b\n" % self.name if self.name else b""
        return b"%bdata: %b\n\n" % (first, self.data)


class EventParser:
    """Parses a stream of bytes, whatever its parts are. content_type: its charset applies to bytes that are not UTF-8."""

    def __init__(self, content_type: str = "") -> None:
        self._content_type = content_type
        self._partial_line: list[bytes] = []
        self._is_first = True
        self._after_cr = False
        self._name = b""
        self._lines: list[bytes] = []

    def feed(self, part: bytes) -> list[Event]:
        """Returns the events that this part completes."""
        return [event for line in self._whole_lines(part) if (event := self._take(line)) is not None]

    def flush(self) -> list[Event]:
        """The last event of a stream that ended without an empty line. It may be incomplete."""
        return self.feed(b"\n\n")

    def _whole_lines(self, part: bytes) -> Iterator[bytes]:
        if not part:
            return
        if self._after_cr and part.startswith(b"\n"):
            part = part[1:]  # the second half of a CRLF whose CR has already ended the line
        self._after_cr = part.endswith(b"\r")
        line, *others = _LINE_END.split(part)
        for following in others:
            yield b"".join([*self._partial_line, line])
            self._partial_line.clear()
            line = following
        self._partial_line.append(line)

    def _take(self, line: bytes) -> Event | None:
        if self._is_first:
            self._is_first, line = False, line.removeprefix(_BOM)
        field, _, value = line.partition(b":")
        if field == b"data":
            self._lines.append(value.removeprefix(b" "))
        elif field == b"event":
            self._name = value.removeprefix(b" ")
        elif not line:
            event = Event(self._ascii(self._name), self._ascii(b" ".join(self._lines)))
            self._name, self._lines = b"", []
            return event if event.data else None
        return None

    def _ascii(self, text: bytes) -> bytes:
        if text.isascii():
            return text
        decoded = answer_body.decode(text, self._content_type, guesses=False)
        return _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], decoded).encode("ascii")


def encode_event(value: object, *, name: str = "") -> bytes:
    """Encodes a value as an event with JSON data."""
    return Event(name.encode(), json.dumps(value, separators=(",", ":")).encode()).encoded()

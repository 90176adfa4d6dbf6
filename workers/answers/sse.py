"""Server-sent events: bytes as they arrive become events, and an event becomes bytes again, in ASCII.

Source: the WHATWG HTML standard, 9.2.6. Its `id:` and `retry:` lines, comments and an event that was cut off are dropped.
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
    """name: of its `event:` line, else empty. data: JSON or [DONE], in ASCII on one line: characters as escapes, line ends as spaces."""

    name: bytes
    data: bytes

    def encoded(self) -> bytes:
        """The whole event with its empty line."""
        first = b"event: %b\n" % self.name if self.name else b""
        return b"%bdata: %b\n\n" % (first, self.data)


class EventParser:
    """Cuts a stream of bytes into events, wherever its parts begin and end. content_type: whose charset is that of what is no UTF-8."""

    def __init__(self, content_type: str = "") -> None:
        self._content_type = content_type
        self._begun: list[bytes] = []  # of a line, what has come of it
        self._is_first = True
        self._after_cr = False
        self._name = b""
        self._lines: list[bytes] = []

    def feed(self, part: bytes) -> list[Event]:
        """The events that this part completes."""
        return [event for line in self._whole_lines(part) if (event := self._take(line)) is not None]

    def rest(self) -> list[Event]:
        """The last event, when the stream has ended without the empty line behind it. It may have been cut off."""
        return self.feed(b"\n\n")

    def _whole_lines(self, part: bytes) -> Iterator[bytes]:
        if not part:
            return
        if self._after_cr and part.startswith(b"\n"):
            part = part[1:]  # the other half of a line end whose first half has already ended the line
        self._after_cr = part.endswith(b"\r")
        rest, *others = _LINE_END.split(part)
        for following in others:
            yield b"".join([*self._begun, rest])
            self._begun.clear()
            rest = following
        self._begun.append(rest)

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
        said = answer_body.decode(text, self._content_type, guesses=False)
        return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], said).encode("ascii")


def encode_event(value: object, *, name: str = "") -> bytes:
    """An event of our own that says this in JSON."""
    return Event(name.encode(), json.dumps(value, separators=(",", ":")).encode()).encoded()

"""The values of one HTTP call: its request, its answer, and the exceptions that say how far it came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any

from workers.upstream import answer_body

# A large request is passed to the connection in pieces of this size.
PIECE_BYTES = 256 * 1024


class NotSent(Exception):
    """No byte of the request left this machine: the upstream was provably not called."""


class Lost(Exception):
    """The request was sent and no whole answer came back: whether it was served and charged is unknown."""


class TooLarge(Lost):
    """The answer was cut at NOWSERVING_MAX_ANSWER_BYTES."""


class TimedOut(Lost):
    """The deadline passed before the answer was complete."""


class Aborted(Exception):
    """The call was cancelled by this server, which closed the connection."""


class Body:
    """The body of a large request: a byte stream that frees itself and its share of the memory budget once it is written.

    is_stored: it equals the request in the job's row, byte for byte. After a failed write, a new iteration starts from the beginning.
    """

    def __init__(self, content: bytes, *, is_stored: bool, on_written: Callable[[], None]) -> None:
        self.size, self.is_stored = len(content), is_stored
        self._content, self._on_written = content, on_written

    def __iter__(self) -> Iterator[bytes]:
        view = memoryview(self._content)
        for at in range(0, self.size, PIECE_BYTES):
            yield view[at : at + PIECE_BYTES]  # type: ignore[misc]  # sockets and h11 take bytes-like objects
        del view
        self._content = b""
        self._on_written()

    def content(self) -> bytes:
        """The whole body; empty once it was written."""
        return self._content


@dataclass(frozen=True)
class Request:
    """content None: a GET without a body. key_header: the header that carries the key. fresh: use a new connection."""

    url: str
    key: str = field(repr=False)
    headers: Mapping[str, str]
    content: bytes | Body | None = field(repr=False)
    fresh: bool = False
    key_header: str = "Authorization"


@dataclass(frozen=True)
class Answer:
    """A whole answer. Header names are in lower case; the body is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def json(self) -> dict[str, Any] | None:
        """The JSON object in the body; None for anything else. A large one comes without the base64 of its images."""
        return answer_body.parse_without_images(self.body)


@dataclass(frozen=True)
class IncomingAnswer:
    """An answer whose head has arrived. parts: its decompressed bytes as they arrive; raises TimedOut, Lost or Aborted.

    Header names are in lower case.
    """

    status: int
    headers: Mapping[str, str]
    parts: Iterator[bytes]

    def whole(self) -> Answer:
        """Reads the remaining parts into one answer."""
        body = BytesIO()  # grows without the second copy that a join needs
        for part in self.parts:
            body.write(part)
        return Answer(self.status, self.headers, body.getvalue())

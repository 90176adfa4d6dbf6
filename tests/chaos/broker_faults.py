"""What a pacer says to Redis, with its doorbells doubled or every tenth of them lost. The reply stays one integer, so nobody notices."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

QUEUES = (b"jobs", b"webhooks")
LOSE_EACH = 10


@dataclass
class Postman:
    """How doorbells are treated now: `once` (as they are), `twice`, or `lossy`. Counts what it did."""

    how: str = "once"
    doubled: int = 0
    lost: int = 0
    _seen: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def handle(self, words: list[bytes]) -> list[bytes]:
        """The command that goes on instead of this one."""
        if self.how == "once" or words[0].upper() not in (b"LPUSH", b"RPUSH") or words[1] not in QUEUES:
            return words
        if self.how == "twice":
            self.doubled += len(words) - 2
            return [*words, *words[2:]]
        if next(self._seen) % LOSE_EACH == 0:
            self.lost += len(words) - 2
            return [b"LLEN", words[1]]
        return words


class Rewriter:
    """One connection's commands, read as they come in, passed on as the postman wants them."""

    def __init__(self, postman: Postman) -> None:
        self._postman = postman
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        """What may go on now: whole commands only."""
        self._rest += piece
        out = b""
        while found := _command(self._rest):
            words, end = found
            out += encoded(self._postman.handle(words)) if words else self._rest[:end]
            self._rest = self._rest[end:]
        return out


def _command(data: bytes) -> tuple[list[bytes], int] | None:
    """The first command and where it ends; None until it is whole. Source: RESP, arrays of bulk strings."""
    end = data.find(b"\r\n")
    if end < 0:
        return None
    if data[:1] != b"*":
        return [], end + 2  # an inline command: passed on as it is
    words, at = [], end + 2
    for _ in range(int(data[1:end])):
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        length = int(data[at + 1 : end])
        at = end + 2 + length + 2
        if len(data) < at:
            return None
        words.append(data[end + 2 : at - 2])
    return words, at


def encoded(words: list[bytes]) -> bytes:
    """The command as it is sent."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)

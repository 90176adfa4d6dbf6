"""Rewrites the pacer's Redis commands: duplicates broker messages, or drops every tenth.

The reply stays one integer, so no client notices.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

QUEUES = (b"jobs", b"webhooks")
LOSE_EVERY = 10


@dataclass
class MessageFaults:
    """How broker messages are treated now: `once` (unchanged), `twice` or `lossy`. Counts duplicates and losses."""

    mode: str = "once"
    doubled: int = 0
    lost: int = 0
    _seen: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def rewrite(self, args: list[bytes]) -> list[bytes]:
        """The command to forward in place of this one."""
        if self.mode == "once" or args[0].upper() not in (b"LPUSH", b"RPUSH") or args[1] not in QUEUES:
            return args
        if self.mode == "twice":
            self.doubled += len(args) - 2
            return [*args, *args[2:]]
        if next(self._seen) % LOSE_EVERY == 0:
            self.lost += len(args) - 2
            return [b"LLEN", args[1]]
        return args


class CommandRewriter:
    """Parses the commands of one connection and forwards what MessageFaults returns for each."""

    def __init__(self, faults: MessageFaults) -> None:
        self._faults = faults
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """Add bytes; return the whole commands that can be forwarded."""
        self._rest += chunk
        out = b""
        while parsed := _parse_command(self._rest):
            args, end = parsed
            out += encode_command(self._faults.rewrite(args)) if args else self._rest[:end]
            self._rest = self._rest[end:]
        return out


def _parse_command(data: bytes) -> tuple[list[bytes], int] | None:
    """Parse the first command and its end offset; None while it is incomplete. Source: RESP, arrays of bulk strings."""
    end = data.find(b"\r\n")
    if end < 0:
        return None
    if data[:1] != b"*":
        return [], end + 2  # an inline command: forwarded unchanged
    args, at = [], end + 2
    for _ in range(int(data[1:end])):
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        length = int(data[at + 1 : end])
        at = end + 2 + length + 2
        if len(data) < at:
            return None
        args.append(data[end + 2 : at - 2])
    return args, at


def encode_command(args: list[bytes]) -> bytes:
    """Encode a command as a RESP array of bulk strings."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(arg), arg) for arg in args)

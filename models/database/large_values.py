"""Memory of large bodies on their way to and from Postgres: dumpers without copies, and a limit on simultaneous transfers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format

from models.database.pool import FifoSemaphore
from models.platform.errors import Unavailable

# The driver's buffers of a connection never shrink: a connection that moved a larger value is closed.
MAX_BUFFER_BYTES = 2 * 1024 * 1024
# How many bodies of more than FREE_BYTES are moved at a time; each needs a copy in the driver's buffer. With two, short submits beside
# 30 uploads of 19 MB took 158 ms at p99 instead of 116 (one run each, load 3 to 5 on two cores).
MAX_TRANSFERS = 1
# A frozen Postgres blocks the current transfer for as long as it is frozen. The others are refused, and workers spool their answers.
STALL_TIMEOUT_S = 10.0
TOTAL_TIMEOUT_S = 60.0
FREE_BYTES = 1024 * 1024

_transfers = FifoSemaphore(MAX_TRANSFERS)
_grown: WeakSet[Any] = WeakSet()


@contextmanager
def transfer_slot(size: int, *, gives_up: bool = True) -> Iterator[None]:
    """Limits how many large bodies are copied to or from Postgres at a time; size: of the body, in bytes.

    Raises Unavailable after a timeout; with gives_up False the body is then copied without a slot.
    Not to be entered twice by one thread, nor while a transaction is open.
    """
    if size <= FREE_BYTES:
        yield
        return
    is_acquired, is_served = _transfers.acquire(STALL_TIMEOUT_S, TOTAL_TIMEOUT_S), False
    if gives_up and not is_acquired:
        raise Unavailable
    try:
        yield
        is_served = True
    finally:
        if is_acquired:
            _transfers.release(is_served=is_served)


def has_grown(connection: psycopg.Connection[Any]) -> bool:
    """Whether this connection moved a value of more than MAX_BUFFER_BYTES."""
    return connection in _grown


def register(connection: Any) -> None:
    """Registers the dumper and the loader of bytea for a new connection."""
    connection.adapters.register_dumper(bytes, _BytesDumper)
    connection.adapters.register_loader("bytea", _BytesLoader)


class _BytesDumper(Dumper):
    """Passes bytes on without a copy, unlike the driver's own dumper. Records connections whose buffer has grown."""

    oid = psycopg.adapters.types["bytea"].oid
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        if len(obj) > MAX_BUFFER_BYTES:
            _grown.add(self.connection)
        return obj  # type: ignore[no-any-return]


class _BytesLoader(Loader):
    """The loader for bytes in results. Records connections whose buffer has grown."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        if len(data) > MAX_BUFFER_BYTES:
            _grown.add(self.connection)
        return bytes(data)

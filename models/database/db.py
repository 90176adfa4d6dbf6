"""The one way to Postgres: a pool of connections per process, a transaction per step.

Statements are SQLAlchemy's `text`, run by psycopg itself: what SQLAlchemy does around each one costs twice what psycopg does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, Loader
from psycopg.pq import ExecStatus, Format, TransactionStatus
from psycopg.rows import namedtuple_row
from sqlalchemy import Engine, TextClause, create_engine, event, text
from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from models.config.settings import settings
from models.platform.errors import Unavailable

_dialect = psycopg_dialect.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # untyped in part
CONNECT_TIMEOUT_S = 2
# Without anybody's coming through: Postgres is away, or hangs.
STILL_TIMEOUT_S = 2.0
# While others come through: it is busy, and who asks again later finds it no less so.
BUSY_TIMEOUT_S = 10.0
# Statements that end transactions we rely on to be short (line.SETTLED_S): the server is told, whatever its own defaults.
# And a connection whose client was cut off ends on the server too, after half a minute instead of two hours: each partition would leave
# a pool of them behind until max_connections is used up. Three probes may be lost: with a shorter tcp_user_timeout one would be enough.
SERVER_OPTIONS = (
    "-c statement_timeout=5s -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
    " -c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=30s"
)


# What the driver's own buffers of a connection have once grown to, they keep: a connection that moved more in one value is closed.
GROWN_BYTES = 2 * 1024 * 1024
# So many bodies of more than FREE_BYTES are moved at a time; each needs a copy in the driver's buffer. With two, short submits beside 30
# uploads of 19 MB took 158 ms at p99 instead of 116 (one run each, load 3 to 5 on two cores).
LARGE_AT_ONCE = 1
# A frozen Postgres keeps the one that is moved for as long as it is frozen: the others are told, and workers keep their answers on disk.
LARGE_STILL_S = 10.0
LARGE_BUSY_S = 60.0
FREE_BYTES = 1024 * 1024

# Tables that are not there yet, or are those of an older version: `up` starts its parts while `migrate` still runs.
NOT_MIGRATED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)


class Rows:
    """The rows of a statement, all of them here. Columns are attributes; `_asdict()` has them by name."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        # Not cursor.description: it makes an object for each column.
        self.returns_rows = cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK
        self._rows = cursor.fetchall() if self.returns_rows else []

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def all(self) -> list[Any]:
        return self._rows

    def one(self) -> Any:
        """The only row. Raises LookupError when there are more or none."""
        if len(self._rows) != 1:
            raise LookupError(f"{len(self._rows)} rows where one was expected")
        return self._rows[0]

    def one_or_none(self) -> Any | None:
        """The only row, if any. Raises LookupError when there are more."""
        return self.one() if self._rows else None

    def scalars(self) -> list[Any]:
        """The first column."""
        return [row[0] for row in self._rows]

    def scalar_one(self) -> Any:
        return self.one()[0]

    def scalar_one_or_none(self) -> Any | None:
        return self.one()[0] if self._rows else None


class Transaction:
    """What the functions of models need of a connection: they execute, they never commit."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, statement: TextClause, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, /) -> Rows:
        """The statement has run, once for each of the parameters; several leave no rows."""
        sql, names = _sql(statement.text)
        # Raw: psycopg would look for placeholders in a long statement (4 KB) whenever it runs, which took an eighth of a submit.
        with psycopg.RawCursor(self._connection, row_factory=namedtuple_row) as cursor:
            # Results in binary: bytes would come as hexadecimal digits, twice as long.
            if parameters is None:
                cursor.execute(sql, binary=True)
            elif isinstance(parameters, Mapping):
                cursor.execute(sql, [parameters[name] for name in names], binary=True)
            else:
                cursor.executemany(sql, [[each[name] for name in names] for each in parameters])
            return Rows(cursor)


class _Bytes(Dumper):
    """Bytes as they are: the driver's own dumper copies them. Notes on their connection that its buffer has grown."""

    oid = psycopg.adapters.types["bytea"].oid
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer:
        if len(obj) > GROWN_BYTES:
            _grown.add(self.connection)
        return obj  # type: ignore[no-any-return]


class _LoadedBytes(Loader):
    """Bytes of a result, likewise."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        if len(data) > GROWN_BYTES:
            _grown.add(self.connection)
        return bytes(data)


_grown: WeakSet[Any] = WeakSet()


class _Turns:
    """So many may have a connection at a time, in the order in which they asked.

    SQLAlchemy's pool lets who comes at the right moment overtake those who wait: with more callers than connections on a busy machine
    some waited for 2 s while others had five (seen at 64 callers).
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._served_at = 0.0
        self._waiting: deque[threading.Event] = deque()
        self._lock = threading.Lock()

    def take(self, still_s: float, busy_s: float) -> bool:
        """Whether it is one's turn; `give` must follow then. still_s: so long while nobody is served; busy_s: so long at most."""
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        asked = time.monotonic()
        try:
            while not mine.is_set() and (left_s := self._patience_s(asked, still_s, busy_s)) > 0:
                mine.wait(left_s)
        except BaseException:
            if not self._gives_up(mine):
                self.give()
            raise
        return not self._gives_up(mine)

    def _patience_s(self, asked: float, still_s: float, busy_s: float) -> float:
        """How much longer to wait, if nobody is served meanwhile."""
        return min(max(asked, self._served_at) + still_s, asked + busy_s) - time.monotonic()

    def _gives_up(self, mine: threading.Event) -> bool:
        """Whether it was not its turn yet."""
        with self._lock:
            if is_waiting := not mine.is_set():
                self._waiting.remove(mine)
        return is_waiting

    def give(self, *, is_served: bool = False) -> None:
        """It is the turn of the one who has waited longest. is_served: Postgres did what the turn was for, or refused it."""
        with self._lock:
            if is_served:
                self._served_at = time.monotonic()
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1


_large = _Turns(LARGE_AT_ONCE)


@contextmanager
def moving(size: int, *, gives_up: bool = True) -> Iterator[None]:
    """While a body of so many bytes is copied, to or from Postgres: a large one waits until few others are.

    Raises Unavailable where none came through for long; gives_up False: then it is copied all the same.
    Not to be entered twice by one thread, nor while a transaction is open.
    """
    if size <= FREE_BYTES:
        yield
        return
    is_mine, is_served = _large.take(LARGE_STILL_S, LARGE_BUSY_S), False
    if gives_up and not is_mine:
        raise Unavailable
    try:
        yield
        is_served = True
    finally:
        if is_mine:
            _large.give(is_served=is_served)


@cache
def _turns(_: Engine) -> _Turns:
    return _Turns(settings().database_pool)


@cache
def engine() -> Engine:
    """This process's pool of connections. Raises Unavailable when no database is set."""
    url = settings().database_url
    if not url:
        raise Unavailable("NOWSERVING_DATABASE_URL is not set: point it at PostgreSQL, or use `nowserving up`, which brings one.")
    made = create_engine(
        url,
        # No overflow: connections beyond the size are closed when they come back, and each new one costs a backend and all its plans.
        pool_size=settings().database_pool,
        max_overflow=0,
        pool_use_lifo=True,
        pool_timeout=STILL_TIMEOUT_S,
        pool_recycle=1800,
        pool_pre_ping=False,
        # An error's text must not quote prompts and keys.
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": SERVER_OPTIONS,
            "application_name": "nowserving",
            # Of one that waits for an answer: without the interval the second probe came after 75 s.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            # A server that is cut off rather than gone: give up on what it does not acknowledge.
            "tcp_user_timeout": 5000,
        },
    )
    event.listen(made, "connect", _adapt)
    event.listen(made, "connect", _doubts.opened)
    event.listen(made, "checkout", _doubts.wanted)
    return made


def _adapt(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.adapters.register_dumper(bytes, _Bytes)
    connection.adapters.register_loader("bytea", _LoadedBytes)


@contextmanager
def begin() -> Iterator[Transaction]:
    """One transaction, committed on the way out. Raises Unavailable when Postgres cannot be reached: nothing was stored,
    or, if it was the commit that broke, nobody knows; every caller's step may be repeated."""
    with _borrowed() as connection:
        yield Transaction(connection)
        connection.commit()


@contextmanager
def autocommit() -> Iterator[Transaction]:
    """Each statement is a transaction of its own: one round trip where `begin` takes two more. Raises Unavailable likewise.

    For a single statement, and for reads: at READ COMMITTED each has its own snapshot in a transaction too.
    """
    with _borrowed() as connection:
        connection.autocommit = True
        try:
            yield Transaction(connection)
        finally:
            if not connection.closed:
                connection.autocommit = False


def ping() -> None:
    """Postgres answers. Raises Unavailable."""
    with autocommit() as session:
        session.execute(text("SELECT 1"))


@contextmanager
def _borrowed() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the pool, which rolls back what is left open in it when it comes back."""
    turns = _turns(engine())
    if not turns.take(STILL_TIMEOUT_S, BUSY_TIMEOUT_S):
        raise Unavailable
    is_served = True
    try:
        with _lent() as connection:
            yield connection
    except Unavailable:
        is_served = False
        raise
    finally:
        turns.give(is_served=is_served)


@contextmanager
def _lent() -> Iterator[psycopg.Connection[Any]]:
    try:
        borrowed = engine().raw_connection()
    except (psycopg.OperationalError, PoolTimeout) as error:
        raise Unavailable from error
    connection: psycopg.Connection[Any] = borrowed.dbapi_connection  # type: ignore[assignment]  # the driver's own, as the URL says
    try:
        yield connection
    except psycopg.Error as error:
        is_outdated = _is_outdated(error)
        if connection.closed or is_outdated:
            _doubts.arise()
        if connection.closed or is_outdated or isinstance(error, (psycopg.OperationalError, *NOT_MIGRATED)):
            raise Unavailable from error
        raise
    finally:
        if not connection.closed and connection.info.transaction_status == TransactionStatus.ACTIVE:
            borrowed.invalidate()  # it was left in the middle of a statement
        elif connection in _grown:
            borrowed.invalidate()
        borrowed.close()


def _is_outdated(error: psycopg.Error) -> bool:
    """A newer version has added a column to what a prepared statement returns: every connection would refuse that one from now on."""
    # Of what a server cannot do, only this has a place of its own in its source; the message is in the server's language.
    return isinstance(error, psycopg.errors.FeatureNotSupported) and error.diag.source_function == "RevalidateCachedQuery"


@lru_cache(maxsize=1024)
def _sql(statement: str) -> tuple[str, tuple[str, ...]]:
    """As PostgreSQL wants it, $1 for the first :name, and these names in order."""
    compiled: Any = text(statement).compile(dialect=_dialect)
    return str(compiled), tuple(compiled.positiontup)


class _Doubts:
    """Once a connection broke, those that were opened before are not used again: what they lead to is very likely gone too."""

    def __init__(self) -> None:
        self._since = 0.0

    def arise(self) -> None:
        self._since = time.monotonic()

    def opened(self, _: object, entry: ConnectionPoolEntry) -> None:
        entry.info["opened"] = time.monotonic()

    def wanted(self, _: object, entry: ConnectionPoolEntry, __: PoolProxiedConnection) -> None:
        if entry.info["opened"] <= self._since:
            raise DisconnectionError  # the pool opens another


_doubts = _Doubts()

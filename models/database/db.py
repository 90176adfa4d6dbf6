"""Transactions on PostgreSQL, over one connection pool per process.

Statements are SQLAlchemy's `text`, executed by psycopg directly: SQLAlchemy's own execution costs twice the time of psycopg.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import psycopg
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import namedtuple_row
from sqlalchemy import Engine, TextClause, create_engine, event, text
from sqlalchemy.dialects.postgresql import psycopg as psycopg_dialect
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from models.config.settings import settings
from models.database import large_values
from models.database.pool import FifoSemaphore, StaleConnections
from models.platform.errors import Unavailable

_dialect = psycopg_dialect.dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]  # untyped in part
CONNECT_TIMEOUT_S = 2
# No caller got an answer for so long: Postgres is down, or hangs.
STALL_TIMEOUT_S = 2.0
# Other callers get answers, so Postgres is only busy. A caller that tries again later finds it as busy.
TOTAL_TIMEOUT_S = 10.0
# Statement timeouts end the transactions that must be short (budgets.SETTLED_S). They are set here, whatever the server's defaults are.
# The TCP options end a connection on the server half a minute after its client was cut off, instead of two hours: each network partition
# would otherwise leave a pool of them, until max_connections is reached. They tolerate three lost probes; a shorter tcp_user_timeout
# would tolerate none.
SERVER_OPTIONS = (
    "-c statement_timeout=5s -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
    " -c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=30s"
)
# Tables that are missing, or are those of an older version: `nowserving up` starts its services while `migrate` still runs.
NOT_MIGRATED = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)
_stale_connections = StaleConnections()


class Rows:
    """The fetched rows of a statement. Columns are attributes; `_asdict()` returns them by name."""

    def __init__(self, cursor: psycopg.Cursor[Any]) -> None:
        # Not cursor.description: it creates an object for each column.
        self.returns_rows = cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK
        self._rows = cursor.fetchall() if self.returns_rows else []

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def all(self) -> list[Any]:
        """Every row."""
        return self._rows

    def one(self) -> Any:
        """The only row. Raises LookupError when there are more or none."""
        if len(self._rows) != 1:
            raise LookupError(f"expected one row, got {len(self._rows)}")
        return self._rows[0]

    def one_or_none(self) -> Any | None:
        """The only row, if any. Raises LookupError when there are more."""
        return self.one() if self._rows else None

    def scalars(self) -> list[Any]:
        """The first column."""
        return [row[0] for row in self._rows]

    def scalar_one(self) -> Any:
        """The first column of the only row."""
        return self.one()[0]

    def scalar_one_or_none(self) -> Any | None:
        """The first column of the only row; None if there is no row."""
        return self.one()[0] if self._rows else None


class Transaction:
    """An open transaction. The functions of models execute statements in it; they never commit."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def execute(self, statement: TextClause, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, /) -> Rows:
        """Executes the statement, once for each item of a sequence of parameters. A sequence returns no rows."""
        sql, names = _compile(statement.text)
        # RawCursor: the other cursors parse a long statement (4 KB) for placeholders at each execution, an eighth of a submit's time.
        with psycopg.RawCursor(self._connection, row_factory=namedtuple_row) as cursor:
            # Binary results: in text format bytes are hexadecimal digits, twice as long.
            if parameters is None:
                cursor.execute(sql, binary=True)
            elif isinstance(parameters, Mapping):
                cursor.execute(sql, [parameters[name] for name in names], binary=True)
            else:
                cursor.executemany(sql, [[each[name] for name in names] for each in parameters])
            return Rows(cursor)


@contextmanager
def begin() -> Iterator[Transaction]:
    """One transaction, committed at the end of the block.

    Raises Unavailable when Postgres cannot be reached: nothing was stored, or, if the commit itself failed, the outcome is unknown. Every
    caller can repeat its step.
    """
    with _acquire_connection() as connection:
        yield Transaction(connection)
        connection.commit()


@contextmanager
def autocommit() -> Iterator[Transaction]:
    """Each statement is its own transaction: one round trip where `begin` takes two more. Raises Unavailable as `begin` does.

    For a single statement, and for reads: at READ COMMITTED each statement of a transaction has its own snapshot anyway.
    """
    with _acquire_connection() as connection:
        connection.autocommit = True
        try:
            yield Transaction(connection)
        finally:
            # In the middle of a statement the setter raises, and would hide the error of the block; such a connection is closed anyway.
            if connection.info.transaction_status == TransactionStatus.IDLE:
                connection.autocommit = False


def ping() -> None:
    """Checks that Postgres answers. Raises Unavailable."""
    with autocommit() as session:
        session.execute(text("SELECT 1"))


@cache
def engine() -> Engine:
    """The connection pool of this process. Raises Unavailable when no database is set."""
    url = settings().database_url
    if not url:
        raise Unavailable("NOWSERVING_DATABASE_URL is not set: point it at PostgreSQL, or use `nowserving up`, which brings one.")
    pool = create_engine(
        url,
        # No overflow: overflow connections are closed on return, and each new one costs a backend and all its plans.
        pool_size=settings().database_pool,
        max_overflow=0,
        pool_use_lifo=True,
        pool_timeout=STALL_TIMEOUT_S,
        pool_recycle=1800,
        pool_pre_ping=False,
        # The text of an error must not quote prompts and keys.
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": SERVER_OPTIONS,
            "application_name": "nowserving",
            # For a connection that waits for an answer: without the interval the second probe came after 75 s.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            # For a server that is cut off rather than gone: gives up on data that it does not acknowledge.
            "tcp_user_timeout": 5000,
        },
    )
    event.listen(pool, "connect", _register_adapters)
    event.listen(pool, "connect", _stale_connections.opened)
    event.listen(pool, "checkout", _stale_connections.check)
    return pool


def _register_adapters(connection: Any, _: ConnectionPoolEntry) -> None:
    large_values.register(connection)


@cache
def _semaphore(_: Engine) -> FifoSemaphore:
    return FifoSemaphore(settings().database_pool)


@contextmanager
def _acquire_connection() -> Iterator[psycopg.Connection[Any]]:
    """A connection of the pool, in the order of arrival. The pool rolls back what is left open when the connection returns."""
    semaphore = _semaphore(engine())
    if not semaphore.acquire(STALL_TIMEOUT_S, TOTAL_TIMEOUT_S):
        raise Unavailable
    is_served = True
    try:
        with _pool_connection() as connection:
            yield connection
    except Unavailable:
        is_served = False
        raise
    finally:
        semaphore.release(is_served=is_served)


@contextmanager
def _pool_connection() -> Iterator[psycopg.Connection[Any]]:
    try:
        pooled = engine().raw_connection()
    except (psycopg.OperationalError, PoolTimeout) as error:
        raise Unavailable from error
    connection: psycopg.Connection[Any] = pooled.dbapi_connection  # type: ignore[assignment]  # the driver's own, as the URL says
    try:
        yield connection
    except psycopg.Error as error:
        has_old_plan = _has_old_plan(error)
        if connection.closed or has_old_plan:
            _stale_connections.mark()
        if connection.closed or has_old_plan or isinstance(error, (psycopg.OperationalError, *NOT_MIGRATED)):
            raise Unavailable from error
        raise
    finally:
        is_busy = not connection.closed and (connection.info.transaction_status == TransactionStatus.ACTIVE or connection.autocommit)
        if is_busy or large_values.has_grown(connection):
            pooled.invalidate()
        pooled.close()


def _has_old_plan(error: psycopg.Error) -> bool:
    """Whether a newer version added a column to the result of a prepared statement: every connection would refuse it from now on."""
    # Of the errors FeatureNotSupported, only this one has its own function in the server's source; the message is in its language.
    return isinstance(error, psycopg.errors.FeatureNotSupported) and error.diag.source_function == "RevalidateCachedQuery"


@lru_cache(maxsize=1024)
def _compile(statement: str) -> tuple[str, tuple[str, ...]]:
    """The statement with $1 for the first :name, as PostgreSQL expects it, and the names in order."""
    compiled: Any = text(statement).compile(dialect=_dialect)
    return str(compiled), tuple(compiled.positiontup)

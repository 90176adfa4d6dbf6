"""The one way to Postgres: an engine per process, a transaction per step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

from sqlalchemy import CursorResult, Engine, TextClause, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from models.errors import Unavailable
from models.settings import settings

CONNECT_TIMEOUT_S = 2
POOL_TIMEOUT_S = 2
# Statements that end transactions we rely on to be short (line.SETTLED_S): the server is told, whatever its own defaults.
SERVER_OPTIONS = "-c statement_timeout=5s -c lock_timeout=2s -c idle_in_transaction_session_timeout=10s -c timezone=UTC"


class Session(Protocol):
    """What the functions of models need of a connection: they execute, they never commit."""

    def execute(
        self, statement: TextClause, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, /
    ) -> CursorResult[Any]: ...


@cache
def engine() -> Engine:
    """This process's engine. Raises Unavailable when no database is set."""
    url = settings().database_url
    if not url:
        raise Unavailable("NOWSERVING_DATABASE_URL is not set: point it at PostgreSQL, or use `nowserving up`, which brings one.")
    return create_engine(
        url,
        # No overflow: connections beyond the size are closed when they come back, and each new one costs a backend and all its plans.
        pool_size=settings().database_pool,
        max_overflow=0,
        pool_use_lifo=True,
        pool_timeout=POOL_TIMEOUT_S,
        pool_recycle=1800,
        pool_pre_ping=False,
        # An error's text must not quote prompts and keys.
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": SERVER_OPTIONS,
            "application_name": "nowserving",
            "keepalives_idle": 10,
            # A server that is cut off rather than gone: give up on what it does not acknowledge.
            "tcp_user_timeout": 5000,
        },
    )


@contextmanager
def begin() -> Iterator[Session]:
    """One transaction, committed on the way out. Raises Unavailable when Postgres cannot be reached: nothing was stored,
    or, if it was the commit that broke, nobody knows; every caller's step may be repeated."""
    try:
        with engine().begin() as connection:
            yield connection
    except (OperationalError, PoolTimeout) as error:
        raise Unavailable from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable from error
        raise


def ping() -> None:
    """Postgres answers. Raises Unavailable."""
    with begin() as session:
        session.execute(text("SELECT 1"))

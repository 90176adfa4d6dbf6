"""The database's tables are brought to this version; safe to run from several processes at once.

Two versions may run on one database: a migration only adds what the version before it does without (docs/guides/deploy.md). So a version
that comes back after a newer one has been there finds tables that it can use, and leaves them alone.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from sqlalchemy import create_engine, inspect, text

from models.config.settings import settings

VERSIONS = Path(__file__).parents[1] / "migrations" / "versions"


def to_latest() -> str | None:
    """Every migration has run. The revision of a database that a newer version has migrated: nothing was done to it.

    Raises what Postgres says when it cannot be reached.
    """
    found, newest = revision(), head()
    if found is not None and found > newest:
        return found
    if found != newest:
        importlib.import_module("models.database.upgrade").upgrade()
    return None


def head() -> str:
    """The newest revision that this version knows. Revisions are numbers of four digits, and their files' names begin with them."""
    return max(file.name[:4] for file in VERSIONS.glob("[0-9]*.py"))


def revision() -> str | None:
    """The revision of the database; None: it has no tables. Raises what Postgres says when it cannot be reached."""
    engine = create_engine(settings().database_url)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
            return found
    finally:
        engine.dispose()

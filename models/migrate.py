"""The database's tables are brought to this version; safe to run from several processes at once.

Two versions may run on one database: a migration only adds what the version before it does without (docs/deploy.md). So a version that
comes back after a newer one has been there finds tables that it can use, and leaves them alone.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from models.settings import settings


def to_latest() -> str | None:
    """Every migration has run. The revision of a database that a newer version has migrated: nothing was done to it.

    Raises what Postgres says when it cannot be reached.
    """
    if is_newer(found := revision()):
        return found
    command.upgrade(config(), "head")
    return None


def is_newer(found: str | None) -> bool:
    """Whether this revision came after all that this version knows. Ours are numbers of four digits."""
    return found is not None and found > (ScriptDirectory.from_config(config()).get_current_head() or "")


def revision() -> str | None:
    """What the database is at; None: empty. Raises what Postgres says when it cannot be reached."""
    engine = create_engine(settings().database_url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def config() -> Config:
    """Alembic's configuration, without a file of its own."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    made.set_main_option("sqlalchemy.url", settings().database_url.replace("%", "%%"))
    return made

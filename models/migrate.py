"""The database's tables are brought to this version; safe to run from several processes at once."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from models.settings import settings


def to_latest() -> None:
    """Every migration has run. Raises what Postgres says when it cannot be reached."""
    command.upgrade(config(), "head")


def config() -> Config:
    """Alembic's configuration, without a file of its own."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    made.set_main_option("sqlalchemy.url", settings().database_url.replace("%", "%%"))
    return made

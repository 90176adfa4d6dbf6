"""Alembic's command that brings the tables to the newest revision. Imported only for a database that is behind: it takes half a second."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from models.config.settings import settings

HERE = Path(__file__).parents[1]


def upgrade() -> None:
    """Every migration has run. Raises what Postgres says when it cannot be reached."""
    command.upgrade(config(), "head")


def config() -> Config:
    """Alembic's configuration, without a file of its own."""
    made = Config()
    made.set_main_option("script_location", str(HERE / "migrations"))
    made.set_main_option("sqlalchemy.url", settings().database_url.replace("%", "%%"))
    return made

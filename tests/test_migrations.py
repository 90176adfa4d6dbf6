"""What the migrations build is what models/tables.py says."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from models.tables import metadata


def test_the_migrations_make_the_tables_as_they_are_described(environment: dict[str, str]) -> None:
    engine = create_engine(environment["NOWSERVING_DATABASE_URL"])
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()

    assert [] == found

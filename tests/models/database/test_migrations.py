"""Migrations produce the tables of models/database/tables, and two versions can use one database."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url, text

from cli.main import nowserving
from models.database import migrate
from models.database.tables import metadata
from tests.support.programs.process import until

VERSIONS = sorted(migrate.VERSIONS.glob("[0-9]*.py"))
# models/migrations/env.py
LOCK = 0x6E6F7773
# Since this one, the version before a migration can work on its tables.
PROMISED_SINCE = "0005"
# What the version before may need (dropped, renamed, retyped), and what it may not fill (a column that must be given).
TAKEN_AWAY = re.compile(
    r"op\.drop_(?:column|table|constraint)|rename_table|new_column_name|\btype_=|\bDROP (?:TABLE|COLUMN)\b|\bRENAME\b|SET NOT NULL"
)
MUST_BE_GIVEN = re.compile(r"add_column\((?!.*server_default)(?=.*nullable=False)")


def test_the_migrations_make_the_tables_as_they_are_described(environment: dict[str, str]) -> None:
    engine = create_engine(environment["NOWSERVING_DATABASE_URL"])
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()

    assert [] == found


def broken(source: str) -> list[str]:
    """Lines of its upgrade that the version before it could not live with."""
    upgrade = source.partition("def upgrade")[2].partition("def downgrade")[0]
    return [line.strip() for line in upgrade.splitlines() if TAKEN_AWAY.search(line) or MUST_BE_GIVEN.search(line)]


@pytest.mark.parametrize("file", [file for file in VERSIONS if file.name[:4] >= PROMISED_SINCE], ids=lambda file: file.stem)
def test_migration_adds_only_columns_that_the_previous_version_can_omit(file: Path) -> None:
    assert [] == broken(file.read_text())


@pytest.mark.parametrize(
    "line",
    [
        'op.drop_column("job", "held")', 'op.alter_column("job", "user", new_column_name="flow")',
        'op.add_column("job", sa.Column("colour", sa.Text(), nullable=False))', 'op.alter_column("job", "cost", type_=sa.Integer())',
    ],
)  # fmt: skip
def test_a_migration_that_takes_away_is_found(line: str) -> None:
    assert [line] == broken(f"def upgrade():\n    {line}\n\n\ndef downgrade():\n    pass\n")
    assert [] == broken('def upgrade():\n    op.add_column("job", sa.Column("colour", sa.Text()))\n')


def test_revisions_are_numbers_in_order() -> None:
    assert [f"{n:04}" for n in range(1, len(VERSIONS) + 1)] == [file.name[:4] for file in VERSIONS]


@pytest.fixture
def empty(environment: dict[str, str], override: Callable[..., None]) -> Iterator[str]:
    """The URL of an empty database beside that of the run; the settings name it."""
    run = create_engine(environment["NOWSERVING_DATABASE_URL"], isolation_level="AUTOCOMMIT")
    with run.connect() as connection:
        connection.execute(text("CREATE DATABASE beside"))
    url = make_url(environment["NOWSERVING_DATABASE_URL"]).set(database="beside").render_as_string(hide_password=False)
    override(database_url=url)
    yield url
    with run.connect() as connection:
        connection.execute(text("DROP DATABASE beside WITH (FORCE)"))
    run.dispose()


def test_a_database_of_a_newer_version_is_left_as_it_is(empty: str) -> None:
    first = CliRunner().invoke(nowserving, ["migrate"])
    engine = create_engine(empty)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    again = CliRunner().invoke(nowserving, ["migrate"])
    with engine.connect() as connection:
        stands = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    engine.dispose()

    assert (0, "the tables are up to date\n") == (first.exit_code, first.output)
    assert (0, "the tables are those of a newer version (9999), and stay so\n") == (again.exit_code, again.output)
    assert "9999" == stands


def test_a_migration_may_take_longer_than_a_statement_of_the_line(empty: str) -> None:
    """It waits here for another deployment's; the server would end it after half a second."""
    engine = create_engine(empty, isolation_level="AUTOCOMMIT")
    done: list[str | None] = []
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": LOCK})
        connection.execute(text("ALTER DATABASE beside SET statement_timeout = '500ms'"))
        migrating = threading.Thread(target=lambda: done.append(migrate.to_latest()))
        migrating.start()
        waits = text("SELECT now() - query_start > interval '800 ms' FROM pg_stat_activity WHERE wait_event = 'advisory'")
        until(lambda: connection.execute(waits).scalar() or not migrating.is_alive(), what="a migration that waits")
        connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
    migrating.join(60)
    engine.dispose()

    assert [None] == done

"""`nowserving migrate`: migrates the database to this version."""

from __future__ import annotations

import time

import click
from sqlalchemy.exc import OperationalError

from api.server.startup_checks import check_settings
from models.database import migrate as migration

CONNECT_TIMEOUT_S = 30


@click.command()
def migrate() -> None:
    """Migrate the database to this version. Waits for the server to start; a newer database stays unchanged."""
    check_settings()
    until = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        try:
            newer_version = migration.to_latest()
            break
        except OperationalError as error:
            if time.monotonic() > until:
                raise click.ClickException(
                    f"Postgres cannot be reached ({type(error.orig).__name__}): check NOWSERVING_DATABASE_URL"
                ) from None
            time.sleep(1)
    click.echo(f"the tables are those of a newer version ({newer_version}), and stay so" if newer_version else "the tables are up to date")

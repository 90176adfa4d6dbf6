"""`nowserving migrate`: the tables of this version."""

from __future__ import annotations

import time

import click
from sqlalchemy.exc import OperationalError

from api.server.startup_checks import check_settings
from models.database import migrate as migration

SERVER_PATIENCE_S = 30


@click.command()
def migrate() -> None:
    """Bring the database's tables to this version; waits for the server to come up. A newer database is left as it is."""
    check_settings()
    until = time.monotonic() + SERVER_PATIENCE_S
    while True:
        try:
            newer = migration.to_latest()
            break
        except OperationalError as error:
            if time.monotonic() > until:
                raise click.ClickException(
                    f"Postgres cannot be reached ({type(error.orig).__name__}): check NOWSERVING_DATABASE_URL"
                ) from None
            time.sleep(1)
    click.echo(f"the tables are those of a newer version ({newer}), and stay so" if newer else "the tables are up to date")

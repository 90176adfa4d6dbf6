"""Runs migrations in one transaction, one process at a time."""

from alembic import context
from sqlalchemy import create_engine, text

from models.database.tables import metadata

LOCK = 0x6E6F7773  # "nows": held while migrating, so that two deployments migrate one after the other


def run() -> None:
    engine = create_engine(context.config.get_main_option("sqlalchemy.url") or "")
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
        with context.begin_transaction():
            # The timeouts of db.SERVER_OPTIONS fit short transactions; an index on a large table takes longer.
            connection.execute(text("SET LOCAL lock_timeout = '60s'"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            context.run_migrations()
    engine.dispose()


run()

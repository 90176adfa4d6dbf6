"""The tables of the run's database, emptied between tests."""

from __future__ import annotations

from sqlalchemy import text

from models.database import db
from models.queue import lanes

# From this size on tables are truncated. Below, DELETE is much quicker: TRUNCATE makes new files for every table and index.
LARGE_BYTES = 2_000_000
_TABLES = text("""
    SELECT relname AS name, pg_total_relation_size(oid) AS bytes FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version' ORDER BY relname
""")


def empty() -> None:
    """Every table is empty, the sequences go on. Waits for the writers of other processes, as TRUNCATE would."""
    with db.begin() as session:
        tables = session.execute(_TABLES).all()
        names = ", ".join(table.name for table in tables)
        # DELETE alone would miss the rows of a transaction that is still open.
        session.execute(text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))
        if max(table.bytes for table in tables) >= LARGE_BYTES:
            session.execute(text(f"TRUNCATE {names}"))
        else:
            has_rows = text("SELECT " + ", ".join(f"EXISTS (SELECT FROM {table.name}) AS {table.name}" for table in tables))
            # Without triggers: foreign keys hold when every table is empty, and the ledger and the audit only grow.
            session.execute(text("SET LOCAL session_replication_role = replica"))
            for name, found in session.execute(has_rows).one()._asdict().items():
                if found:
                    session.execute(text(f"DELETE FROM {name}"))
    lanes.id_of.cache_clear()

"""The shared MetaData of all tables, and the columns and defaults that several tables use."""

from __future__ import annotations

from sqlalchemy import Column, DateTime, MetaData, text

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_name)s_idx",
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

NOW = text("now()")
ZERO = text("0")
# A UUIDv7, so that ids sort by time: the clock in milliseconds, then random bits. PostgreSQL has a function for it only from 18 on.
UUID7 = text(
    "encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING "
    "substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid"
)


def timestamp(name: str, *, nullable: bool = True) -> Column[object]:
    """A column of type timestamptz. A column that is not nullable defaults to now()."""
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=None if nullable else NOW)

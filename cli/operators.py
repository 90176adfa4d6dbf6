"""`nowserving operators …` and `nowserving audit`: operators' tokens, and the audit log."""

from __future__ import annotations

import click

from cli import terminal
from models.access import audit_log
from models.access import operators as operator_store
from models.access.audit_log import Act
from models.database import db


@click.group()
def operators() -> None:
    """Operators' tokens for /ops."""


@operators.command()
@click.argument("name")
@click.option("--role", type=click.Choice(("read", "write")), required=True, help="read: lists only; write: lists and actions.")
@terminal.json_option
def create(*, name: str, role: operator_store.Role, as_json: bool) -> None:
    """Create a token. It is shown once; only its hash is stored."""
    with db.begin() as session:
        token = operator_store.create(session, name, role=role)
        audit_log.write(session, Act(), "create", f"operator:{name}", before=None, after={"role": role})
    terminal.show({"name": name, "role": role, "token": token}, as_json=as_json)


@operators.command("list")
@terminal.json_option
def list_operators(*, as_json: bool) -> None:
    """List all operators without their tokens."""
    with db.begin() as session:
        rows = [row._asdict() for row in operator_store.list_all(session)]
    terminal.table(rows, columns=("id", "name", "role", "created_at", "revoked_at"), as_json=as_json)


@operators.command()
@click.argument("name")
@terminal.json_option
def revoke(*, name: str, as_json: bool) -> None:
    """Revoke an operator's token."""
    with db.begin() as session:
        operator_store.revoke(session, name)
        audit_log.write(session, Act(), "revoke", f"operator:{name}", before=None, after=None)
    terminal.show({"name": name, "revoked": True}, as_json=as_json)


@click.command("audit")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@terminal.json_option
def list_audit_log(*, limit: int, as_json: bool) -> None:
    """List the actions of operators, newest first."""
    with db.begin() as session:
        rows = [audit_log.entry_view(row) for row in audit_log.list_entries(session, limit=limit, before=None)[:limit]]
    terminal.table(rows, columns=("id", "at", "operator", "action", "target", "before", "after", "reason"), as_json=as_json)

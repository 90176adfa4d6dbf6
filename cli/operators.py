"""`nowserving operators …` and `nowserving audit`: who may use /ops, and what they did."""

from __future__ import annotations

import click

from cli import terminal
from models.access import audit_log
from models.access import operators as operator
from models.access.audit_log import Act
from models.database import db


@click.group()
def operators() -> None:
    """Tokens for /ops."""


@operators.command()
@click.argument("name")
@click.option("--role", type=click.Choice(("read", "write")), required=True, help="read: look; write: look and act.")
@terminal.json_option
def create(*, name: str, role: operator.Role, as_json: bool) -> None:
    """Make a token. It is shown this once and stored nowhere."""
    with db.begin() as session:
        token = operator.create(session, name, role=role)
        audit_log.write(session, Act(), "create", f"operator:{name}", before=None, after={"role": role})
    terminal.show({"name": name, "role": role, "token": token}, as_json=as_json)


@operators.command("list")
@terminal.json_option
def listing(*, as_json: bool) -> None:
    """Every operator, without the token."""
    with db.begin() as session:
        rows = [row._asdict() for row in operator.everybody(session)]
    terminal.table(rows, columns=("id", "name", "role", "created_at", "revoked_at"), as_json=as_json)


@operators.command()
@click.argument("name")
@terminal.json_option
def revoke(*, name: str, as_json: bool) -> None:
    """The token opens nothing from now on."""
    with db.begin() as session:
        operator.revoke(session, name)
        audit_log.write(session, Act(), "revoke", f"operator:{name}", before=None, after=None)
    terminal.show({"name": name, "revoked": True}, as_json=as_json)


@click.command("audit")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@terminal.json_option
def log(*, limit: int, as_json: bool) -> None:
    """What operators did, newest first."""
    with db.begin() as session:
        rows = [audit_log.show(row) for row in audit_log.page(session, limit=limit, before=None)[:limit]]
    terminal.table(rows, columns=("id", "at", "operator", "action", "target", "before", "after", "reason"), as_json=as_json)

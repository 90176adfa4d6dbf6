"""`nowserving keys …`: who may come in."""

from __future__ import annotations

import click

from api.ops import actions
from api.waiting import notify_queue
from cli import billing, terminal
from cli.pools import limit_options
from models.access import audit_log
from models.access.audit_log import Act
from models.database import db
from models.keys import keys as key
from models.keys import listing as roster
from models.ops import key_rotation


@click.group()
def keys() -> None:
    """Keys that callers present."""


@keys.command()
@click.argument("name")
@click.option("--pool", required=True, help="The pool whose credentials serve this key.")
@terminal.json_option
def create(*, name: str, pool: str, as_json: bool) -> None:
    """Issue a key. It is shown this once and stored nowhere."""
    with db.begin() as session:
        made, token = key.issue(session, name=name, pool=pool)
        audit_log.write(session, Act(), "create", f"key:{made.id}", before=None, after={"name": name, "pool": pool})
    terminal.show({"id": made.id, "name": name, "pool": pool, "key": token}, as_json=as_json)


@keys.command("list")
@terminal.json_option
def listing(*, as_json: bool) -> None:
    """Every key, without its secret."""
    with db.begin() as session:
        rows = [row._asdict() for row in roster.keys(session)]
    terminal.table(rows, columns=("id", "kind", "name", "pool", "created_at", "revoked_at"), as_json=as_json)


@keys.command()
@click.argument("key_id", type=int)
@terminal.json_option
def revoke(*, key_id: int, as_json: bool) -> None:
    """The key opens nothing from now on; its jobs in line still run."""
    with db.begin() as session:
        done = key.revoke(session, key_id)
        if done:
            audit_log.write(session, Act(), "revoke", f"key:{key_id}", before=None, after=None)
    if not done:
        raise click.ClickException(f"there is no key {key_id}, or it was revoked before")
    terminal.show({"id": key_id, "revoked": True}, as_json=as_json)


@keys.command()
@click.argument("key_id", type=int)
@limit_options
@terminal.json_option
def limits(*, key_id: int, model: str, as_json: bool, **given: int | None) -> None:
    """What each credential behind this key may do; a limit that is left out is open, and learned from the upstream."""
    with db.begin() as session:
        numbers = roster.credentials_behind(session, key_id=key_id)
    for number in numbers:
        actions.set_limits(Act(), number, given, model=model)
    notify_queue.flush()
    terminal.show({"key": key_id, "credentials": numbers, "model": model, **given}, as_json=as_json)


@keys.command("rotate-secret")
@terminal.json_option
def rotate_secret(*, as_json: bool) -> None:
    """Encrypt everything stored again with the first of NOWSERVING_SECRET_KEYS. Put the new one before the old one first."""
    with db.begin() as session:
        done = key_rotation.reencrypt_all(session, Act())
    terminal.show(done, as_json=as_json)


for _command in (billing.grant, billing.correct, billing.balance):
    keys.add_command(_command)

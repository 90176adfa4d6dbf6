"""`nowserving keys …`: issues, lists, revokes and limits callers' keys."""

from __future__ import annotations

import click

from api.ops import actions
from api.waiting import notify_queue
from cli import billing, terminal
from cli.pools import limit_options
from models.access import audit_log
from models.access.audit_log import Act
from models.database import db
from models.keys import keys as key_store
from models.keys import listing
from models.ops import key_rotation


@click.group()
def keys() -> None:
    """Keys of callers."""


@keys.command()
@click.argument("name")
@click.option("--pool", required=True, help="The pool whose credentials serve the key.")
@terminal.json_option
def create(*, name: str, pool: str, as_json: bool) -> None:
    """Issue a key. It is shown once; only its hash is stored."""
    with db.begin() as session:
        key, token = key_store.issue(session, name=name, pool=pool)
        audit_log.write(session, Act(), "create", f"key:{key.id}", before=None, after={"name": name, "pool": pool})
    terminal.show({"id": key.id, "name": name, "pool": pool, "key": token}, as_json=as_json)


@keys.command("list")
@terminal.json_option
def list_keys(*, as_json: bool) -> None:
    """List all keys without their secrets."""
    with db.begin() as session:
        rows = [row._asdict() for row in listing.list_keys(session)]
    terminal.table(rows, columns=("id", "kind", "name", "pool", "created_at", "revoked_at"), as_json=as_json)


@keys.command()
@click.argument("key_id", type=int)
@terminal.json_option
def revoke(*, key_id: int, as_json: bool) -> None:
    """Revoke a key. Its waiting jobs still run."""
    with db.begin() as session:
        is_revoked = key_store.revoke(session, key_id)
        if is_revoked:
            audit_log.write(session, Act(), "revoke", f"key:{key_id}", before=None, after=None)
    if not is_revoked:
        raise click.ClickException(f"there is no key {key_id}, or it is already revoked")
    terminal.show({"id": key_id, "revoked": True}, as_json=as_json)


@keys.command("limits")
@click.argument("key_id", type=int)
@limit_options
@terminal.json_option
def set_limits(*, key_id: int, model: str, as_json: bool, **limits: int | None) -> None:
    """Set the limits of each credential behind this key; an omitted limit is removed, and learned from the upstream."""
    with db.begin() as session:
        credential_ids = listing.credential_ids_by(session, key_id=key_id)
    for credential_id in credential_ids:
        actions.set_limits(Act(), credential_id, limits, model=model)
    notify_queue.flush()
    terminal.show({"key": key_id, "credentials": credential_ids, "model": model, **limits}, as_json=as_json)


@keys.command("rotate-secret")
@terminal.json_option
def rotate_secret(*, as_json: bool) -> None:
    """Encrypt all stored secrets again with the first of NOWSERVING_SECRET_KEYS. First put the new key before the old one."""
    with db.begin() as session:
        counts = key_rotation.reencrypt_all(session, Act())
    terminal.show(counts, as_json=as_json)


for _command in (billing.grant, billing.correct, billing.balance):
    keys.add_command(_command)

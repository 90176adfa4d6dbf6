"""`nowserving pools …`: pools, their upstream credentials, and the credentials' limits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

import click

from api.ops import actions
from api.waiting import notify_queue
from cli import terminal
from models.access import audit_log
from models.access.audit_log import Act
from models.database import db
from models.keys import credential_address, keys, listing

Command = TypeVar("Command", bound=Callable[..., None])
LIMITS = {
    "rpm": "Requests per minute.",
    "tpm": "Tokens per minute.",
    "ipm": "Images per minute.",
    "rpd": "Requests per day.",
    "max_in_flight": "Concurrent calls.",
}


def limit_options(command: Command) -> Command:
    """Adds the options --model, --rpm, --tpm, --ipm, --rpd and --max-in-flight."""
    for name, text in reversed(LIMITS.items()):
        command = click.option(f"--{name.replace('_', '-')}", type=click.IntRange(1, 2**31 - 1), help=text)(command)
    return click.option("--model", default="*", show_default=True, help="The model; *: all models without limits of their own.")(command)


@click.group()
def pools() -> None:
    """Pools of upstream credentials."""


@pools.command()
@click.argument("name")
@terminal.json_option
def create(*, name: str, as_json: bool) -> None:
    """Create a pool, or return the existing pool of this name."""
    with db.begin() as session:
        pool_id = keys.create_pool(session, name)
        audit_log.write(session, Act(), "create", f"pool:{pool_id}", before=None, after={"name": name})
    terminal.show({"id": pool_id, "name": name}, as_json=as_json)


@pools.command("list")
@terminal.json_option
def list_pools(*, as_json: bool) -> None:
    """List all pools with the ids of their credentials."""
    with db.begin() as session:
        rows = [row._asdict() for row in listing.list_pools(session)]
    terminal.table(rows, columns=("id", "name", "credentials", "parked", "paused_reason"), as_json=as_json)


@pools.command("add-credential")
@click.argument("pool")
@click.option(
    "--kind", type=click.Choice(credential_address.KINDS), default="openai", show_default=True, help="azure: Azure's header and paths."
)
@click.option("--base-url", help="The upstream, if it is not OPENAI_BASE_URL; azure: https://NAME.openai.azure.com.")
@click.option("--api-version", help="azure: version of the deployment paths; without one the v1 API is called.")
@terminal.json_option
def add_credential(*, pool: str, kind: str, base_url: str | None, api_version: str | None, as_json: bool) -> None:
    """Add an upstream key to this pool. The key is prompted for, or read from standard input: a command line is public."""
    token = _upstream_key()
    with db.begin() as session:
        pool_id = listing.pool_id_by_name(session, pool)
    credential = actions.add_credential(
        Act(), pool_id, upstream_key=token, base_url=base_url, weight=None, kind=kind, api_version=api_version
    )  # fmt: skip
    notify_queue.flush()
    shown = {name: credential[name] for name in ("kind", "base_url", "api_version")}
    terminal.show({"id": int(credential["id"]), "pool": pool, **shown}, as_json=as_json)


@pools.command("change-credential")
@click.argument("credential_id", type=int)
@click.option("--weight", type=click.FloatRange(0, 1000, min_open=True), help="Weight of its headroom relative to other credentials.")
@click.option("--base-url", help="The upstream; empty: OPENAI_BASE_URL.")
@click.option("--api-version", help="azure: version of the deployment paths; empty: the v1 API.")
@click.option("--new-key", is_flag=True, help="Replace the secret: prompted for, or read from standard input.")
@terminal.json_option
def change_credential(
    *, credential_id: int, weight: float | None, base_url: str | None, api_version: str | None, new_key: bool, as_json: bool
) -> None:
    """Change a credential. Omitted fields stay unchanged; running calls are not affected."""
    token = _upstream_key() if new_key else None
    credential = actions.change_credential(
        Act(), credential_id, weight=weight, base_url=base_url, upstream_key=token, api_version=api_version
    )  # fmt: skip
    terminal.show(credential, as_json=as_json)


@pools.command("retire-credential")
@click.argument("credential_id", type=int)
@terminal.json_option
def retire_credential(*, credential_id: int, as_json: bool) -> None:
    """Give a credential no more jobs; its history stays. `nowserving resume credential ID` reactivates it."""
    terminal.show(actions.retire_credential(Act(), credential_id), as_json=as_json)


@pools.command("limits")
@click.argument("credential_id", type=int)
@limit_options
@terminal.json_option
def set_limits(*, credential_id: int, model: str, as_json: bool, **limits: int | None) -> None:
    """Set the limits of a credential; an omitted limit is removed, and learned from the upstream."""
    actions.set_limits(Act(), credential_id, limits, model=model)
    notify_queue.flush()
    terminal.show({"credential": credential_id, "model": model, **limits}, as_json=as_json)


def _upstream_key() -> str:
    token = click.prompt("Upstream key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise click.ClickException("a key is printable ASCII on one line of standard input")
    return token

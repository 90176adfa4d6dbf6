"""`nowserving pools …`: the upstream keys behind a line, and what each may do."""

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
from models.keys import credential_address, keys
from models.keys import listing as roster

Command = TypeVar("Command", bound=Callable[..., None])
LIMITS = {
    "rpm": "Requests a minute.",
    "tpm": "Tokens a minute.",
    "ipm": "Images a minute.",
    "rpd": "Requests a day.",
    "max_in_flight": "Calls at a time.",
}


def limit_options(command: Command) -> Command:
    """The options --model, --rpm, --tpm, --ipm, --rpd and --max-in-flight."""
    for name, said in reversed(LIMITS.items()):
        command = click.option(f"--{name.replace('_', '-')}", type=click.IntRange(1, 2**31 - 1), help=said)(command)
    return click.option("--model", default="*", show_default=True, help="For this model; *: for all without their own.")(command)


@click.group()
def pools() -> None:
    """Pools of upstream credentials."""


@pools.command()
@click.argument("name")
@terminal.json_option
def create(*, name: str, as_json: bool) -> None:
    """A pool of this name is there, new or not."""
    with db.begin() as session:
        number = keys.make_pool(session, name)
        audit_log.write(session, Act(), "create", f"pool:{number}", before=None, after={"name": name})
    terminal.show({"id": number, "name": name}, as_json=as_json)


@pools.command("list")
@terminal.json_option
def listing(*, as_json: bool) -> None:
    """Every pool with the ids of its credentials."""
    with db.begin() as session:
        rows = [row._asdict() for row in roster.pools(session)]
    terminal.table(rows, columns=("id", "name", "credentials", "parked", "paused_reason"), as_json=as_json)


@pools.command("add-credential")
@click.argument("pool")
@click.option(
    "--kind", type=click.Choice(credential_address.KINDS), default="openai", show_default=True, help="azure: its header and paths."
)
@click.option("--base-url", help="Another upstream than OPENAI_BASE_URL; of azure https://NAME.openai.azure.com.")
@click.option("--api-version", help="Of azure: the version of its deployment paths; without one its v1 API is called.")
@terminal.json_option
def add_credential(*, pool: str, kind: str, base_url: str | None, api_version: str | None, as_json: bool) -> None:
    """Put an upstream key behind this pool. The key is asked for, or read from standard input: a command line is public."""
    token = _upstream_key()
    with db.begin() as session:
        pool_id = roster.pool_named(session, pool)
    made = actions.add_credential(
        Act(), pool_id, upstream_key=token, base_url=base_url, weight=None, kind=kind, api_version=api_version
    )  # fmt: skip
    notify_queue.flush()
    shown = {name: made[name] for name in ("kind", "base_url", "api_version")}
    terminal.show({"id": int(made["id"]), "pool": pool, **shown}, as_json=as_json)


@pools.command("change-credential")
@click.argument("credential_id", type=int)
@click.option("--weight", type=click.FloatRange(0, 1000, min_open=True), help="By which its room counts against that of others.")
@click.option("--base-url", help="Another upstream; empty: OPENAI_BASE_URL.")
@click.option("--api-version", help="Of azure; empty: its v1 API.")
@click.option("--new-key", is_flag=True, help="Its secret too: asked for, or read from standard input.")
@terminal.json_option
def change_credential(
    *, credential_id: int, weight: float | None, base_url: str | None, api_version: str | None, new_key: bool, as_json: bool
) -> None:
    """Change a credential; calls that run end as they began. What is left out stays."""
    token = _upstream_key() if new_key else None
    made = actions.change_credential(
        Act(), credential_id, weight=weight, base_url=base_url, upstream_key=token, api_version=api_version
    )  # fmt: skip
    terminal.show(made, as_json=as_json)


@pools.command("retire-credential")
@click.argument("credential_id", type=int)
@terminal.json_option
def retire_credential(*, credential_id: int, as_json: bool) -> None:
    """Give it no more jobs; its history stays. `nowserving resume credential ID` brings it back."""
    terminal.show(actions.retire(Act(), credential_id), as_json=as_json)


@pools.command()
@click.argument("credential_id", type=int)
@limit_options
@terminal.json_option
def limits(*, credential_id: int, model: str, as_json: bool, **given: int | None) -> None:
    """What this credential may do; a limit that is left out is open, and learned from the upstream."""
    actions.set_limits(Act(), credential_id, given, model=model)
    notify_queue.flush()
    terminal.show({"credential": credential_id, "model": model, **given}, as_json=as_json)


def _upstream_key() -> str:
    token = click.prompt("Upstream key", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline()
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise click.ClickException("a key is printable ASCII on one line of standard input")
    return token

"""`nowserving keys grant | correct | balance`: what a key was given, and what it has left."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from cli import terminal
from models.billing import budgets, ledger, money, statement
from models.database import db
from models.keys import listing
from models.platform.errors import Invalid

# A click option begins with a minus; so does an amount.
AMOUNTS: dict[str, Any] = {"ignore_unknown_options": True}


class Usd(click.ParamType[int]):
    """US dollars, as micro-USD."""

    name = "USD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return money.read_usd(str(value))
        except Invalid as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings=AMOUNTS)
@click.argument("key_id", type=int)
@click.argument("amount", type=Usd(), metavar="USD")
@click.option("--note", help="Why, for whoever reads the ledger.")
@terminal.json_option
def grant(*, key_id: int, amount: int, note: str | None, as_json: bool) -> None:
    """Give a key money. From its first grant on, an issued key spends no more than it was given."""
    with db.begin() as session:
        budgets.grant(session, key_id, amount, note=note)
        shown = _standing(session, key_id)
    terminal.show(shown, as_json=as_json)


@click.command(context_settings=AMOUNTS)
@click.argument("key_id", type=int)
@click.argument("amount", type=Usd(), metavar="USD")
@click.option("--note", required=True, help="Why, for whoever reads the ledger.")
@terminal.json_option
def correct(*, key_id: int, amount: int, note: str, as_json: bool) -> None:
    """Add to what a key was given, or take away from it (-3.50). Entries are never changed."""
    with db.begin() as session:
        listing.kind_of(session, key_id)
        ledger.correct(session, key_id, amount, note=note)
        shown = _standing(session, key_id)
    terminal.show(shown, as_json=as_json)


@click.command()
@click.argument("key_id", type=int)
@terminal.json_option
def balance(*, key_id: int, as_json: bool) -> None:
    """What a key was given, has spent and has left, in US dollars."""
    with db.begin() as session:
        shown = _standing(session, key_id)
    terminal.show(shown, as_json=as_json)


def _standing(session: db.Transaction, key_id: int) -> dict[str, Any]:
    now = statement.standing(session, key_id, listing.kind_of(session, key_id))
    amounts = {name: value for name, value in asdict(now).items() if name not in ("has_budget", "unpriced_calls")}
    return {
        "id": key_id,
        "has_budget": now.has_budget,
        **{f"{name}_usd": money.text(value) for name, value in {"balance": now.balance, **amounts}.items()},
        "unpriced_calls": now.unpriced_calls,
    }

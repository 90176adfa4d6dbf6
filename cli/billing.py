"""`nowserving keys grant | correct | balance`: a key's budget."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from cli import terminal
from models.billing import budgets, ledger, money, statement
from models.database import db
from models.keys import listing
from models.platform.errors import Invalid

# A negative amount begins with a minus, as a click option does.
ALLOW_NEGATIVE: dict[str, Any] = {"ignore_unknown_options": True}


class Usd(click.ParamType[int]):
    """US dollars, converted to micro-USD."""

    name = "USD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return money.parse_usd(str(value))
        except Invalid as error:
            self.fail(str(error), param, ctx)


@click.command(context_settings=ALLOW_NEGATIVE)
@click.argument("key_id", type=int)
@click.argument("amount", type=Usd(), metavar="USD")
@click.option("--note", help="Reason, stored in the ledger.")
@terminal.json_option
def grant(*, key_id: int, amount: int, note: str | None, as_json: bool) -> None:
    """Grant a key a budget. From its first grant on, an issued key spends no more than its grants."""
    with db.begin() as session:
        budgets.grant(session, key_id, amount, note=note)
        shown = _standing(session, key_id)
    terminal.show(shown, as_json=as_json)


@click.command(context_settings=ALLOW_NEGATIVE)
@click.argument("key_id", type=int)
@click.argument("amount", type=Usd(), metavar="USD")
@click.option("--note", required=True, help="Reason, stored in the ledger.")
@terminal.json_option
def correct(*, key_id: int, amount: int, note: str, as_json: bool) -> None:
    """Add an amount to a key's grants, or subtract one (-3.50). Existing entries are never changed."""
    with db.begin() as session:
        listing.kind_of_key(session, key_id)
        ledger.correct(session, key_id, amount, note=note)
        shown = _standing(session, key_id)
    terminal.show(shown, as_json=as_json)


@click.command()
@click.argument("key_id", type=int)
@terminal.json_option
def balance(*, key_id: int, as_json: bool) -> None:
    """Show a key's grants, spending and balance, in US dollars."""
    with db.begin() as session:
        shown = _standing(session, key_id)
    terminal.show(shown, as_json=as_json)


def _standing(session: db.Transaction, key_id: int) -> dict[str, Any]:
    standing = statement.statement_of(session, key_id, listing.kind_of_key(session, key_id))
    amounts = {name: value for name, value in asdict(standing).items() if name not in ("has_budget", "unpriced_calls")}
    return {
        "id": key_id,
        "has_budget": standing.has_budget,
        **{f"{name}_usd": money.format_usd(value) for name, value in {"balance": standing.balance, **amounts}.items()},
        "unpriced_calls": standing.unpriced_calls,
    }

"""Helpers that give keys money and read the ledger."""

from __future__ import annotations

from uuid import UUID

from models.billing import budgets, statement
from models.billing.money import MICRO_PER_USD
from models.billing.statement import Statement
from models.database import db
from models.jobs.states import AttemptResult, Outcome
from models.keys import keys
from models.keys.keys import Key
from tests.support.queue_tools import query

# gpt-4o-mini: 0.15 USD for a million tokens in, 0.60 for a million out.
MODEL = "gpt-4o-mini"
LOST = AttemptResult(Outcome.UNKNOWN)
REFUSED = AttemptResult(Outcome.REFUSED, 400)


def issued(name: str = "ann", *, grant_usd: int = 0) -> tuple[Key, str]:
    """An issued key with a credential behind it, and its plain text."""
    with db.begin() as session:
        pool_id = keys.create_pool(session, name)
        keys.add_credential(session, pool_id=pool_id, upstream_key=f"sk-of-{name}")
        made, token = keys.issue(session, name=name, pool=name)
        if grant_usd:
            budgets.grant(session, made.id, grant_usd * MICRO_PER_USD)
    return made, token


def grant(caller: Key, microusd: int) -> None:
    with db.begin() as session:
        budgets.grant(session, caller.id, microusd)


def standing(caller: Key) -> Statement:
    with db.begin() as session:
        return statement.statement_of(session, caller.id, caller.kind)


def entries(*, of: UUID | None = None) -> list[tuple[str, int]]:
    """The ledger's entries in order, or those of one job: kind and amount."""
    rows = query("SELECT kind, amount_microusd FROM ledger WHERE CAST(:of AS uuid) IS NULL OR job_id = :of ORDER BY id", of=of)
    return [(row.kind, row.amount_microusd) for row in rows]


def cost(microusd: int | None) -> AttemptResult:
    """A good answer that cost this."""
    return AttemptResult(Outcome.SUCCEEDED, 200, "req_1", cost_microusd=microusd)


def sums() -> dict[int, int]:
    """The sum of each key's ledger."""
    return {row.key_id: int(row.sum) for row in query("SELECT key_id, sum(amount_microusd) FROM ledger GROUP BY key_id")}

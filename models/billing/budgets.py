"""Who may spend no more than they were granted, and whether there is money for one more job.

A key has a budget when NOWSERVING_BUDGETS covers its kind (`issued`: issued keys; `all`; `off`: none) and it was ever granted
something, or NOWSERVING_DEFAULT_GRANT_USD gives every new one something. Everybody else spends what they like, and it is written down.

What is left is the sum of the key's ledger less what its open jobs reserve; a job that ended reserves nothing, so nothing has to be
released. Submits of one key wait for each other on its row here; what ends meanwhile gives back at least as much as it takes.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from models.billing import ledger, money
from models.config.settings import settings
from models.database.db import Transaction
from models.keys import listing
from models.keys.keys import Key
from models.platform.errors import BudgetExhausted

# Summing a thousand entries takes 0.3 ms (measured): what is older is summed once.
CHECKPOINT_ENTRIES = 1_000
# Longer than any two transactions of ours can stay open (db.SERVER_OPTIONS): no entry with a lower number is still to come.
SETTLED_S = 60


def applies_to_kind(kind: str) -> bool:
    """Whether keys of this kind can have a budget."""
    return settings().budgets == "all" or settings().budgets == kind


def applies_to(key: Key, most_microusd: int | None) -> bool:
    """Whether this key may have a budget that a job of this price takes from. most_microusd: as of `reserve`."""
    return most_microusd != 0 and applies_to_kind(key.kind)


def reserve(session: Transaction, key: Key, most_microusd: int | None) -> None:
    """This key can pay for one more job of this price; its next submit waits until this transaction ends.

    most_microusd: 0 is free for everybody; None: no price is known, and whoever has anything left may. Raises BudgetExhausted.
    """
    if not applies_to(key, most_microusd):
        return
    open_budget(session, key.id, key.kind)
    row = session.execute(_LOCK, {"key_id": key.id}).one_or_none()
    if row is None:
        return
    # A statement of its own, after the lock: it must see what the submits before this one have reserved.
    left = session.execute(_LEFT, row._asdict()).one()
    if left.microusd < max(1, most_microusd or 0):
        raise BudgetExhausted(_refusal(left, most_microusd))
    if left.entries > CHECKPOINT_ENTRIES:
        session.execute(_COUNT, {**row._asdict(), "settled_s": SETTLED_S})


def grant(session: Transaction, key_id: int, amount_microusd: int, *, note: str | None = None) -> None:
    """The key has this much more, and a budget where its kind is covered. Raises NotFound; Invalid for what is no gain."""
    open_budget(session, key_id, listing.kind_of_key(session, key_id))
    session.execute(_BEGIN, {"key_id": key_id})
    ledger.grant(session, key_id, amount_microusd, note=note)


def open_budget(session: Transaction, key_id: int, kind: str) -> None:
    """A new key of a kind that is covered has its default grant."""
    amount = int(settings().default_grant_usd * money.MICRO_PER_USD)
    if amount and applies_to_kind(kind) and session.execute(_BEGIN, {"key_id": key_id}).one_or_none() is not None:
        ledger.grant(session, key_id, amount, note="default grant")


def _refusal(left: Any, most_microusd: int | None) -> str:
    free, open_ = money.format_usd(max(0, left.microusd)), money.format_usd(left.reserved)
    if left.microusd <= 0:
        return f"This key has no money left ({open_} USD are reserved by jobs in line). Ask the operator for a grant."
    return (
        f"This request may cost {money.format_usd(most_microusd or 0)} USD, and this key has {free} USD left "
        f"({open_} USD are reserved by jobs in line). Ask for a shorter reply "
        "(max_completion_tokens), wait for those jobs, or ask the operator for a grant."
    )


_LOCK = text("SELECT key_id, counted_to, counted_microusd FROM budget WHERE key_id = :key_id FOR UPDATE")
_BEGIN = text("INSERT INTO budget (key_id) VALUES (:key_id) ON CONFLICT (key_id) DO NOTHING RETURNING key_id")
_LEFT = text("""
    SELECT :counted_microusd + owned.microusd - open.reserved AS microusd, open.reserved, owned.entries FROM
        (SELECT coalesce(sum(amount_microusd), 0)::bigint AS microusd, count(*) AS entries FROM ledger
         WHERE key_id = :key_id AND id > :counted_to) AS owned,
        (SELECT coalesce(sum(reserved_microusd), 0)::bigint AS reserved FROM job
         WHERE key_id = :key_id AND status IN ('queued', 'admitted', 'running')) AS open
""")
_COUNT = text("""
    WITH settled AS (
        SELECT max(id) AS id, sum(amount_microusd) AS microusd FROM ledger WHERE key_id = :key_id AND id > :counted_to AND id <= (
            SELECT max(id) FROM ledger WHERE key_id = :key_id AND at < now() - make_interval(secs => :settled_s)
        )
    )
    UPDATE budget SET counted_to = settled.id, counted_microusd = counted_microusd + settled.microusd FROM settled
    WHERE key_id = :key_id AND settled.id IS NOT NULL
""")

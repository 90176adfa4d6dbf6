"""Budgets: which keys are limited to their grants, and the reservation of a job's maximum cost.

A key has a budget when NOWSERVING_BUDGETS covers its kind (`issued`: issued keys; `all`; `off`: none) and it was ever granted
something, or NOWSERVING_DEFAULT_GRANT_USD gives every new key something. Other keys spend without limit, and the ledger records it.

The remaining amount is the sum of the key's ledger minus the reservations of its open jobs. An ended job reserves nothing, so no
reservation has to be released. Submits of one key are serialised by the lock on its row here. A job that ends meanwhile frees at least as
much as it charges.
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

# Summing a thousand entries takes 0.3 ms (measured); the sum of older entries is stored.
CHECKPOINT_ENTRIES = 1_000
# Longer than any two transactions can stay open (db.SERVER_OPTIONS), so no entry with a lower id is still uncommitted.
SETTLED_S = 60


def applies_to_kind(kind: str) -> bool:
    """Whether keys of this kind can have a budget."""
    return settings().budgets == "all" or settings().budgets == kind


def applies_to(key: Key, max_microusd: int | None) -> bool:
    """Whether a job of this price is charged to a budget of this key. max_microusd: as of `reserve`."""
    return max_microusd != 0 and applies_to_kind(key.kind)


_LOCK = text("SELECT key_id, counted_to, counted_microusd FROM budget WHERE key_id = :key_id FOR UPDATE")
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


def reserve(session: Transaction, key: Key, max_microusd: int | None) -> None:
    """Checks that this key can pay for one more job; its next submit waits until this transaction ends. Raises BudgetExhausted.

    max_microusd: the most that a call may cost; 0: free for every key; None: no price is known, and any remaining amount is enough.
    """
    if not applies_to(key, max_microusd):
        return
    open_budget(session, key.id, key.kind)
    row = session.execute(_LOCK, {"key_id": key.id}).one_or_none()
    if row is None:
        return
    # A separate statement after the lock: it must see the reservations of earlier submits.
    left = session.execute(_LEFT, row._asdict()).one()
    if left.microusd < max(1, max_microusd or 0):
        raise BudgetExhausted(_refusal(left, max_microusd))
    if left.entries > CHECKPOINT_ENTRIES:
        session.execute(_COUNT, {**row._asdict(), "settled_s": SETTLED_S})


_BEGIN = text("INSERT INTO budget (key_id) VALUES (:key_id) ON CONFLICT (key_id) DO NOTHING RETURNING key_id")


def grant(session: Transaction, key_id: int, amount_microusd: int, *, note: str | None = None) -> None:
    """Grants an amount to a key, and opens its budget if its kind has budgets. Raises NotFound; Invalid unless it is above 0."""
    open_budget(session, key_id, listing.kind_of_key(session, key_id))
    session.execute(_BEGIN, {"key_id": key_id})
    ledger.grant(session, key_id, amount_microusd, note=note)


def open_budget(session: Transaction, key_id: int, kind: str) -> None:
    """Opens the budget of a new key with the default grant, if its kind has budgets."""
    amount = int(settings().default_grant_usd * money.MICRO_PER_USD)
    if amount and applies_to_kind(kind) and session.execute(_BEGIN, {"key_id": key_id}).one_or_none() is not None:
        ledger.grant(session, key_id, amount, note="default grant")


def _refusal(left: Any, max_microusd: int | None) -> str:
    free, open_ = money.format_usd(max(0, left.microusd)), money.format_usd(left.reserved)
    if left.microusd <= 0:
        return f"This key has no money left ({open_} USD are reserved by jobs in line). Ask the operator for a grant."
    return (
        f"This request may cost {money.format_usd(max_microusd or 0)} USD, and this key has {free} USD left "
        f"({open_} USD are reserved by jobs in line). Ask for a shorter reply "
        "(max_completion_tokens), wait for those jobs, or ask the operator for a grant."
    )

"""The ledger: every micro-USD that a key was granted or has spent. It only grows; a key's balance is the sum of its entries.

grant       the operator's (models/billing/budgets.py)
charge      what one attempt cost, written in the transaction that stores its result; once, however often it is written. Its note is
            `estimated` where the upstream did not say what it used
unknown     what one attempt was reserved for, when nobody knows whether it was paid for
correction  of an `unknown`, when its answer came after all; or the operator's own
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.errors import Invalid


def grant(session: Transaction, key_id: int, amount_microusd: int, *, note: str | None = None) -> None:
    """The key has this much more. Raises Invalid for what is no gain."""
    if amount_microusd <= 0:
        raise Invalid("A grant is more than 0. To take something away, write a correction: nowserving keys correct", param="usd")
    session.execute(_ENTER, {"key_id": key_id, "kind": "grant", "amount": amount_microusd, "note": note})


def correct(session: Transaction, key_id: int, amount_microusd: int, *, note: str) -> None:
    """The key has this much more, or less. Raises Invalid for 0."""
    if amount_microusd == 0:
        raise Invalid("A correction of 0 changes nothing.", param="usd")
    session.execute(_ENTER, {"key_id": key_id, "kind": "correction", "amount": amount_microusd, "note": note})


def settle(session: Transaction, dispatch_id: UUID, *, cost_microusd: int | None, note: str | None = None) -> None:
    """The attempt is charged with what it cost; None: nobody knows, and it is charged with what its job had reserved, as `unknown`.

    note: how the cost was found. What was unknown until now is corrected. To be called with the attempt's row locked, so that two who
    end it go one after the other.
    """
    session.execute(_SETTLE, {"dispatch_id": dispatch_id, "cost": cost_microusd, "note": note})


def charge_lost_cte(arrow: str) -> str:
    """SQL: the CTE `owed`, which charges the attempts in the CTE `arrow` as unknown.

    arrow must have id, key_id, dispatch_id, model, flow and reserved_microusd.
    """
    return f"""
    owed AS (
        INSERT INTO ledger (key_id, kind, amount_microusd, job_id, dispatch_id, model, flow)
        SELECT key_id, 'unknown', -reserved_microusd, id, dispatch_id, model, flow FROM {arrow} WHERE reserved_microusd > 0
        ON CONFLICT DO NOTHING
    )"""


def charge_ended_cte(arrow: str) -> str:
    """SQL: the CTE `owed`, which charges the attempts in the CTE `arrow` with :owed and :note as `settle` does.

    They were until now neither ended nor charged. arrow must have id, key_id, model, flow and reserved_microusd.
    """
    return f"""
    owed AS (
        INSERT INTO ledger (key_id, kind, amount_microusd, job_id, dispatch_id, model, flow, note)
        SELECT key_id, CASE WHEN CAST(:owed AS bigint) IS NULL THEN 'unknown' ELSE 'charge' END,
               -coalesce(CAST(:owed AS bigint), reserved_microusd), id, :dispatch_id, model, flow, CAST(:note AS text)
        FROM {arrow} WHERE coalesce(CAST(:owed AS bigint), reserved_microusd) > 0 ON CONFLICT DO NOTHING
    )"""


_ENTER = text("INSERT INTO ledger (key_id, kind, amount_microusd, note) VALUES (:key_id, :kind, :amount, :note)")
# What costs nothing is not written, but for a correction, which says that the unknown is known now.
_SETTLE = text("""
    WITH earlier AS (
        SELECT count(*) AS entries, coalesce(sum(amount_microusd), 0) AS amount, coalesce(bool_and(kind = 'unknown'), true) AS is_open
        FROM ledger WHERE dispatch_id = :dispatch_id
    ), due AS (
        SELECT job.key_id, job.id AS job_id, job.model, job.flow, earlier.entries, CASE
                   WHEN CAST(:cost AS bigint) IS NOT NULL THEN -:cost - earlier.amount
                   WHEN earlier.entries = 0 THEN -coalesce(job.reserved_microusd, 0)
                   ELSE 0
               END AS amount
        FROM earlier, attempt JOIN job ON job.id = attempt.job_id WHERE attempt.dispatch_id = :dispatch_id AND earlier.is_open
    )
    INSERT INTO ledger (key_id, kind, amount_microusd, job_id, dispatch_id, model, flow, note)
    SELECT key_id, CASE WHEN CAST(:cost AS bigint) IS NULL THEN 'unknown' WHEN entries = 0 THEN 'charge' ELSE 'correction' END,
           amount, job_id, :dispatch_id, model, flow, CAST(:note AS text)
    FROM due WHERE amount <> 0 OR (entries > 0 AND CAST(:cost AS bigint) IS NOT NULL)
    ON CONFLICT DO NOTHING
""")

"""The ledger of grants and charges, in micro-USD. It is append-only; the balance of a key is the sum of its entries.

grant       by the operator (models/billing/budgets.py)
charge      the cost of one attempt, written once, in the transaction that stores its result. Its note is `estimated` if the upstream
            did not report the usage
unknown     the reserved cost of an attempt with an unknown outcome
correction  of an `unknown`, when the answer arrived later; or by the operator
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text

from models.database.db import Transaction
from models.platform.errors import Invalid

_ENTER = text("INSERT INTO ledger (key_id, kind, amount_microusd, note) VALUES (:key_id, :kind, :amount, :note)")


def grant(session: Transaction, key_id: int, amount_microusd: int, *, note: str | None = None) -> None:
    """Enters a grant. Raises Invalid for an amount that is not above 0."""
    if amount_microusd <= 0:
        raise Invalid("A grant is more than 0. To take something away, write a correction: nowserving keys correct", param="usd")
    session.execute(_ENTER, {"key_id": key_id, "kind": "grant", "amount": amount_microusd, "note": note})


def correct(session: Transaction, key_id: int, amount_microusd: int, *, note: str) -> None:
    """Enters a correction, up or down. Raises Invalid for 0."""
    if amount_microusd == 0:
        raise Invalid("A correction of 0 changes nothing.", param="usd")
    session.execute(_ENTER, {"key_id": key_id, "kind": "correction", "amount": amount_microusd, "note": note})


# An amount of 0 is not written, except as a correction: it records that the unknown cost is known now.
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


def settle(session: Transaction, dispatch_id: UUID, *, cost_microusd: int | None, note: str | None = None) -> None:
    """Charges the attempt its cost. None: the cost is unknown, so it is charged its job's reservation, as `unknown`.

    An earlier `unknown` entry is corrected. note: how the cost was found. Call it with the row of the attempt locked, so that two
    processes that end it run one after the other.
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

    The attempts must not be ended or charged yet. arrow must have id, key_id, model, flow and reserved_microusd.
    """
    return f"""
    owed AS (
        INSERT INTO ledger (key_id, kind, amount_microusd, job_id, dispatch_id, model, flow, note)
        SELECT key_id, CASE WHEN CAST(:owed AS bigint) IS NULL THEN 'unknown' ELSE 'charge' END,
               -coalesce(CAST(:owed AS bigint), reserved_microusd), id, :dispatch_id, model, flow, CAST(:note AS text)
        FROM {arrow} WHERE coalesce(CAST(:owed AS bigint), reserved_microusd) > 0 ON CONFLICT DO NOTHING
    )"""

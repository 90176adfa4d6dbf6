"""The statement of a key: its balance, and its usage and cost by day, model and user, from the ledger and the usage table.

`spent` is the sum of the entries of attempts; `given` is the sum of the operator's entries, grants and corrections alike. So
`given - spent` is always the balance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import text

from models.billing import budgets
from models.database.db import Transaction

GROUPS = ("day", "model", "user")


@dataclass(frozen=True)
class Statement:
    """Amounts in micro-USD. unknown: the part of `spent` for calls with an unknown outcome. unpriced_calls: a number of calls."""

    has_budget: bool
    granted: int
    corrected: int
    spent: int
    unknown: int
    reserved: int
    unpriced_calls: int

    @property
    def given(self) -> int:
        return self.granted + self.corrected

    @property
    def balance(self) -> int:
        """The sum of the ledger."""
        return self.given - self.spent

    @property
    def available(self) -> int:
        """The most that the next job may cost; 0 if open jobs, or calls more expensive than estimated, exceed the balance."""
        return max(0, self.balance - self.reserved)


_STANDING = text("""
    SELECT EXISTS (SELECT FROM budget WHERE key_id = :key_id) AS has_budget, it.*,
           (SELECT coalesce(sum(reserved_microusd), 0)::bigint FROM job
            WHERE key_id = :key_id AND status IN ('queued', 'admitted', 'running')) AS reserved,
           (SELECT count(*) FROM usage WHERE key_id = :key_id AND cost_microusd IS NULL
            AND NOT EXISTS (SELECT FROM ledger WHERE dispatch_id = usage.dispatch_id)) AS unpriced_calls
    FROM (
        SELECT coalesce(sum(amount_microusd) FILTER (WHERE kind = 'grant'), 0)::bigint AS granted,
               coalesce(sum(amount_microusd) FILTER (WHERE kind = 'correction' AND dispatch_id IS NULL), 0)::bigint AS corrected,
               coalesce(-sum(amount_microusd) FILTER (WHERE dispatch_id IS NOT NULL), 0)::bigint AS spent,
               coalesce(-sum(amount_microusd) FILTER (WHERE kind = 'unknown' AND NOT EXISTS (
                   SELECT FROM ledger AS later WHERE later.dispatch_id = ledger.dispatch_id AND later.kind = 'correction'
               )), 0)::bigint AS unknown
        FROM ledger WHERE key_id = :key_id
    ) AS it
""")


def statement_of(session: Transaction, key_id: int, kind: str) -> Statement:
    """The statement of this key now. kind: `own` or `issued`."""
    budgets.open_budget(session, key_id, kind)
    row = session.execute(_STANDING, {"key_id": key_id}).one()
    return Statement(**{**row._asdict(), "has_budget": row.has_budget and budgets.applies_to_kind(kind)})


# A correction counts on the day of the call that it corrects.
_DAYS = """
    at >= coalesce(CAST(:since AS date), '-infinity')::timestamp AT TIME ZONE 'UTC'
    AND at < coalesce(CAST(:until AS date) + 1, 'infinity')::timestamp AT TIME ZONE 'UTC'
"""
_USER = "(CAST(:user AS text) IS NULL OR flow = :user)"
_CALLS = f"""
    SELECT call.at, call.model, call.flow, call.dispatch_id, call.amount_microusd + coalesce(later.amount_microusd, 0) AS amount,
           call.kind = 'unknown' AND later.id IS NULL AS is_unknown
    FROM (SELECT * FROM ledger WHERE key_id = :key_id AND kind IN ('charge', 'unknown') AND {_USER} AND {_DAYS}) AS call
    LEFT JOIN ledger AS later ON later.dispatch_id = call.dispatch_id AND later.kind = 'correction'
"""
_SPENT = text(f"SELECT coalesce(-sum(amount), 0)::bigint FROM ({_CALLS}) AS calls")


def spent_microusd(session: Transaction, key_id: int, *, since: date | None, until: date | None) -> int:
    """The cost of the calls of these days, both included (UTC); None: no bound."""
    return int(session.execute(_SPENT, {"key_id": key_id, "since": since, "until": until, "user": None}).scalar_one())


_OF_USER = text(f"""
    SELECT coalesce(-sum(amount), 0)::bigint AS spent, coalesce(-sum(amount) FILTER (WHERE is_unknown), 0)::bigint AS unknown,
           (SELECT count(*) FROM usage WHERE key_id = :key_id AND {_USER} AND cost_microusd IS NULL
            AND NOT EXISTS (SELECT FROM ledger WHERE dispatch_id = usage.dispatch_id)) AS unpriced_calls
    FROM ({_CALLS}) AS calls
""")


def spending_of_user(session: Transaction, key_id: int, user: str) -> Any:
    """The total cost of one user of the key. One row: spent and unknown in micro-USD, unpriced_calls, as in Statement."""
    return session.execute(_OF_USER, {"key_id": key_id, "user": user, "since": None, "until": None}).one()


_REPORT = text(f"""
    WITH calls AS ({_CALLS}), reported AS (
        SELECT at, model, flow, input_tokens, output_tokens, images, estimated, dispatch_id, cost_microusd FROM usage
        WHERE key_id = :key_id AND {_USER} AND {_DAYS}
    ), merged AS (
        SELECT coalesce(calls.at, reported.at) AS at, coalesce(calls.model, reported.model) AS model,
               coalesce(calls.flow, reported.flow) AS flow,
               coalesce(input_tokens, 0) AS input_tokens, coalesce(output_tokens, 0) AS output_tokens, coalesce(images, 0) AS images,
               coalesce(estimated, false)::int AS estimated,
               (reported.dispatch_id IS NOT NULL AND cost_microusd IS NULL AND calls.dispatch_id IS NULL)::int AS unpriced,
               CASE WHEN is_unknown THEN 0 ELSE -coalesce(amount, 0) END AS cost,
               CASE WHEN is_unknown THEN -amount ELSE 0 END AS unknown
        FROM calls FULL JOIN reported USING (dispatch_id)
    )
    SELECT CASE WHEN :by_day THEN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD') END AS day, CASE WHEN :by_model THEN model END AS model,
           CASE WHEN :by_user THEN flow END AS user, count(*) AS calls, sum(input_tokens)::bigint AS input_tokens,
           sum(output_tokens)::bigint AS output_tokens, sum(images)::bigint AS images, sum(estimated)::bigint AS estimated_calls,
           sum(unpriced)::bigint AS unpriced_calls,
           sum(cost)::bigint AS cost, sum(unknown)::bigint AS unknown
    FROM merged GROUP BY 1, 2, 3 ORDER BY 1 DESC NULLS LAST, cost DESC, 2, 3 LIMIT :limit
""")


def usage_report(
    session: Transaction, key_id: int, *, since: date, until: date, by: Sequence[str], limit: int, user: str | None = None
) -> Sequence[Any]:
    """Usage and cost of these days, both included (UTC), newest first; up to `limit` rows, one per combination of the groups `by`.

    by: of GROUPS. user: the only user to include; None: all. Rows: day, model, user (None where not grouped by it), calls, input_tokens,
    output_tokens, images, estimated_calls, unpriced_calls, cost and unknown in micro-USD; cost is without unknown.
    """
    params = {
        "key_id": key_id,
        "since": since,
        "until": until,
        "limit": limit,
        "user": user,
        **{f"by_{group}": group in by for group in GROUPS},
    }
    return session.execute(_REPORT, params).all()

"""What a key has and what it spent, from the ledger and the usage that was told: for its owner, and for old clients.

What was spent is the sum of the entries for attempts; what the key was given is the sum of the operator's, grants and corrections
alike. So `given - spent` is the balance, always.
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
    """All in micro-USD, but for `unpriced_calls`. unknown: the part of `spent` for calls that nobody knows the outcome of."""

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
        """What the next job may cost; 0 when open jobs, or calls dearer than foreseen, took more."""
        return max(0, self.balance - self.reserved)


def statement_of(session: Transaction, key_id: int, kind: str) -> Statement:
    """How this key stands now. kind: `own` or `issued`."""
    budgets.open_budget(session, key_id, kind)
    row = session.execute(_STANDING, {"key_id": key_id}).one()
    return Statement(**{**row._asdict(), "has_budget": row.has_budget and budgets.applies_to_kind(kind)})


def spent_microusd(session: Transaction, key_id: int, *, since: date | None, until: date | None) -> int:
    """What the calls of these days cost, both included (UTC); None: from the first, to the last."""
    return int(session.execute(_SPENT, {"key_id": key_id, "since": since, "until": until, "user": None}).scalar_one())


def spending_of_user(session: Transaction, key_id: int, user: str) -> Any:
    """What this user of the key spent, ever. One row: spent and unknown in micro-USD, unpriced_calls, as Standing has them."""
    return session.execute(_OF_USER, {"key_id": key_id, "user": user, "since": None, "until": None}).one()


def usage_report(
    session: Transaction, key_id: int, *, since: date, until: date, by: Sequence[str], most: int, user: str | None = None
) -> Sequence[Any]:
    """What was used and spent in these days, both included (UTC), newest first; up to `most` rows, each for one value of `by`.

    by: of GROUPS. user: only this one's; None: all users'. Rows: day, model, user (None where not grouped by it), calls, input_tokens,
    output_tokens, images, estimated_calls, unpriced_calls, cost and unknown in micro-USD; cost is without unknown.
    """
    wanted = {"key_id": key_id, "since": since, "until": until, "most": most, "user": user, **{f"by_{one}": one in by for one in GROUPS}}
    return session.execute(_REPORT, wanted).all()


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
# A day is what its calls cost: a correction counts on the day of the call that it corrects.
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
_OF_USER = text(f"""
    SELECT coalesce(-sum(amount), 0)::bigint AS spent, coalesce(-sum(amount) FILTER (WHERE is_unknown), 0)::bigint AS unknown,
           (SELECT count(*) FROM usage WHERE key_id = :key_id AND {_USER} AND cost_microusd IS NULL
            AND NOT EXISTS (SELECT FROM ledger WHERE dispatch_id = usage.dispatch_id)) AS unpriced_calls
    FROM ({_CALLS}) AS calls
""")
_REPORT = text(f"""
    WITH calls AS ({_CALLS}), told AS (
        SELECT at, model, flow, input_tokens, output_tokens, images, estimated, dispatch_id, cost_microusd FROM usage
        WHERE key_id = :key_id AND {_USER} AND {_DAYS}
    ), both_ AS (
        SELECT coalesce(calls.at, told.at) AS at, coalesce(calls.model, told.model) AS model, coalesce(calls.flow, told.flow) AS flow,
               coalesce(input_tokens, 0) AS input_tokens, coalesce(output_tokens, 0) AS output_tokens, coalesce(images, 0) AS images,
               coalesce(estimated, false)::int AS estimated,
               (told.dispatch_id IS NOT NULL AND cost_microusd IS NULL AND calls.dispatch_id IS NULL)::int AS unpriced,
               CASE WHEN is_unknown THEN 0 ELSE -coalesce(amount, 0) END AS cost,
               CASE WHEN is_unknown THEN -amount ELSE 0 END AS unknown
        FROM calls FULL JOIN told USING (dispatch_id)
    )
    SELECT CASE WHEN :by_day THEN to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD') END AS day, CASE WHEN :by_model THEN model END AS model,
           CASE WHEN :by_user THEN flow END AS user, count(*) AS calls, sum(input_tokens)::bigint AS input_tokens,
           sum(output_tokens)::bigint AS output_tokens, sum(images)::bigint AS images, sum(estimated)::bigint AS estimated_calls,
           sum(unpriced)::bigint AS unpriced_calls,
           sum(cost)::bigint AS cost, sum(unknown)::bigint AS unknown
    FROM both_ GROUP BY 1, 2, 3 ORDER BY 1 DESC NULLS LAST, cost DESC, 2, 3 LIMIT :most
""")

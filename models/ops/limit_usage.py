"""Usage of each limit, counted from recorded attempts, as the rebuild of the limiter's state counts it.

It needs only Postgres, so it is right after any loss of Redis. Admitted jobs that are not called yet count as used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from models.database.db import Transaction
from models.keys import limits
from models.keys.limits import LimitState

MINUTE_S = 60
NAMES = ("rpm", "tpm", "ipm", "rpd", "max_in_flight")
CredentialModel = tuple[int, str]


@dataclass(frozen=True)
class LimitUsage:
    """Usage of one limit. limit None: no limit is known. used None: not counted, as requests a day without a limit."""

    limit: float | None
    used: int | None

    @property
    def left(self) -> int | None:
        """What is left of the limit; None if unknown."""
        return None if self.limit is None or self.used is None else max(0, int(self.limit - self.used))


@dataclass(frozen=True)
class CredentialUsage:
    """Limits and their usage of one credential and model."""

    state: LimitState
    gauges: Mapping[str, LimitUsage]

    @property
    def cooldown_until(self) -> datetime | None:
        """End of the pause that the upstream asked for."""
        return self.state.cooldown_until


# Both counts are small: live jobs are bounded by the slots of the workers, attempts of a minute by what these slots can send.
_USED = text("""
    WITH live AS MATERIALIZED (
        SELECT credential_id, model, count(*)::int AS jobs, count(*) FILTER (WHERE status = 'admitted')::int AS requests,
               coalesce(sum(tokens) FILTER (WHERE status = 'admitted'), 0) AS tokens,
               coalesce(sum(images) FILTER (WHERE status = 'admitted'), 0) AS images
        FROM job WHERE status IN ('admitted', 'running') GROUP BY credential_id, model
    )
    SELECT pair.credential_id, pair.model, coalesce(live.jobs, 0) AS in_flight,
           sent.requests + coalesce(live.requests, 0) AS requests, sent.tokens + coalesce(live.tokens, 0) AS tokens,
           sent.images + coalesce(live.images, 0) AS images
    FROM unnest(CAST(:credentials AS bigint[]), CAST(:models AS text[])) AS pair (credential_id, model)
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS requests, coalesce(sum(tokens), 0) AS tokens, coalesce(sum(images), 0) AS images FROM attempt
        WHERE credential_id = pair.credential_id AND model = pair.model AND outcome <> 'not_sent'
        AND started_at > now() - make_interval(secs => :minute_s)
    ) AS sent
    LEFT JOIN live ON live.credential_id = pair.credential_id AND live.model = pair.model
""")


def usage_of(session: Transaction, bounds: Sequence[CredentialModel]) -> dict[CredentialModel, CredentialUsage]:
    """Returns the usage of these credentials and models, with three statements for all, and one more if a day is limited."""
    states = limits.states_of(session, bounds)
    used: dict[CredentialModel, Any] = {}
    if bounds:
        params = {"credentials": [one[0] for one in bounds], "models": [one[1] for one in bounds], "minute_s": MINUTE_S}
        used = {(row.credential_id, row.model): row for row in session.execute(_USED, params)}
    days = _days(session, states)
    return {one: CredentialUsage(state, _usages(state, used.get(one), days.get(one))) for one, state in states.items()}


def combine(readings: Iterable[CredentialUsage]) -> dict[str, LimitUsage]:
    """Adds up several credentials; a sum has no limit if one of them has none."""
    found = list(readings)
    return {name: _sum([one.gauges[name] for one in found]) for name in NAMES}


def _sum(gauges: Sequence[LimitUsage]) -> LimitUsage:
    limits, used = [one.limit for one in gauges], [one.used for one in gauges]
    return LimitUsage(
        limit=None if not gauges or None in limits else sum(one for one in limits if one is not None),
        used=None if None in used else sum(one for one in used if one is not None),
    )


def _usages(state: LimitState, used: Any | None, day: int | None) -> dict[str, LimitUsage]:
    windows = [one for one in (state.limits.max_in_flight, state.window_size) if one is not None]
    return {
        "rpm": LimitUsage(state.limits.rpm or state.learned_rpm, used.requests if used else 0),
        "tpm": LimitUsage(state.limits.tpm or state.learned_tpm, int(used.tokens) if used else 0),
        "ipm": LimitUsage(state.limits.ipm, int(used.images) if used else 0),
        "rpd": LimitUsage(state.limits.rpd, day),
        "max_in_flight": LimitUsage(min(windows) if windows else None, used.in_flight if used else 0),
    }


_USED_TODAY = text("""
    SELECT pair.credential_id, pair.model, sent.requests
    FROM unnest(CAST(:credentials AS bigint[]), CAST(:models AS text[]), CAST(:most AS bigint[])) AS pair (credential_id, model, most)
    CROSS JOIN LATERAL (
        SELECT count(*)::int AS requests FROM (
            SELECT FROM attempt WHERE credential_id = pair.credential_id AND model = pair.model AND outcome <> 'not_sent'
            AND started_at > now() - interval '1 day' LIMIT pair.most
        ) AS counted
    ) AS sent
""")


def _days(session: Transaction, states: Mapping[CredentialModel, LimitState]) -> dict[CredentialModel, int]:
    limited = [(one, state.limits.rpd) for one, state in states.items() if state.limits.rpd]
    if not limited:
        return {}
    params = {"credentials": [one[0] for one, _ in limited], "models": [one[1] for one, _ in limited], "most": [rpd for _, rpd in limited]}
    return {(row.credential_id, row.model): row.requests for row in session.execute(_USED_TODAY, params)}

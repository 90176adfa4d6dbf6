"""Limits per credential and model: set by the operator, or learned. Also the attempts from which the limiter is rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction
from models.keys.keys import Limits


@dataclass(frozen=True)
class LimitState:
    """The limits and the learned state of one credential and model. window_size: of the congestion window, in calls; None: unbounded."""

    limits: Limits
    learned_rpm: int | None
    learned_tpm: int | None
    window_size: float | None
    cooldown_until: datetime | None


_CREDENTIALS = text("""
    SELECT id, pool_id FROM credential WHERE pool_id = ANY(:pools) AND coalesce(parked_at, paused_at, retired_at) IS NULL ORDER BY id
""")


def active_credentials(session: Transaction, pool_ids: Sequence[int]) -> dict[int, list[int]]:
    """The credentials of each pool that are not parked, paused or retired."""
    by_pool: dict[int, list[int]] = {pool_id: [] for pool_id in pool_ids}
    for row in session.execute(_CREDENTIALS, {"pools": list(pool_ids)}):
        by_pool[row.pool_id].append(row.id)
    return by_pool


def lanes_by_ids(session: Transaction, lane_ids: Sequence[int]) -> Sequence[Any]:
    """These lanes. Rows: id, pool_id, model."""
    return session.execute(text("SELECT id, pool_id, model FROM lane WHERE id = ANY(:ids)"), {"ids": list(lane_ids)}).all()


_READ = text("SELECT * FROM meter WHERE credential_id = :credential_id AND model IN (:model, '*')")


def state_of(session: Transaction, credential_id: int, model: str) -> LimitState:
    """The state of this credential and model. A limit that the operator left unset has the default of the settings (0: open)."""
    rows = {row.model: row for row in session.execute(_READ, {"credential_id": credential_id, "model": model})}
    return _state(rows.get(model), rows.get("*"))


_READ_MANY = text("SELECT * FROM meter WHERE credential_id = ANY(:credentials) AND model = ANY(:models)")


def states_of(session: Transaction, meters: Sequence[tuple[int, str]]) -> dict[tuple[int, str], LimitState]:
    """`state_of` for each of these credentials and models, in one statement."""
    params = {"credentials": sorted({one[0] for one in meters}), "models": ["*", *sorted({one[1] for one in meters})]}
    rows = {(row.credential_id, row.model): row for row in session.execute(_READ_MANY, params)} if meters else {}
    return {one: _state(rows.get(one), rows.get((one[0], "*"))) for one in meters}


def _state(own: Any | None, general: Any | None) -> LimitState:
    names = ("rpm", "tpm", "ipm", "rpd", "max_in_flight")
    row = own if own is not None and any(getattr(own, name) is not None for name in names) else general
    defaults = settings()
    limits = {name: (getattr(row, name) if row is not None else None) or getattr(defaults, f"default_{name}") or None for name in names}
    return LimitState(
        limits=Limits(**limits),
        learned_rpm=own.learned_rpm if own is not None else None,
        learned_tpm=own.learned_tpm if own is not None else None,
        window_size=own.window_size if own is not None else None,
        cooldown_until=own.cooldown_until if own is not None else None,
    )


def sum_of(states: Sequence[LimitState]) -> dict[str, float | None]:
    """The summed limits of several credentials: rpm, tpm, ipm, max_in_flight; None if any of them has no known limit."""

    def total(values: list[float | None]) -> float | None:
        return None if not values or None in values else sum(value for value in values if value is not None)

    return {
        "rpm": total([state.limits.rpm or state.learned_rpm for state in states]),
        "tpm": total([state.limits.tpm or state.learned_tpm for state in states]),
        "ipm": total([state.limits.ipm for state in states]),
        "max_in_flight": total([state.limits.max_in_flight or state.window_size for state in states]),
    }


_REMEMBER = text("""
    INSERT INTO meter (credential_id, model, learned_rpm, learned_tpm, window_size, cooldown_until)
    VALUES (:credential_id, :model, :learned_rpm, :learned_tpm, :window_size, :cooldown_until)
    ON CONFLICT (credential_id, model) DO UPDATE
    SET learned_rpm = coalesce(excluded.learned_rpm, meter.learned_rpm),
        learned_tpm = CASE WHEN :tpm_refuted THEN NULL ELSE coalesce(excluded.learned_tpm, meter.learned_tpm) END,
        window_size = coalesce(excluded.window_size, meter.window_size),
        cooldown_until = greatest(excluded.cooldown_until, meter.cooldown_until)
""")


def store_learned(
    session: Transaction,
    credential_id: int,
    model: str,
    *,
    learned_rpm: int | None,
    learned_tpm: int | None,
    window_size: float | None,
    cooldown_until: datetime | None,
    tpm_refuted: bool = False,
) -> None:
    """Stores the limits that the limiter learned, so that they survive the loss of Redis. tpm_refuted: the learned tpm proved wrong."""
    session.execute(
        _REMEMBER,
        {"credential_id": credential_id, "model": model, "learned_rpm": learned_rpm, "learned_tpm": learned_tpm,
         "window_size": window_size, "cooldown_until": cooldown_until, "tpm_refuted": tpm_refuted},
    )  # fmt: skip


_HISTORY = text("""
    SELECT ((floor(extract(epoch FROM started_at) / :step_s) + 1) * :step_s * 1000000)::bigint AS ends_us,
           count(*) AS requests, sum(tokens) AS tokens, sum(images) AS images
    FROM attempt
    WHERE credential_id = :credential_id AND model = :model AND outcome <> 'not_sent'
    AND started_at > now() - make_interval(secs => :seconds)
    GROUP BY 1 ORDER BY 1
""")


def attempt_history(session: Transaction, credential_id: int, model: str, *, seconds: int, step_s: int) -> Sequence[Any]:
    """The attempts of the last `seconds`, summed per step. Rows: ends_us (epoch µs, the end of the step), requests, tokens, images."""
    return session.execute(_HISTORY, {"credential_id": credential_id, "model": model, "seconds": seconds, "step_s": step_s}).all()


_LIVE = text("""
    SELECT dispatch_id, tokens, images, greatest(:least_s, extract(epoch FROM lease_until - clock_timestamp()))::float8 AS left_s
    FROM job WHERE status = 'running' AND credential_id = :credential_id AND model = :model
""")


def running_attempts(session: Transaction, credential_id: int, model: str) -> Sequence[Any]:
    """The running attempts of a credential and model. Rows: dispatch_id, tokens, images, left_s (of the lease, at least two heartbeats).

    An expired lease is not yet lost: only the reaper decides that, and not soon after an outage of Postgres.
    """
    params = {"credential_id": credential_id, "model": model, "least_s": 2 * settings().heartbeat_s}
    return session.execute(_LIVE, params).all()


def all_running_attempts(session: Transaction) -> Sequence[Any]:
    """All running attempts. Rows: dispatch_id, credential_id, model."""
    return session.execute(text("SELECT dispatch_id, credential_id, model FROM job WHERE status = 'running'")).all()

"""Limits per credential and model as Postgres knows them: the operator's, the learned, and the ledger the limiter is rebuilt from."""

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
    """One credential and model. window_size: calls in flight borne so far, None: unbounded."""

    limits: Limits
    learned_rpm: int | None
    learned_tpm: int | None
    window_size: float | None
    cooldown_until: datetime | None


def active_credentials(session: Transaction, pool_ids: Sequence[int]) -> dict[int, list[int]]:
    """The credentials of each pool that are not parked, paused or retired."""
    found: dict[int, list[int]] = {number: [] for number in pool_ids}
    for row in session.execute(_CREDENTIALS, {"pools": list(pool_ids)}):
        found[row.pool_id].append(row.id)
    return found


def lanes_by_ids(session: Transaction, lane_ids: Sequence[int]) -> Sequence[Any]:
    """These lanes. Rows: id, pool_id, model."""
    return session.execute(text("SELECT id, pool_id, model FROM lane WHERE id = ANY(:ids)"), {"ids": list(lane_ids)}).all()


def state_of(session: Transaction, credential_id: int, model: str) -> LimitState:
    """What is known; where the operator said nothing the settings' defaults (0: open) hold."""
    rows = {row.model: row for row in session.execute(_READ, {"credential_id": credential_id, "model": model})}
    return _state(rows.get(model), rows.get("*"))


def states_of(session: Transaction, meters: Sequence[tuple[int, str]]) -> dict[tuple[int, str], LimitState]:
    """`read` for each of these credentials and models, in one statement."""
    wanted = {"credentials": sorted({one[0] for one in meters}), "models": ["*", *sorted({one[1] for one in meters})]}
    rows = {(row.credential_id, row.model): row for row in session.execute(_READ_MANY, wanted)} if meters else {}
    return {one: _state(rows.get(one), rows.get((one[0], "*"))) for one in meters}


def _state(own: Any | None, usual: Any | None) -> LimitState:
    names = ("rpm", "tpm", "ipm", "rpd", "max_in_flight")
    said = own if own is not None and any(getattr(own, name) is not None for name in names) else usual
    defaults = settings()
    limits = {name: (getattr(said, name) if said is not None else None) or getattr(defaults, f"default_{name}") or None for name in names}
    return LimitState(
        limits=Limits(**limits),
        learned_rpm=own.learned_rpm if own is not None else None,
        learned_tpm=own.learned_tpm if own is not None else None,
        window_size=own.window_size if own is not None else None,
        cooldown_until=own.cooldown_until if own is not None else None,
    )


def sum_of(states: Sequence[LimitState]) -> dict[str, float | None]:
    """What several credentials may do together: rpm, tpm, ipm, max_in_flight; None as soon as one of them has no known limit."""

    def total(values: list[float | None]) -> float | None:
        return None if not values or None in values else sum(value for value in values if value is not None)

    return {
        "rpm": total([one.limits.rpm or one.learned_rpm for one in states]),
        "tpm": total([one.limits.tpm or one.learned_tpm for one in states]),
        "ipm": total([one.limits.ipm for one in states]),
        "max_in_flight": total([one.limits.max_in_flight or one.window_size for one in states]),
    }


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
    """Stores what the limiter learned, so that it survives the loss of Redis. tpm_refuted: the learned tpm is known to be wrong."""
    session.execute(
        _REMEMBER,
        {"credential_id": credential_id, "model": model, "learned_rpm": learned_rpm, "learned_tpm": learned_tpm,
         "window_size": window_size, "cooldown_until": cooldown_until, "tpm_refuted": tpm_refuted},
    )  # fmt: skip


def attempt_history(session: Transaction, credential_id: int, model: str, *, seconds: int, step_s: int) -> Sequence[Any]:
    """Calls of the last `seconds`, summed in steps. Rows: ends_us (epoch µs, the end of the step), requests, tokens, images."""
    return session.execute(_HISTORY, {"credential_id": credential_id, "model": model, "seconds": seconds, "step_s": step_s}).all()


def running_attempts(session: Transaction, credential_id: int, model: str) -> Sequence[Any]:
    """Calls that run now. Rows: dispatch_id, tokens, images, left_s (of the lease, and long enough for whoever keeps it to come by).

    A lease that has run out is none that was lost: only the reaper says that, and not soon after Postgres was away.
    """
    wanted = {"credential_id": credential_id, "model": model, "least_s": 2 * settings().heartbeat_s}
    return session.execute(_LIVE, wanted).all()


def all_running_attempts(session: Transaction) -> Sequence[Any]:
    """All calls that run now. Rows: dispatch_id, credential_id, model."""
    return session.execute(text("SELECT dispatch_id, credential_id, model FROM job WHERE status = 'running'")).all()


_CREDENTIALS = text("""
    SELECT id, pool_id FROM credential WHERE pool_id = ANY(:pools) AND coalesce(parked_at, paused_at, retired_at) IS NULL ORDER BY id
""")
_READ = text("SELECT * FROM meter WHERE credential_id = :credential_id AND model IN (:model, '*')")
_READ_MANY = text("SELECT * FROM meter WHERE credential_id = ANY(:credentials) AND model = ANY(:models)")
_REMEMBER = text("""
    INSERT INTO meter (credential_id, model, learned_rpm, learned_tpm, window_size, cooldown_until)
    VALUES (:credential_id, :model, :learned_rpm, :learned_tpm, :window_size, :cooldown_until)
    ON CONFLICT (credential_id, model) DO UPDATE
    SET learned_rpm = coalesce(excluded.learned_rpm, meter.learned_rpm),
        learned_tpm = CASE WHEN :tpm_refuted THEN NULL ELSE coalesce(excluded.learned_tpm, meter.learned_tpm) END,
        window_size = coalesce(excluded.window_size, meter.window_size),
        cooldown_until = greatest(excluded.cooldown_until, meter.cooldown_until)
""")
_HISTORY = text("""
    SELECT ((floor(extract(epoch FROM started_at) / :step_s) + 1) * :step_s * 1000000)::bigint AS ends_us,
           count(*) AS requests, sum(tokens) AS tokens, sum(images) AS images
    FROM attempt
    WHERE credential_id = :credential_id AND model = :model AND outcome <> 'not_sent'
    AND started_at > now() - make_interval(secs => :seconds)
    GROUP BY 1 ORDER BY 1
""")
_LIVE = text("""
    SELECT dispatch_id, tokens, images, greatest(:least_s, extract(epoch FROM lease_until - clock_timestamp()))::float8 AS left_s
    FROM job WHERE status = 'running' AND credential_id = :credential_id AND model = :model
""")

"""Parking of credentials that the upstream refuses, for everything or for one model and endpoint. A good answer unparks them.

A credential parked for everything (wrong key, no money) gets no jobs except one probe every NOWSERVING_PROBE_S. The jobs of an operator's
pool wait until the operator repairs it; jobs whose clients wait on a connection fail after NOWSERVING_PARKED_MOST_S. The jobs of an own
key fail at once with the upstream's error.
With a credential parked for one model and endpoint (no access, unknown model, payment required), the other credentials of the pool serve
these jobs. Its probes back off up to MAX_PROBE_S. A job fails when every credential of its pool has refused it; while all are parked for
the model, none counts as parked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction

# The longest time between two probes of a credential that is parked for one model and endpoint.
MAX_PROBE_S = 3_600


@dataclass(frozen=True)
class Refusal:
    """The upstream's refusal of a parked credential. status: None if an older version parked it."""

    error: dict[str, object]
    status: int | None


_PARK = text("""
    UPDATE credential SET parked_at = now(), parked_reason = :reason, parked_words = CAST(:words AS jsonb),
           parked_since = CASE WHEN credential.parked_at IS NULL THEN now()
                               ELSE coalesce(credential.parked_since, credential.parked_at) END,
           parked_error = CASE WHEN owned.is_own THEN CAST(:error AS jsonb) END
    FROM (
        SELECT old.id, old.parked_at IS NOT NULL AS was_parked,
               EXISTS (SELECT FROM key WHERE key.pool_id = old.pool_id AND key.kind = 'own') AS is_own
        FROM credential AS old WHERE old.id = :id
    ) AS owned
    WHERE credential.id = owned.id RETURNING owned.is_own, owned.was_parked
""")


def park(session: Transaction, credential_id: int, *, reason: str, error: Mapping[str, object] | None, status: int | None = None) -> Any:
    """Parks the credential for everything. error, status: of the refusal, with which jobs fail.

    Row: is_own (the pool of a caller's own key), was_parked (this was a probe).
    """
    words = json.dumps({"status": status, "error": error}) if error else None
    params = {"id": credential_id, "reason": reason, "error": json.dumps(error) if error else None, "words": words}
    return session.execute(_PARK, params).one()


# An operator's `resume` writes these columns too.
UNPARK_COLUMNS = "parked_at = NULL, parked_reason = NULL, parked_error = NULL, parked_since = NULL, parked_words = NULL"
_UNPARK = text(f"UPDATE credential SET {UNPARK_COLUMNS} WHERE id = :id AND parked_at IS NOT NULL")


def unpark(session: Transaction, credential_id: int) -> None:
    """Unparks the credential."""
    session.execute(_UNPARK, {"id": credential_id})


_MAKE_PROBE_DUE = text("""
    UPDATE credential SET parked_at = now() - make_interval(secs => :probe_s) WHERE id = :id AND parked_reason = :reason
    AND parked_at >= now() - make_interval(secs => :probe_s)
""")


def make_probe_due(session: Transaction, credential_id: int, *, reason: str) -> None:
    """Makes the next job probe a credential that is parked for this reason, after a sign that it works again."""
    session.execute(_MAKE_PROBE_DUE, {"id": credential_id, "reason": reason, "probe_s": settings().probe_s})


_OPEN = text("""
    SELECT id, pool_id, weight, parked_at IS NOT NULL AS is_probe, (
        SELECT jsonb_agg(jsonb_build_object('model', model, 'endpoint', endpoint, 'is_due', probe_at <= now()))
        FROM parked_model WHERE credential_id = credential.id
    ) AS shut FROM credential
    WHERE pool_id = ANY(:pools) AND coalesce(paused_at, retired_at) IS NULL
    AND (parked_at IS NULL OR parked_at < now() - make_interval(secs => :probe_s)) ORDER BY id
""")


def usable_credentials(session: Transaction, pool_ids: Sequence[int], *, probe_s: float) -> Sequence[Any]:
    """The credentials that may serve jobs now.

    Rows: id, pool_id, weight, is_probe (parked, and due for one job that tries it), shut: [{model, endpoint, is_due}] of what each is
    parked for alone.
    """
    return session.execute(_OPEN, {"pools": list(pool_ids), "probe_s": probe_s}).all()


def record_probes(session: Transaction, credential_ids: Sequence[int]) -> None:
    """Records a probe of these credentials; the next is due after another probe_s."""
    if credential_ids:
        session.execute(
            text("UPDATE credential SET parked_at = now() WHERE id = ANY(:ids) AND parked_at IS NOT NULL"), {"ids": list(credential_ids)}
        )


_WAIT = "make_interval(secs => least(:most_s, :probe_s * power(2, least(probes, 20))))"
_PARK_MODEL = text(f"""
    INSERT INTO parked_model AS parked (credential_id, model, endpoint, reason, job_id, probe_at)
    VALUES (:credential_id, :model, :endpoint, :reason, :job_id, now() + make_interval(secs => :probe_s))
    ON CONFLICT (credential_id, model, endpoint) DO UPDATE
    SET reason = excluded.reason, job_id = excluded.job_id, probes = parked.probes + 1,
        probe_at = now() + {_WAIT.replace("probes", "parked.probes + 1")}
""")
_FORGIVE = text("DELETE FROM parked_model WHERE job_id = :job_id AND model = :model AND endpoint = :endpoint")
_OTHERS = text("""
    SELECT other.id FROM credential JOIN credential AS other ON other.pool_id = credential.pool_id
    WHERE credential.id = :credential_id AND other.id <> ALL(:refused)
    AND coalesce(other.parked_at, other.paused_at, other.retired_at) IS NULL LIMIT 1
""")


def record_refusal(
    session: Transaction, *, job_id: UUID, credential_id: int, model: str, endpoint: str, reason: str | None, refused_by: Sequence[int]
) -> bool:
    """Parks the credential for this model and endpoint if another credential of its pool may serve the job. Returns whether one may.

    reason None: it serves other jobs of this model, so it is not parked.
    refused_by: credentials that refused the job before. When none is left the job itself is refused, so what it parked is open again.
    """
    params = {"job_id": job_id, "credential_id": credential_id, "model": model, "endpoint": endpoint, "reason": reason}
    if session.execute(_OTHERS, {"credential_id": credential_id, "refused": [*refused_by, credential_id]}).one_or_none() is None:
        session.execute(_FORGIVE, {"job_id": job_id, "model": model, "endpoint": endpoint})
        return False
    if reason is not None:
        session.execute(_PARK_MODEL, {**params, "probe_s": settings().probe_s, "most_s": MAX_PROBE_S})
    return True


_UNPARK_MODEL = text("DELETE FROM parked_model WHERE credential_id = :credential_id AND model = :model AND endpoint = :endpoint")


def unpark_model(session: Transaction, credential_id: int, *, model: str, endpoint: str) -> None:
    """Unparks the credential for this model and endpoint."""
    session.execute(_UNPARK_MODEL, {"credential_id": credential_id, "model": model, "endpoint": endpoint})


_PROBED_MODELS = text(f"""
    UPDATE parked_model SET probe_at = now() + {_WAIT}
    FROM unnest(CAST(:credentials AS bigint[]), CAST(:models AS text[]), CAST(:endpoints AS text[]))
        AS sent (credential_id, model, endpoint)
    WHERE parked_model.credential_id = sent.credential_id AND parked_model.model = sent.model AND parked_model.endpoint = sent.endpoint
""")


def record_model_probes(session: Transaction, probes: Sequence[tuple[int, str, str]]) -> None:
    """Records a probe of each (credential, model, endpoint), and sets when the next is due."""
    if probes:
        columns = dict(zip(("credentials", "models", "endpoints"), map(list, zip(*probes, strict=True)), strict=True))
        session.execute(_PROBED_MODELS, {**columns, "probe_s": settings().probe_s, "most_s": MAX_PROBE_S})


_HOPELESS = text("""
    SELECT pool_id, parked_error, CAST(parked_words ->> 'status' AS int) AS status FROM credential
    WHERE pool_id = ANY(:pools) AND parked_error IS NOT NULL
""")


def rejected_keys(session: Transaction, pool_ids: Sequence[int]) -> dict[int, Refusal]:
    """The pools of own keys that the upstream rejects, with its refusal."""
    rows = session.execute(_HOPELESS, {"pools": list(pool_ids)})
    return {row.pool_id: Refusal(row.parked_error, row.status) for row in rows}


_WAITED_OUT = text("""
    WITH parked AS (
        SELECT pool_id, (array_agg(parked_words ORDER BY parked_at DESC))[1] AS words FROM credential
        WHERE coalesce(paused_at, retired_at) IS NULL AND pool_id IN (SELECT pool_id FROM credential WHERE parked_at IS NOT NULL)
        GROUP BY pool_id
        HAVING bool_and(parked_at IS NOT NULL)
        AND max(coalesce(parked_since, parked_at)) < clock_timestamp() - make_interval(secs => :longer_than_s)
    )
    SELECT job.id, job.key_id, job.lane_id, job.calls, job.created_at, job.request_id, job.traceparent, parked.words
    FROM parked JOIN pool ON pool.id = parked.pool_id JOIN lane ON lane.pool_id = pool.id JOIN job ON job.lane_id = lane.id
    WHERE coalesce(pool.paused_at, lane.paused_at) IS NULL AND job.status = 'queued' AND NOT job.held
    AND job.reader IS NOT NULL AND job.left_at IS NULL
    AND job.created_at < clock_timestamp() - make_interval(secs => :longer_than_s) LIMIT :limit
""")


def jobs_parked_too_long(session: Transaction, *, longer_than_s: float, limit: int) -> Sequence[Any]:
    """Queued jobs with a waiting client, older than longer_than_s, in pools whose credentials have all been parked for that long.

    Rows: id, key_id, lane_id, calls, created_at, request_id, traceparent, words (the upstream's last refusal as {status, error}, or
    None). calls: attempts of the job.
    """
    return session.execute(_WAITED_OUT, {"longer_than_s": longer_than_s, "limit": limit}).all()

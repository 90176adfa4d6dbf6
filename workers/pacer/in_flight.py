"""Renews the in-flight leases of all running calls in Redis, because a worker that is cut off from Redis cannot renew its own.

The job's row in Postgres is the truth: while it says `running`, the call holds its lease.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from models.config.settings import settings
from models.database import db
from models.keys import limits
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel

log = logging.getLogger(__name__)


class InFlightLeases:
    """The renewals of one pacer."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._renewed_at = float("-inf")

    def renew(self, *, now: float) -> None:
        """Renews every NOWSERVING_HEARTBEAT_S.

        Where a running call has lost its lease, the limiter's state is rebuilt before the next admission.
        now: monotonic seconds. Raises Unavailable, LimiterUnavailable; then no job may be admitted.
        """
        gap_s = now - self._renewed_at
        if gap_s < settings().heartbeat_s:
            return
        with db.autocommit() as session:
            rows = limits.all_running_attempts(session)
        expected: dict[CredentialModel, set[str]] = {}
        for row in rows:
            expected.setdefault(CredentialModel(row.credential_id, row.model), set()).add(str(row.dispatch_id))
        dispatches = [(meter, sorted(ids)) for meter, ids in expected.items()]
        held = self._limiter.renew_many(dispatches, lease_ms=int(settings().lease_s * 1000))
        # A lease renewed less than lease_s ago cannot have expired: a missing one was released by its answer, a moment before the
        # answer reaches the row. After a longer gap, as in a new process, it may have expired.
        if gap_s > settings().lease_s - settings().heartbeat_s:
            self._forget_incomplete(expected, dict(zip(expected, held, strict=True)))
        self._renewed_at = now

    def _forget_incomplete(self, expected: Mapping[CredentialModel, set[str]], held: Mapping[CredentialModel, set[str]]) -> None:
        for meter, ids in expected.items():
            if lost := ids - held[meter]:
                log.warning(
                    "in-flight leases expired: the limiter is rebuilt",
                    extra={"credential_id": meter.credential_id, "model": meter.model, "lost": len(lost)},
                )
                self._limiter.forget(meter)

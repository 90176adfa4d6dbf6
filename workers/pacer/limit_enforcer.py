"""Passes limits that the operator has changed to the limiter, and refreshes the statistics of lanes that limits are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from models.database import db
from models.keys import limits as limits_store
from models.keys.keys import Limits
from models.platform.errors import LimiterUnavailable
from models.queue import lane_maintenance
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel
from workers.pacer.wakeups import Wakeups


class LimitEnforcer:
    """Remembers which limits the limiter already has. Thread-safe enough: the same limits may be passed twice."""

    def __init__(self, *, limiter: Limiter, wakeups: Wakeups) -> None:
        self._limiter = limiter
        self._wakeups = wakeups
        self._maintenance = lane_maintenance.LaneMaintenance()
        self._enforced: dict[CredentialModel, Limits] = {}

    def enforce_lanes(self, lane_ids: Sequence[int], *, forget: bool) -> None:
        """Enforces the current limits of these lanes, and wakes the lanes. forget: the limiter's state is rebuilt from Postgres.

        Raises LimiterUnavailable, Unavailable.
        """
        with db.begin() as session:
            changed = [
                (lane.id, meter, limits)
                for lane in limits_store.lanes_by_ids(session, lane_ids)
                for meter, limits in _limits_of(session, lane)
            ]
        for lane_id, meter, limits in changed:
            if forget:
                self._limiter.forget(meter)
            self._enforce(meter, limits, lane_id=lane_id)
        for lane_id in lane_ids:
            self._wakeups.wake(lane_id)

    def refresh_lanes(self, *, now: float) -> None:
        """Refreshes the statistics of a few lanes, and configures the limiter where limits of a credential changed. now: monotonic
        seconds."""
        with db.begin() as session:
            lanes = self._maintenance.next_batch(session)
        for lane in lanes:
            with db.begin() as session:
                limits_by_credential = self._maintenance.refresh(session, lane, now=now)
            for credential_id, limits in limits_by_credential.items():
                self._enforce(CredentialModel(credential_id, lane.model), limits, lane_id=lane.id)

    def _enforce(self, meter: CredentialModel, limits: Limits, *, lane_id: int) -> None:
        """Configures the limiter where the limits have changed, and wakes the lane: its jobs may go sooner."""
        before = self._enforced.get(meter)
        if before == limits:
            return
        try:
            if before is not None and limits.rpd and not before.rpd:
                self._limiter.forget(meter)  # without a daily limit the day was not counted; the rebuild counts it
            else:
                self._limiter.configure(meter, limits)
        except LimiterUnavailable:
            return  # the next refresh retries; an emptied limiter is rebuilt with the new limits anyway
        self._enforced[meter] = limits
        self._wakeups.wake(lane_id)


def _limits_of(session: db.Transaction, lane: Any) -> Iterator[tuple[CredentialModel, Limits]]:
    for credential_id in limits_store.active_credentials(session, [lane.pool_id])[lane.pool_id]:
        yield CredentialModel(credential_id, lane.model), limits_store.state_of(session, credential_id, lane.model).limits

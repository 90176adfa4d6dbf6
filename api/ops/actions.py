"""Operator actions on pools, lanes, keys, flows and credentials, for the HTTP routes and the command line.

Each action is one transaction with its entry in the audit log. After the commit the pacer or the limiter is notified.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from api.waiting import notify_queue
from models.access import audit_log
from models.access.audit_log import Act
from models.database import db
from models.keys import credential_address, keys
from models.ops import lane_rebuild, limits_and_caps, pause, priorities
from models.ops.pause import Target


def pause_resume_or_drain(act: Act, verb: str, target: Target) -> dict[str, Any]:
    """Pauses, resumes or drains the target; returns its new state."""
    with db.begin() as session:
        state, lane_ids = pause.apply(session, act, verb, target)
    if verb == "resume":
        _notify_lanes(lane_ids)
    return state


def set_limits(act: Act, credential_id: int, changes: Mapping[str, int | None], *, model: str) -> dict[str, Any]:
    """Changes a credential's limits; the limiter applies them at once."""
    with db.begin() as session:
        limits = limits_and_caps.set_limits(session, act, credential_id, changes, model=model)
        lane_ids = pause.lane_ids(session, Target("credential", credential_id))
    notify_queue.limits_changed(lane_ids)
    return limits


def set_caps(act: Act, target: Target, changes: Mapping[str, int | None], *, endpoint: str) -> dict[str, Any]:
    """Changes the caps of a key or a flow."""
    with db.begin() as session:
        caps = limits_and_caps.set_caps(session, act, target, changes, endpoint=endpoint)
        lane_ids = pause.lane_ids(session, target)
    _notify_lanes(lane_ids)
    return caps


def add_credential(
    act: Act,
    pool_id: int,
    *,
    upstream_key: str,
    base_url: str | None,
    weight: float | None,
    kind: str = "openai",
    api_version: str | None = None,
) -> dict[str, Any]:
    """Adds a credential to the pool. Raises Invalid, NotFound."""
    base_url, api_version = credential_address.normalize(kind, base_url=base_url, api_version=api_version)
    address = {"kind": kind, "base_url": base_url, "api_version": api_version}
    with db.begin() as session:
        pause.target_state(session, Target("pool", pool_id))
        credential_id = keys.add_credential(
            session, pool_id=pool_id, upstream_key=upstream_key, base_url=base_url, kind=kind, api_version=api_version
        )
        audit_log.write(session, act, "add", f"credential:{credential_id}", before=None, after={"pool": pool_id, **address})
        credential = limits_and_caps.change_credential(session, act, credential_id, weight=weight)
        lane_ids = pause.lane_ids(session, Target("pool", pool_id))
    notify_queue.limits_changed(lane_ids)
    return credential


def change_credential(
    act: Act,
    credential_id: int,
    *,
    weight: float | None,
    base_url: str | None,
    upstream_key: str | None,
    api_version: str | None = None,
) -> dict[str, Any]:
    """Changes a credential's weight, address or secret, from the next call on."""
    with db.begin() as session:
        return limits_and_caps.change_credential(
            session, act, credential_id, weight=weight, base_url=base_url, upstream_key=upstream_key, api_version=api_version
        )


def retire_credential(act: Act, credential_id: int) -> dict[str, Any]:
    """Retires a credential: it gets no more jobs."""
    with db.begin() as session:
        return limits_and_caps.retire_credential(session, act, credential_id)


def set_weight(act: Act, target: Target, *, weight: float) -> dict[str, Any]:
    """Sets the share of a key or a flow."""
    with db.begin() as session:
        state, lane_ids = priorities.set_weight(session, act, target, weight=weight)
    _notify_lanes(lane_ids)
    return state


def rebuild_lane(act: Act, lane_id: int) -> dict[str, Any]:
    """Rebuilds the lane's counters from its jobs, and has its limiter state in Redis rebuilt from the recorded attempts."""
    with db.begin() as session:
        lane_rebuild.rebuild(session, act, lane_id)
    notify_queue.limits_changed([lane_id], forget=True)
    return {"id": str(lane_id), "object": "lane", "rebuilding": True}


def _notify_lanes(lane_ids: Iterable[int]) -> None:
    for lane_id in lane_ids:
        notify_queue.lane_changed(lane_id)

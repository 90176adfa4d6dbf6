"""What an operator does, by HTTP or on the command line: one transaction with its entry in the log, then whom it concerns is woken."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text

from api.submit import build
from api.waiting import notify_queue
from models.access import audit_log
from models.access.audit_log import Act
from models.database import db
from models.jobs import cancellation, job_view, states
from models.keys import credential_address, keys
from models.ops import bulk, limits_and_caps, pause, priorities
from models.ops.bulk import JobFilter
from models.ops.pause import Target
from models.platform import wire
from models.platform.errors import NotFound, WrongState
from models.queue import enqueue, key_shares


def halt_it(act: Act, verb: str, on: Target) -> dict[str, Any]:
    """halt.act_on, and the pacer looks."""
    with db.begin() as session:
        made, lanes = pause.apply(session, act, verb, on)
    for number in lanes if verb == "resume" else ():
        notify_queue.lane_changed(number)
    return made


def set_limits(act: Act, credential_id: int, changes: Mapping[str, int | None], *, model: str) -> dict[str, Any]:
    """tuning.set_limits, and the limiter is told at once."""
    with db.begin() as session:
        made = limits_and_caps.set_limits(session, act, credential_id, changes, model=model)
        lanes = pause.lane_ids(session, Target("credential", credential_id))
    notify_queue.limits_changed(lanes)
    return made


def set_caps(act: Act, on: Target, changes: Mapping[str, int | None], *, endpoint: str) -> dict[str, Any]:
    """tuning.set_caps, and the pacer looks."""
    with db.begin() as session:
        made = limits_and_caps.set_caps(session, act, on, changes, endpoint=endpoint)
        lanes = pause.lane_ids(session, on)
    for number in lanes:
        notify_queue.lane_changed(number)
    return made


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
    """One more credential serves the pool from now on. Raises Invalid, NotFound."""
    base_url, api_version = credential_address.address(kind, base_url=base_url, api_version=api_version)
    with db.begin() as session:
        pause.target_state(session, Target("pool", pool_id))
        given = {"kind": kind, "base_url": base_url, "api_version": api_version}
        number = keys.add_credential(
            session, pool_id=pool_id, upstream_key=upstream_key, base_url=base_url, kind=kind, api_version=api_version
        )
        audit_log.write(session, act, "add", f"credential:{number}", before=None, after={"pool": pool_id, **given})
        made = limits_and_caps.change_credential(session, act, number, weight=weight)
        lanes = pause.lane_ids(session, Target("pool", pool_id))
    notify_queue.limits_changed(lanes)
    return made


def change_credential(
    act: Act,
    credential_id: int,
    *,
    weight: float | None,
    base_url: str | None,
    upstream_key: str | None,
    api_version: str | None = None,
) -> dict[str, Any]:
    """tuning.change_credential."""
    with db.begin() as session:
        return limits_and_caps.change_credential(
            session, act, credential_id, weight=weight, base_url=base_url, upstream_key=upstream_key, api_version=api_version
        )


def retire(act: Act, credential_id: int) -> dict[str, Any]:
    """tuning.retire."""
    with db.begin() as session:
        return limits_and_caps.retire_credential(session, act, credential_id)


def weigh(act: Act, on: Target, *, weight: float) -> dict[str, Any]:
    """reorder.weigh, and the pacer looks."""
    with db.begin() as session:
        made, lanes = priorities.set_weight(session, act, on, weight=weight)
    for lane_id in lanes:
        notify_queue.lane_changed(lane_id)
    return made


def boost(act: Act, job_id: UUID) -> dict[str, Any]:
    """reorder.boost, and the pacer looks."""
    with db.begin() as session:
        lane_id = priorities.boost(session, act, job_id)
    notify_queue.lane_changed(lane_id)
    return _shown(job_id)


def prioritise(act: Act, job_id: UUID, *, priority: str) -> dict[str, Any]:
    """reorder.prioritise, and the pacer looks."""
    with db.begin() as session:
        lane_id = priorities.set_priority(session, act, job_id, priority=priority)
    notify_queue.lane_changed(lane_id)
    return _shown(job_id)


def rebuild(act: Act, lane_id: int) -> dict[str, Any]:
    """What Redis holds of the lane's limits is made again from the attempts on record; the lane's counters from its jobs."""
    with db.begin() as session:
        pause.target_state(session, Target("lane", lane_id), lock=True)
        key_shares.rebuild_shares(session, lane_id)
        session.execute(_RECOUNT, {"id": lane_id})
        audit_log.write(session, act, "rebuild", f"lane:{lane_id}", before=None, after=None)
    notify_queue.limits_changed([lane_id], forget=True)
    return {"id": str(lane_id), "object": "lane", "rebuilding": True}


def cancel(act: Act, job_id: UUID) -> dict[str, Any]:
    """The job is cancelled, or told to stop. Raises NotFound, WrongState."""
    with db.begin() as session:
        found = _row(session, job_id)
        done = cancellation.cancel(session, job_id, found.key_id)
        if done is None and not found.cancel_requested:
            raise WrongState(f"The job has already {found.status}: there is nothing left to cancel.")
        audit_log.write(session, act, "cancel", f"job:{job_id}", before={"status": found.status}, after=None)
    _tell(done)
    return _shown(job_id)


def purge_some(act: Act, which: JobFilter, *, status: str) -> int:
    """One chunk of purge.cancel_some; how many."""
    with db.begin() as session:
        done = bulk.cancel_batch(session, act, which, status=status)
    for one in done:
        _tell(one)
    return len(done)


def purge_all(act: Act, which: JobFilter, *, status: str, until: float) -> tuple[int, bool]:
    """All of these jobs are cancelled, or as many as until then (monotonic seconds): how many, and whether there are more."""
    total = 0
    while time.monotonic() < until:
        done = purge_some(act, which, status=status)
        total += done
        if done == 0:
            return total, False
    return total, True


def retry(act: Act, job_id: UUID) -> dict[str, Any]:
    """A new job asks the same; it is the caller's, like the old one. Raises NotFound, WrongState, and what a submit raises."""
    with db.begin() as session:
        found = _row(session, job_id)
    made = again(act, job_id, keys.Key(id=found.key_id, pool_id=found.pool_id, kind=found.kind))
    assert made is not None
    return _shown(made)


def again(act: Act, job_id: UUID, caller: keys.Key, *, is_only_once: bool = False) -> UUID | None:
    """Resubmits an ended job for its caller; returns the new job's id.

    is_only_once: None when another job repeats this one already, or is being stored as its repeat right now.
    Raises NotFound, WrongState, and all that a submit raises.
    """
    made = enqueue.new_job_id()
    with db.autocommit() as session:
        before = job_view.find_submission(session, job_id, caller.id)
    order = build.retry_order(caller, before, retry_of=job_id)
    lane_id = enqueue.prepare(order)
    with db.begin() as session:
        if is_only_once and not bulk.may_retry(session, job_id):
            return None
        enqueue.enqueue_job(session, order, job_id=made)
        audit_log.write(session, act, "retry", f"job:{job_id}", before={"status": before.status}, after={"job": wire.public_id(made)})
    notify_queue.job_enqueued(made, lane_id=lane_id)
    return made


def _row(session: db.Transaction, job_id: UUID) -> Any:
    row = session.execute(_FIND, {"id": job_id}).one_or_none()
    if row is None:
        raise NotFound("No such job.")
    return row


def _shown(job_id: UUID) -> dict[str, Any]:
    """The job without what was asked and answered: that is its caller's."""
    with db.begin() as session:
        shown = job_view.render_job(session, job_view.find_job(session, job_id, _row(session, job_id).key_id), with_result=False)
    return {name: value for name, value in shown.items() if name not in ("metadata", "artifacts")}


def _tell(done: Any) -> None:
    if done is not None:
        notify_queue.job_cancelled(done.id, lane_id=done.lane_id, is_ended=done.status == states.Status.CANCELLED)


_FIND = text("""
    SELECT job.status, job.cancel_requested, job.key_id, key.pool_id, key.kind FROM job JOIN key ON key.id = job.key_id WHERE job.id = :id
""")
_RECOUNT = text("""
    UPDATE lane SET queued = found.jobs, wake_at = now()
    FROM (SELECT count(*) AS jobs FROM job WHERE lane_id = :id AND status = 'queued' AND NOT held) AS found
    WHERE lane.id = :id
""")

"""What somebody forgot, dropped or did not live to do, found once a second and put right."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.config.settings import settings
from models.database import db
from models.jobs import api_processes, cancellation, completion, requeue, states, waiters, workers
from models.keys import limits as meter
from models.keys import parking
from models.platform import crash_points, wire
from models.platform.errors import LineUnavailable, Unavailable
from models.queue import admission, lane_maintenance
from workers.channels import notify
from workers.limiter.limiter import Limiter, Limits, Meter, Report
from workers.observe import attempt_log
from workers.pacer import wait_log
from workers.pacer.wakeups import Wakeups

log = logging.getLogger(__name__)

EVERY_S = 1.0
FIGURES_EVERY_S = 2.0
FORGET_EVERY_S = 60.0
MAX_ABANDONED = 200
# A line of 200,000 jobs that is parked is read as a whole for those whose callers wait on a connection: 0.2 s.
PARKED_EVERY_S = 5.0
MAX_PARKED = 200
TOO_MANY, UNAVAILABLE = 429, 503
# A pause of our own longer than this may have been a pause of the whole machine: heartbeats need time to catch up.
MAX_PASS_GAP_S = 3.0


@dataclass
class ReapGrace:
    """No lease is called lost until workers have had time to renew it after Postgres, or we ourselves, were away."""

    postmaster: str | None = None
    until: float = 0.0
    last: float = field(default=float("-inf"))

    def is_on(self, *, postmaster: str, now: float) -> bool:
        """Whether leases may not be reaped now. postmaster: Postgres's start time; now: monotonic seconds."""
        if postmaster != self.postmaster or now - self.last > MAX_PASS_GAP_S:
            self.until = now + settings().lease_s + 2
        self.postmaster, self.last = postmaster, now
        return now < self.until


class Reaper:
    """All of it, step by step; `step` may run in any number of processes at once."""

    def __init__(self, *, limiter: Limiter, wakeups: Wakeups) -> None:
        self._limiter = limiter
        self._wakeups = wakeups
        self._amnesty = ReapGrace()
        self._care = lane_maintenance.LaneMaintenance()
        self._due: dict[str, float] = {}
        self._enforced: dict[Meter, Limits] = {}

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                self.step(now=time.monotonic())
            except (Unavailable, LineUnavailable) as error:
                log.warning("sweep waits", extra={"why": str(error.__cause__ or error)})
            except Exception:
                # A border: the next sweep must come whatever this one found.
                log.exception("a sweep failed")
            stop.wait(EVERY_S)

    def step(self, *, now: float) -> None:
        """One pass. now: monotonic seconds."""
        self._return_unclaimed()
        self._reap(now=now)
        if settings().cancel_abandoned:
            self._cancel_abandoned()
        if any(row.held for row in self._expire()):
            self._expire()  # held turns first; these are the others
        if self._is_due("parked", PARKED_EVERY_S, now):
            self._fail_parked()
        with db.begin() as session:
            forgotten = admission.wake_lost(session)
        for lane_id in forgotten:
            self._wakeups.wake(lane_id)
        if self._is_due("figures", FIGURES_EVERY_S, now):
            with db.begin() as session:
                lanes = self._care.choose(session)
            for lane in lanes:
                with db.begin() as session:
                    found = self._care.refresh(session, lane, now=now)
                for credential_id, limits in found.items():
                    self._enforce(Meter(credential_id, lane.model), limits, lane_id=lane.id)
        if self._is_due("workers", FORGET_EVERY_S, now):
            with db.begin() as session:
                workers.remove_silent(session, unseen_s=settings().lease_s * 10)
                api_processes.remove_silent(session, unseen_s=settings().lease_s * 10)

    def enforce(self, lane_ids: Sequence[int], *, forget: bool) -> None:
        """The operator's limits of these lanes hold from now on. forget: the limiter's state is made again from Postgres.

        Raises LineUnavailable when Redis is silent, Unavailable when Postgres is.
        """
        with db.begin() as session:
            found = [(lane.id, bound, limits) for lane in meter.lanes(session, lane_ids) for bound, limits in _limits_of(session, lane)]
        for lane_id, bound, limits in found:
            if forget:
                self._limiter.forget(bound)
            self._enforce(bound, limits, lane_id=lane_id)
        for lane_id in lane_ids:
            self._wakeups.wake(lane_id)

    def _enforce(self, bound: Meter, limits: Limits, *, lane_id: int) -> None:
        """What the operator has changed holds from now on; who waits may go sooner."""
        before = self._enforced.get(bound)
        if before == limits:
            return
        try:
            if before is not None and limits.rpd and not before.rpd:
                self._limiter.forget(bound)  # the day's history was not counted: the rebuild does
            else:
                self._limiter.configure(bound, limits)
        except LineUnavailable:
            return  # tried again at the next look; an emptied limiter is rebuilt with them anyway
        self._enforced[bound] = limits
        self._wakeups.wake(lane_id)

    def _return_unclaimed(self) -> None:
        with db.begin() as session:
            returned = requeue.requeue_unclaimed(session, older_than_s=settings().unclaimed_after_s)
        if returned:
            log.warning("admissions not claimed in time went back to the line", extra={"jobs": len(returned)})
        self._free(returned, Report(sent=False))

    def _reap(self, *, now: float) -> None:
        with db.begin() as session:
            if self._amnesty.is_on(postmaster=lane_maintenance.postmaster_started(session), now=now):
                return
            lost = requeue.reap(session)
        if lost:
            crash_points.at("sweep.mid_reap")
        for row in lost:
            attempt_log.lost(row)
        self._free(lost, Report())
        self._tell(lost, "ended")

    def _expire(self) -> Sequence[Any]:
        with db.begin() as session:
            expired = cancellation.expire(session)
            since = admission.queued_since(session, [row.id for row in expired if row.calls]) if expired else {}
        self._tell(expired, "ended")
        for row in expired:
            wait_log.log_left_queue(row, since.get(row.id, row.created_at), why=states.Status.EXPIRED)
        return expired

    def _cancel_abandoned(self) -> None:
        """Jobs that nobody waits for any more are cancelled, as their callers would have done."""
        for _ in range(MAX_ABANDONED):
            # Each in a transaction of its own, as job.cancel takes several locks; in it nobody can come back to the job.
            with db.begin() as session:
                done = waiters.cancel_abandoned(session, longer_than_s=settings().abandoned_after_s)
            if done is None:
                return
            log.info(
                "cancelled: its caller went away",
                extra={"job": wire.public_id(done.id), "lane": done.lane_id, "key": done.key_id, "status": done.status},
            )
            is_ended = done.status == states.Status.CANCELLED
            notify.job(done.id, "cancelled" if is_ended else "cancelling")
            if is_ended:
                notify.line(done.lane_id, cancelled=done.id)

    def _fail_parked(self) -> None:
        """Fails jobs whose callers have waited too long on a connection for a pool that the upstream refuses."""
        with db.autocommit() as session:
            rows = parking.waited_out(session, longer_than_s=settings().parked_most_s, limit=MAX_PARKED)
        for row in rows:
            error, status = _parked(row.words or {})
            with db.begin() as session:
                is_refused = completion.fail_queued(session, row.id, error=error, http_status=status)
                since = admission.queued_since(session, [row.id]) if is_refused and row.calls else {}
            if is_refused:
                notify.job(row.id, "ended")
                wait_log.log_left_queue(row, since.get(row.id, row.created_at), why=str(error["code"]))

    def _free(self, rows: Iterable[Any], report: Report) -> None:
        for row in rows:
            try:
                self._limiter.release(Meter(row.credential_id, row.model), str(row.dispatch_id), report)
            except LineUnavailable:
                log.info("slot not freed: Redis is away, it frees itself")
            self._wakeups.wake(row.lane_id)

    def _tell(self, rows: Iterable[Any], event: str) -> None:
        for row in rows:
            notify.job(row.id, event)

    def _is_due(self, what: str, every_s: float, now: float) -> bool:
        if now < self._due.get(what, float("-inf")):
            return False
        self._due[what] = now + every_s
        return True


def _parked(words: Mapping[str, Any]) -> tuple[dict[str, object], int]:
    """The error and status of a job that waited too long for a parked pool. words: status and error of the upstream's last refusal.

    An account without money is a 429 as at the upstream. A refused key is a 503: it is the operator's, not the caller's.
    """
    theirs: dict[str, Any] = words.get("error") or {}
    message = (
        f"The upstream refuses every key of this pool, and has for {settings().parked_most_s:g} s or longer. Its last words: "
        f"{theirs.get('message') or 'none'} Ask the operator to mend it and send the request again; a job of POST /v1/jobs goes on waiting."
    )
    unnamed = {"type": "server_error", "param": None, "code": "parked"}
    status = words.get("status")
    return {**unnamed, **theirs, "message": message}, TOO_MANY if status == TOO_MANY else UNAVAILABLE


def _limits_of(session: db.Transaction, lane: Any) -> Iterator[tuple[Meter, Limits]]:
    for number in meter.credentials_of(session, [lane.pool_id])[lane.pool_id]:
        yield Meter(number, lane.model), meter.read(session, number, lane.model).limits

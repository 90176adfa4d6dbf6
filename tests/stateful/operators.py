"""Rules for operators: requests under /ops."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal
from uuid import UUID

import hypothesis.strategies as st
from hypothesis.stateful import rule

from models.platform import wire
from tests.stateful.callers import FLOWS, WHICH, WHO, Callers
from tests.stateful.records import ENDED, Lane, ModelJob
from tests.stateful.state_machine import job_id
from tests.support.queue_tools import query

Kind = Literal["lanes", "pools", "keys", "flows"]
KIND = st.sampled_from(["lanes", "pools", "keys", "flows"])
FLOW = st.sampled_from([*FLOWS, "x", "key"])


class Operators(Callers):
    """Operators pause, drain and resume, set caps, weights and priorities, cancel and retry in bulk, and read lists."""

    @rule(which=WHICH, kind=KIND, verb=st.sampled_from(["pause", "drain"]))
    def pause_or_drain(self, which: int, kind: Kind, verb: str) -> None:
        for job in self.pick(self.model.jobs, which):
            self.operate(f"{kind}/{self._name(job, kind)}/{verb}")
            if kind in ("lanes", "pools"):
                (self.model.paused if verb == "pause" else self.model.draining).add(_target(job, kind))
            else:
                cap = self.model.cap(scope_of(job, kind))
                cap.is_paused, cap.is_draining = cap.is_paused or verb == "pause", cap.is_draining or verb == "drain"

    @rule()
    def resume_all(self) -> None:
        for job in self.model.jobs:
            for kind in ("lanes", "pools", "keys", "flows"):
                is_lane_paused = _target(job, kind) in self.model.paused | self.model.draining
                if is_lane_paused or scope_of(job, kind) in self.model.caps:
                    self.operate(f"{kind}/{self._name(job, kind)}/resume")
                    self.model.resume(_target(job, kind), scope_of(job, kind))

    @rule(
        which=WHICH, kind=st.sampled_from(["keys", "flows"]), name=st.sampled_from(["max_in_flight", "max_queued"]),
        most=st.sampled_from([None, 1, 3]),
    )  # fmt: skip
    def cap(self, which: int, kind: Kind, name: str, most: int | None) -> None:
        for job in self.pick(self.model.jobs, which):
            self.operate(f"{kind}/{self._name(job, kind)}/caps", **{name: most})
            setattr(self.model.cap(scope_of(job, kind)), name, most)
            self.model.drop_empty_caps()

    @rule(which=WHICH)
    def boost(self, which: int) -> None:
        for job in self.pick(self.model.jobs, which):
            self.operate(f"jobs/{job.id}/boost", expected_status=200 if job.status == "queued" else 409)
            if job.status == "queued":
                self.model.boost(job)

    @rule(which=WHICH, priority=st.sampled_from(["low", "normal", "high"]))
    def prioritise(self, which: int, priority: str) -> None:
        for job in self.pick(self.model.jobs, which):
            self.operate(f"jobs/{job.id}/priority", expected_status=200 if job.status == "queued" else 409, priority=priority)
            if job.status == "queued":
                job.priority = priority
                self.model.retag(job.of)

    @rule(which=WHICH, weight=st.sampled_from([0.5, 1, 2, 8]))
    def weigh(self, which: int, weight: float) -> None:
        for job in self.pick(self.model.jobs, which):
            self.operate(f"flows/{self._name(job, 'flows')}/weight", weight=weight)
            self.model.weights[job.of] = weight
            self.model.retag(job.of)

    @rule(which=WHICH)
    def cancel_for_a_caller(self, which: int) -> None:
        for job in self.pick(self.model.jobs, which):
            was_asked = job.cancel_requested
            self.operate(f"jobs/{job.id}/cancel", expected_status=200 if self.model.cancel(job) or was_asked else 409)

    @rule(flow=FLOW, status=st.sampled_from(["queued", "running"]), who=st.none() | WHO)
    def purge(self, flow: str, status: str, who: int | None) -> None:
        statuses = ("queued", "admitted") if status == "queued" else ("queued", "admitted", "running")
        found = [job for job in self._of(flow, who) if job.status in statuses and not job.cancel_requested]
        made = self.operate("jobs/purge", status=status, **self._filter(flow, who))

        assert (len(found), False) == (made["cancelled"], made["has_more"])
        assert all([self.model.cancel(job) for job in found])  # noqa: C419  # each of them

    @rule(flow=FLOW, who=st.none() | WHO)
    def retry_ended_jobs(self, flow: str, who: int | None) -> None:
        """Retries the oldest jobs first, until the queue refuses one."""
        asked_again = {job.retry_of for job in self.model.jobs}
        dead = [job for job in self._of(flow, who) if job.status in ("failed", "expired") and not job.is_erased and job not in asked_again]
        times = self.key_times()
        made = self.operate("jobs/retry", expected_status=202, **self._filter(flow, who))
        rows = query("SELECT id, retry_of FROM job WHERE retry_of = ANY(:ids)", ids=[job_id(job) for job in dead])
        names: dict[UUID, str] = {row.retry_of: wire.public_id(row.id) for row in rows}
        done = 0
        for job in dead:
            again = self.again(job)
            if self.model.refusal(again) is not None:
                break
            self.stand(again, names[job_id(job)], at=times[job.lane, job.who.key_id])
            done += 1

        is_whole = done == len(dead)
        assert (done, 0 if is_whole else len(dead), not is_whole) == (made["retried"], made["refused"], made["has_more"])
        assert done == len(names)

    @rule()
    def read_operator_lists(self) -> None:
        shown = {row["id"]: row for row in self.ops.get("/ops/lanes?limit=100").json["data"]}
        lanes = self.lanes()

        assert set(lanes) == set(shown)
        for number, lane in lanes.items():
            self._check_lane(lane, shown[number])
            self._check_flows(lane, self.ops.get(f"/ops/flows?lane={number}&limit=100").json["data"])
        for status in ("queued", "admitted", "running", *sorted(ENDED)):
            found = [row["id"] for row in self.ops.get(f"/ops/jobs?status={status}&limit=100").json["data"]]
            assert sorted((row.id for row in self.model.jobs if row.status == status), reverse=True) == found

    def _check_lane(self, lane: Lane, shown: dict[str, Any]) -> None:
        going = Counter(job.status for job in self.model.in_flight_in(lane))
        waiting = len(self.model.queued_in(lane))
        assert (waiting, going["admitted"], going["running"]) == (shown["waiting"], shown["admitted"], shown["running"])
        assert self.model.is_lane_paused(lane) == (shown["paused"] is not None)
        assert bool({lane, lane[0]} & self.model.draining) == shown["is_draining"]

    def _check_flows(self, lane: Lane, shown: list[dict[str, Any]]) -> None:
        waiting = Counter((job.who.key_id, job.flow) for job in self.model.queued_in(lane))
        running = Counter((job.who.key_id, job.flow) for job in self.model.in_flight_in(lane))
        expected = {flow: (waiting[flow], running[flow]) for flow in waiting | running}
        assert expected == {(job["key"]["id"], job["user"]): (job["waiting"], job["running"]) for job in shown}

    def _of(self, flow: str, who: int | None) -> list[ModelJob]:
        found = [job for job in self.model.jobs if job.flow == flow and who in (None, self.tenants.index(job.who))]
        return sorted(found, key=lambda job: job.id)

    def _filter(self, flow: str, who: int | None) -> dict[str, Any]:
        return {"user": flow, **({"key": self.tenants[who].key_id} if who is not None else {})}

    def _name(self, job: ModelJob, kind: Kind) -> str:
        number = next((number for number, lane in self.lanes().items() if lane == job.lane), 0)
        return {
            "lanes": str(number),
            "pools": str(job.lane[0]),
            "keys": str(job.who.key_id),
            "flows": f"{number}.{job.who.key_id}:{job.flow}",
        }[kind]


def _target(job: ModelJob, kind: str) -> Any:
    return {"lanes": job.lane, "pools": job.lane[0]}.get(kind)


def scope_of(job: ModelJob, kind: str) -> tuple[Any, ...]:
    return ("flow", job.of) if kind == "flows" else ("key", job.who.key_id) if kind == "keys" else ()

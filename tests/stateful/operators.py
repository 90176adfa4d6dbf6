"""What operators do, under /ops."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal
from uuid import UUID

import hypothesis.strategies as st
from hypothesis.stateful import rule

from models.platform import wire
from tests.stateful.callers import FLOWS, WHICH, WHO, Callers
from tests.stateful.records import ENDED, Lane, Ticket
from tests.stateful.state_machine import job_id
from tests.support.queue_tools import query

Kind = Literal["lanes", "pools", "keys", "flows"]
KIND = st.sampled_from(["lanes", "pools", "keys", "flows"])
FLOW = st.sampled_from([*FLOWS, "x", "key"])


class Operators(Callers):
    """Pause, drain, resume; caps, weights, places in line; many jobs at once; and look."""

    @rule(which=WHICH, kind=KIND, verb=st.sampled_from(["pause", "drain"]))
    def halt(self, which: int, kind: Kind, verb: str) -> None:
        for one in self.pick(self.picture.tickets, which):
            self.pull(f"{kind}/{self._name(one, kind)}/{verb}")
            if kind in ("lanes", "pools"):
                (self.picture.paused if verb == "pause" else self.picture.draining).add(_target(one, kind))
            else:
                cap = self.picture.cap(scope_of(one, kind))
                cap.is_paused, cap.is_draining = cap.is_paused or verb == "pause", cap.is_draining or verb == "drain"

    @rule()
    def resume_all(self) -> None:
        for one in self.picture.tickets:
            for kind in ("lanes", "pools", "keys", "flows"):
                is_halted = _target(one, kind) in self.picture.paused | self.picture.draining
                if is_halted or scope_of(one, kind) in self.picture.caps:
                    self.pull(f"{kind}/{self._name(one, kind)}/resume")
                    self.picture.resume(_target(one, kind), scope_of(one, kind))

    @rule(
        which=WHICH, kind=st.sampled_from(["keys", "flows"]), name=st.sampled_from(["max_in_flight", "max_queued"]),
        most=st.sampled_from([None, 1, 3]),
    )  # fmt: skip
    def cap(self, which: int, kind: Kind, name: str, most: int | None) -> None:
        for one in self.pick(self.picture.tickets, which):
            self.pull(f"{kind}/{self._name(one, kind)}/caps", **{name: most})
            setattr(self.picture.cap(scope_of(one, kind)), name, most)
            self.picture.drop_empty_caps()

    @rule(which=WHICH)
    def boost(self, which: int) -> None:
        for one in self.pick(self.picture.tickets, which):
            self.pull(f"jobs/{one.id}/boost", want=200 if one.status == "queued" else 409)
            if one.status == "queued":
                self.picture.boost(one)

    @rule(which=WHICH, priority=st.sampled_from(["low", "normal", "high"]))
    def prioritise(self, which: int, priority: str) -> None:
        for one in self.pick(self.picture.tickets, which):
            self.pull(f"jobs/{one.id}/priority", want=200 if one.status == "queued" else 409, priority=priority)
            if one.status == "queued":
                one.priority = priority
                self.picture.retag(one.of)

    @rule(which=WHICH, weight=st.sampled_from([0.5, 1, 2, 8]))
    def weigh(self, which: int, weight: float) -> None:
        for one in self.pick(self.picture.tickets, which):
            self.pull(f"flows/{self._name(one, 'flows')}/weight", weight=weight)
            self.picture.weights[one.of] = weight
            self.picture.retag(one.of)

    @rule(which=WHICH)
    def cancel_for_a_caller(self, which: int) -> None:
        for one in self.pick(self.picture.tickets, which):
            was_asked = one.cancel_requested
            self.pull(f"jobs/{one.id}/cancel", want=200 if self.picture.cancel(one) or was_asked else 409)

    @rule(flow=FLOW, status=st.sampled_from(["queued", "running"]), who=st.none() | WHO)
    def purge(self, flow: str, status: str, who: int | None) -> None:
        statuses = ("queued", "admitted") if status == "queued" else ("queued", "admitted", "running")
        found = [one for one in self._of(flow, who) if one.status in statuses and not one.cancel_requested]
        made = self.pull("jobs/purge", status=status, **self._filter(flow, who))

        assert (len(found), False) == (made["cancelled"], made["has_more"])
        assert all([self.picture.cancel(one) for one in found])  # noqa: C419  # each of them

    @rule(flow=FLOW, who=st.none() | WHO)
    def retry_what_failed(self, flow: str, who: int | None) -> None:
        """Oldest first, until the line takes no more."""
        asked_again = {one.retry_of for one in self.picture.tickets}
        dead = [one for one in self._of(flow, who) if one.status in ("failed", "expired") and not one.is_erased and one not in asked_again]
        times = self.own_times()
        made = self.pull("jobs/retry", want=202, **self._filter(flow, who))
        rows = query("SELECT id, retry_of FROM job WHERE retry_of = ANY(:ids)", ids=[job_id(one) for one in dead])
        names: dict[UUID, str] = {row.retry_of: wire.public_id(row.id) for row in rows}
        done = 0
        for one in dead:
            again = self.again(one)
            if self.picture.refusal(again) is not None:
                break
            self.stand(again, names[job_id(one)], at=times[one.lane, one.who.key_id])
            done += 1

        is_whole = done == len(dead)
        assert (done, 0 if is_whole else len(dead), not is_whole) == (made["retried"], made["refused"], made["has_more"])
        assert done == len(names)

    @rule()
    def operators_look(self) -> None:
        shown = {one["id"]: one for one in self.ops.get("/ops/lanes?limit=100").json["data"]}
        lanes = self.lanes()

        assert set(lanes) == set(shown)
        for number, lane in lanes.items():
            self._expect_lane(lane, shown[number])
            self._expect_flows(lane, self.ops.get(f"/ops/flows?lane={number}&limit=100").json["data"])
        for status in ("queued", "admitted", "running", *sorted(ENDED)):
            found = [one["id"] for one in self.ops.get(f"/ops/jobs?status={status}&limit=100").json["data"]]
            assert sorted((one.id for one in self.picture.tickets if one.status == status), reverse=True) == found

    def _expect_lane(self, lane: Lane, shown: dict[str, Any]) -> None:
        going = Counter(one.status for one in self.picture.on_the_way(lane))
        waiting = len(self.picture.in_line(lane))
        assert (waiting, going["admitted"], going["running"]) == (shown["waiting"], shown["admitted"], shown["running"])
        assert self.picture.is_halted(lane) == (shown["paused"] is not None)
        assert bool({lane, lane[0]} & self.picture.draining) == shown["is_draining"]

    def _expect_flows(self, lane: Lane, shown: list[dict[str, Any]]) -> None:
        waiting = Counter((one.who.key_id, one.flow) for one in self.picture.in_line(lane))
        running = Counter((one.who.key_id, one.flow) for one in self.picture.on_the_way(lane))
        expected = {flow: (waiting[flow], running[flow]) for flow in waiting | running}
        assert expected == {(one["key"]["id"], one["user"]): (one["waiting"], one["running"]) for one in shown}

    def _of(self, flow: str, who: int | None) -> list[Ticket]:
        found = [one for one in self.picture.tickets if one.flow == flow and who in (None, self.tenants.index(one.who))]
        return sorted(found, key=lambda one: one.id)

    def _filter(self, flow: str, who: int | None) -> dict[str, Any]:
        return {"user": flow, **({"key": self.tenants[who].key_id} if who is not None else {})}

    def _name(self, one: Ticket, kind: Kind) -> str:
        number = next((number for number, lane in self.lanes().items() if lane == one.lane), 0)
        return {
            "lanes": str(number),
            "pools": str(one.lane[0]),
            "keys": str(one.who.key_id),
            "flows": f"{number}.{one.who.key_id}:{one.flow}",
        }[kind]


def _target(one: Ticket, kind: str) -> Any:
    return {"lanes": one.lane, "pools": one.lane[0]}.get(kind)


def scope_of(one: Ticket, kind: str) -> tuple[Any, ...]:
    return ("flow", one.of) if kind == "flows" else ("key", one.who.key_id) if kind == "keys" else ()

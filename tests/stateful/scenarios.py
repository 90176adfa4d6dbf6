"""Scenarios that random steps reach too rarely: each is a few steps of callers, workers and time."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import rule

from models.content.endpoints import CHAT
from tests.stateful.callers import CONVERSATIONS, WANTED, WHO
from tests.stateful.operators import Kind, scope_of
from tests.stateful.records import ModelJob
from tests.stateful.refusing import MAX_THROTTLES
from tests.stateful.service import Service

SLOTS = st.integers(1, 4)
# Slots for all queued jobs.
MANY_SLOTS = 50


class Scenarios(Service):
    """Rules that run a scenario."""

    @rule(
        who=WHO, wanted=WANTED, kind=st.sampled_from(["throttled", "failed", "not_sent", "lost", "unreadable", "lease", "aborted", "good"])
    )
    def cancel_running_calls(self, who: int, wanted: dict[str, Any], kind: str) -> None:
        """Cancels running calls, and ends them with this kind of answer."""
        self._start_one_job(who, wanted)
        for job in self._running_jobs()[-2:]:
            self.cancel_job(job)
            self._end_job_call(job, kind, 1)

    @rule(slots=SLOTS)
    def claim_late(self, slots: int) -> None:
        """Claims with old dispatches, after the jobs were requeued and admitted again."""
        self.pace(slots)
        self.requeue_unclaimed()
        self.pace(slots)
        for job, dispatch in self.messages[-3 * slots :]:
            if job.status == "admitted":
                self.answer(job, dispatch)

    @rule(slots=SLOTS, kind=st.sampled_from(["failed", "lost", "unreadable", "lease"]), times=st.integers(1, 4))
    def fail_repeatedly(self, slots: int, kind: str, times: int) -> None:
        """Fails all calls repeatedly."""
        for _ in range(times):
            self.end_backoffs()
            self.start_jobs(slots)
            for job in self._running_jobs():
                self._end_job_call(job, kind, 0)

    @rule(who=WHO, name=CONVERSATIONS, wanted=WANTED)
    def cancel_turn(self, who: int, name: str, wanted: dict[str, Any]) -> None:
        """Cancels a turn while the next one is held behind it."""
        for _ in range(2):
            self.submit(who, {**wanted, "endpoint": CHAT, "size": 1, "conversation": name}, token=False)
        conversation = self.model.conversations.get((self.tenants[who].name, name))
        for job in [each for each in conversation.turns if each.waits][:1] if conversation else []:
            self.cancel_job(job)

    @rule(who=WHO, name=CONVERSATIONS, wanted=WANTED, times=st.integers(1, 3))
    def continue_conversation(self, who: int, name: str, wanted: dict[str, Any], times: int) -> None:
        """Submits each turn after the answer to the one before it, as people do."""
        for _ in range(times):
            self.submit(who, {**wanted, "endpoint": CHAT, "size": 1, "conversation": name}, token=False)
            self.start_jobs(4)
            for job in self._running_jobs():
                self._end_job_call(job, "good", 1)

    @rule(who=WHO, wanted=WANTED, kind=st.sampled_from(["lanes", "pools"]))
    def pause_lane(self, who: int, wanted: dict[str, Any], kind: Kind) -> None:
        """Pauses a lane with queued jobs while workers are idle."""
        self._clear_blocks()
        self.submit(who, {**wanted, "size": 1}, token=False)
        self.pause_or_drain(0, kind, "pause")
        self.pace(MANY_SLOTS)

    @rule(who=WHO, wanted=WANTED, kind=st.sampled_from(["keys", "flows"]), more=st.integers(0, 2))
    def set_cap(self, who: int, wanted: dict[str, Any], kind: Kind, more: int) -> None:
        """Sets max_in_flight to this many more than are in flight, with more jobs queued."""
        self._clear_blocks()
        self.submit_several(who, {**wanted, "size": 1})
        for job in self.model.jobs[-1:]:
            under_way = self.model.live_within(scope_of(job, kind))
            self.cap(0, kind, "max_in_flight", max(1, under_way + more))
        self.pace(MANY_SLOTS)
        self.cap(0, kind, "max_in_flight", None)

    @rule(who=WHO, wanted=WANTED, times=st.integers(1, MAX_THROTTLES))
    def throttle_one_job(self, who: int, wanted: dict[str, Any], times: int) -> None:
        """Throttles one job repeatedly while others may be answered."""
        self._start_one_job(who, wanted)
        for job in self._running_jobs()[-1:]:
            for _ in range(times):
                self._call_again(job, "throttled")

    @rule(
        who=st.integers(0, 1), wanted=WANTED, kinds=st.lists(st.sampled_from(["unpaid", "no_access", "no_model"]), min_size=1, max_size=2)
    )
    def refuse_with_credentials(self, who: int, wanted: dict[str, Any], kinds: list[str]) -> None:
        """One or both of two credentials refuse the job; then the first is tried again."""
        self._start_one_job(who, wanted)
        for job in self._running_jobs()[-1:]:
            for kind in [*kinds, "good"]:
                self._call_again(job, kind)
        self.make_probes_due()
        self._start_one_job(who, wanted)

    @rule(who=WHO, wanted=WANTED, times=st.integers(1, 2))
    def answer_unreadable(self, who: int, wanted: dict[str, Any], times: int) -> None:
        self._start_one_job(who, wanted)
        for job in self._running_jobs()[-1:]:
            for _ in range(times):
                self._call_again(job, "unreadable")

    def _call_again(self, job: ModelJob, kind: str) -> None:
        """Starts the job unless it is running, and ends its call with this kind of answer."""
        self._clear_blocks()
        self.pace(MANY_SLOTS)
        for each, dispatch in self.messages[-MANY_SLOTS:]:
            if each is job and each.status == "admitted":
                self.answer(job, dispatch)
        if job.status == "running":
            self._end_job_call(job, kind, 1)

    def _start_one_job(self, who: int, wanted: dict[str, Any]) -> None:
        self._clear_blocks()
        self.submit(who, {**wanted, "size": 1}, token=False)
        self.pace(MANY_SLOTS)
        for job, dispatch in self.messages[-2:]:
            self.answer(job, dispatch)

    def _clear_blocks(self) -> None:
        """Resumes everything and ends all delays."""
        self.resume_all()
        self.end_backoffs()

    def _running_jobs(self) -> list[ModelJob]:
        return [job for job in self.model.jobs if job.status == "running"]

    def _end_job_call(self, job: ModelJob, kind: str, tokens: int) -> None:
        """Ends the job's running call. lease: its worker is lost."""
        if kind == "lease":
            self.reap_job(job)
        else:
            self.end(next(call for call in self.calls if call[1] == job.dispatch), kind, tokens)

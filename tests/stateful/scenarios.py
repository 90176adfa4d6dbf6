"""Short tales of what chance alone tells too rarely: each is a few steps of callers, workers and time, about what is just under way."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import rule

from models.content.endpoints import CHAT
from tests.stateful.callers import TALKS, WANTED, WHO
from tests.stateful.operators import Kind, scope_of
from tests.stateful.records import Ticket
from tests.stateful.refusing import MAX_THROTTLES
from tests.stateful.service import Service

SLOTS = st.integers(1, 4)
# Slots for everybody who waits.
MANY = 50


class Tales(Service):
    """Service, and what happens to those who are served."""

    @rule(
        who=WHO, wanted=WANTED, kind=st.sampled_from(["throttled", "failed", "not_sent", "lost", "unreadable", "lease", "aborted", "good"])
    )
    def callers_change_their_minds(self, who: int, wanted: dict[str, Any], kind: str) -> None:
        """Calls are under way when they are cancelled; then they come to this."""
        self._somebody_is_served(who, wanted)
        for one in self._running()[-2:]:
            self.cancel_it(one)
            self._comes_to(one, kind, 1)

    @rule(slots=SLOTS)
    def doorbells_come_late(self, slots: int) -> None:
        """Not before the job has gone back to the line and been admitted again."""
        self.pace(slots)
        self.admissions_are_not_claimed()
        self.pace(slots)
        for one, dispatch in self.bells[-3 * slots :]:
            if one.status == "admitted":
                self.answer(one, dispatch)

    @rule(slots=SLOTS, kind=st.sampled_from(["failed", "lost", "unreadable", "lease"]), times=st.integers(1, 4))
    def nothing_goes_well(self, slots: int, kind: str, times: int) -> None:
        """All calls come to nothing, again and again."""
        for _ in range(times):
            self.backoffs_are_over()
            self.everybody_starts(slots)
            for one in self._running():
                self._comes_to(one, kind, 0)

    @rule(who=WHO, name=TALKS, wanted=WANTED)
    def a_turn_is_cancelled(self, who: int, name: str, wanted: dict[str, Any]) -> None:
        """While the next one waits for it."""
        for _ in range(2):
            self.submit(who, {**wanted, "endpoint": CHAT, "size": 1, "conversation": name}, token=False)
        talk = self.picture.talks.get((self.tenants[who].name, name))
        for one in [each for each in talk.turns if each.waits][:1] if talk else []:
            self.cancel_it(one)

    @rule(who=WHO, name=TALKS, wanted=WANTED, times=st.integers(1, 3))
    def a_conversation_goes_on(self, who: int, name: str, wanted: dict[str, Any], times: int) -> None:
        """Each turn is asked when the one before it is answered, as people do."""
        for _ in range(times):
            self.submit(who, {**wanted, "endpoint": CHAT, "size": 1, "conversation": name}, token=False)
            self.everybody_starts(4)
            for one in self._running():
                self._comes_to(one, "good", 1)

    @rule(who=WHO, wanted=WANTED, kind=st.sampled_from(["lanes", "pools"]))
    def a_lane_is_paused(self, who: int, wanted: dict[str, Any], kind: Kind) -> None:
        """While somebody waits in it, and workers have nothing to do."""
        self._way_is_free()
        self.submit(who, {**wanted, "size": 1}, token=False)
        self.halt(0, kind, "pause")
        self.pace(MANY)

    @rule(who=WHO, wanted=WANTED, kind=st.sampled_from(["keys", "flows"]), more=st.integers(0, 2))
    def a_cap_is_set(self, who: int, wanted: dict[str, Any], kind: Kind, more: int) -> None:
        """So many more than are under way may go, and more than that wait."""
        self._way_is_free()
        self.submit_several(who, {**wanted, "size": 1})
        for one in self.picture.tickets[-1:]:
            under_way = self.picture.live_within(scope_of(one, kind))
            self.cap(0, kind, "max_in_flight", max(1, under_way + more))
        self.pace(MANY)
        self.cap(0, kind, "max_in_flight", None)

    @rule(who=WHO, wanted=WANTED, times=st.integers(1, MAX_THROTTLES))
    def one_job_is_always_throttled(self, who: int, wanted: dict[str, Any], times: int) -> None:
        """While others may be answered."""
        self._somebody_is_served(who, wanted)
        for one in self._running()[-1:]:
            for _ in range(times):
                self._come_again(one, "throttled")

    @rule(
        who=st.integers(0, 1), wanted=WANTED, kinds=st.lists(st.sampled_from(["unpaid", "no_access", "no_model"]), min_size=1, max_size=2)
    )
    def credentials_cannot_serve_a_job(self, who: int, wanted: dict[str, Any], kinds: list[str]) -> None:
        """One of two refuses it, or both; then the first is tried again."""
        self._somebody_is_served(who, wanted)
        for one in self._running()[-1:]:
            for kind in [*kinds, "good"]:
                self._come_again(one, kind)
        self.probes_are_due()
        self._somebody_is_served(who, wanted)

    @rule(who=WHO, wanted=WANTED, times=st.integers(1, 2))
    def an_answer_cannot_be_read(self, who: int, wanted: dict[str, Any], times: int) -> None:
        self._somebody_is_served(who, wanted)
        for one in self._running()[-1:]:
            for _ in range(times):
                self._come_again(one, "unreadable")

    def _come_again(self, one: Ticket, kind: str) -> None:
        """The job is called, if it is not yet, and its call comes to this."""
        self._way_is_free()
        self.pace(MANY)
        for each, dispatch in self.bells[-MANY:]:
            if each is one and each.status == "admitted":
                self.answer(one, dispatch)
        if one.status == "running":
            self._comes_to(one, kind, 1)

    def _somebody_is_served(self, who: int, wanted: dict[str, Any]) -> None:
        self._way_is_free()
        self.submit(who, {**wanted, "size": 1}, token=False)
        self.pace(MANY)
        for one, dispatch in self.bells[-2:]:
            self.answer(one, dispatch)

    def _way_is_free(self) -> None:
        """Nothing is paused, and nothing has to wait for better times."""
        self.resume_all()
        self.backoffs_are_over()

    def _running(self) -> list[Ticket]:
        return [one for one in self.picture.tickets if one.status == "running"]

    def _comes_to(self, one: Ticket, kind: str, tokens: int) -> None:
        """This job's call under way. lease: its worker is not heard of any more."""
        if kind == "lease":
            self.lose_it(one)
        else:
            self.end(next(call for call in self.calls if call[1] == one.dispatch), kind, tokens)

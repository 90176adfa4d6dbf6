"""What pacer, workers, sweep and time do, one step at a time, late and twice too."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from typing import Any
from uuid import UUID

import hypothesis.strategies as st
from hypothesis.stateful import rule

from models.billing import pricing
from models.config.settings import settings
from models.content.endpoints import CHAT, EMBEDDINGS, IMAGES
from models.database import db
from models.jobs import cancellation, claims, requeue
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from tests.stateful import refusing
from tests.stateful.callers import WANTED, WHICH, WHO
from tests.stateful.operators import Operators
from tests.stateful.records import Call, Lane, Ticket, Verdict
from tests.stateful.state_machine import job_id
from tests.support.queue_tools import query
from tests.workers.pacer.test_step import make_lanes_due, report_slots
from workers.answers import retry_policy
from workers.limiter.requests import CredentialModel, Report
from workers.results import finish
from workers.results.attempt_record import AttemptRecord
from workers.runner import feedback, prompt

# Longer than any test takes: what is put off is so until the test says otherwise.
LATER_S = 3_600
KIND = st.sampled_from(
    ["good", "good", "refused", "throttled", "failed", "lost", "aborted", "not_sent", "unreadable", "unpaid", "no_access", "no_model"]
)
# Pictures whose tokens the upstream does not tell have no price.
TOKENS = st.integers(1, 400)
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()
NO = {"message": "no", "type": "t", "param": None, "code": "upstream_said_no"}


class Service(Operators):
    """The pacer and the limiter are the real ones; of the workers, how they claim and how they write their endings."""

    @rule(slots=st.integers(1, 4))
    def pace(self, slots: int) -> None:
        """Workers have so many free slots, and the pacer steps until nothing more goes."""
        report_slots(slots + len([one for one in self.picture.tickets if one.status in ("admitted", "running")]))
        self.hear_turns()
        free = {id(one) for one in self.picture.tickets if self.picture.may_go(one)}
        before = {one: self.picture.turn(one, among=lambda each: id(each) in free) for one in self.picture.tickets if id(one) in free}
        rung = self._step()
        slots += self._notice_rebuilt()
        by_id = {job_id(one): one for one in self.picture.tickets}
        going = [(by_id[number], dispatch) for number, dispatch in rung]
        called = {row.id: row.credential_id for row in query(_CREDENTIALS, ids=[number for number, _ in rung])}
        for one, dispatch in going:
            assert not self.picture.is_halted(one.lane)
            self.picture.admit(one, dispatch, called[job_id(one)])
            self.places[dispatch] = self.meter(one)
        self.meters |= {self.meter(one) for one, _ in going}
        self.bells += going
        self._expect_fair([one for one, _ in going], slots, before)

    def _step(self) -> list[tuple[UUID, UUID]]:
        bells, rung = self.stage.bells, list[tuple[UUID, UUID]]()
        for _ in range(10):
            make_lanes_due()
            for _ in range(10):
                if self.stage.pacer.step() > 0:
                    break
            if not bells.rung:
                break
            rung, bells.rung = rung + bells.rung, []
        return rung

    def _notice_rebuilt(self) -> int:
        """Where the limiter had forgotten all, what was admitted and not claimed went back first: how many slots that freed."""
        rebuilt = {one for one in self.forgotten if self.limiter.peek_many([one])[0] is not None}
        self.forgotten -= rebuilt
        back = [one for one in self.picture.tickets if one.status == "admitted" and self.meter(one) in rebuilt]
        for one in back:
            self.picture.unclaimed(one)
        self.places |= {
            one.dispatch: self.meter(one) for one in self.picture.tickets if one.status == "running" and self.meter(one) in rebuilt
        }
        return len(back)

    def _expect_fair(self, going: list[Ticket], slots: int, before: dict[Ticket, tuple[float, str]]) -> None:
        """In the order of the line; who was passed over was held up by a cap; and no slot is left while somebody may go.

        before: of all who could go, when it was their turn.
        """
        went: dict[Lane, list[Ticket]] = defaultdict(list)
        with_each: dict[tuple[CredentialModel, int], list[Ticket]] = defaultdict(list)
        for one in going:
            went[one.lane].append(one)
            with_each[self.meter(one), one.who.key_id].append(one)
        left = [one for one in self.picture.tickets if self.picture.may_go(one)]

        assert all(sorted(jobs, key=lambda one: one.place) == jobs for jobs in with_each.values())
        assert len(going) <= slots
        assert left == [] or len(going) == slots, "slots are left, and nothing holds up who waits"
        # What a key may still have in flight can be meant for its job in another lane, whose turn is next.
        alone = [one for one in left if self.picture.cap_of_key(one.who).max_in_flight is None]
        mine = [(one, other) for one in alone for other in went[one.lane] if one.who is other.who]
        assert all(other.place < one.place for one, other in mine), "somebody was passed over"
        if not self.picture.caps:
            others = [(one, other) for one in alone for other in went[one.lane] if one.who is not other.who]
            assert all(before[other] < before[one] for one, other in others), "a key had more than its turn"
        for scope, cap in self.picture.caps.items():
            if cap.max_in_flight is not None and any(one in going for one in self.picture.within(scope)):
                assert self.picture.live_within(scope) <= cap.max_in_flight

    @rule()
    def redis_forgets(self) -> None:
        self.client.flushall()
        self.places.clear()
        self.forgotten = set(self.meters)

    @rule()
    def admissions_are_not_claimed(self) -> None:
        with db.begin() as session:
            returned = requeue.requeue_unclaimed(session, older_than_s=0)
        for row in returned:
            self.free(row.dispatch_id, CredentialModel(row.credential_id, row.model), Report(sent=False))
        for one in self.picture.tickets:
            if one.status == "admitted":
                self.picture.unclaimed(one)

    # Workers

    @rule(
        who=WHO, wanted=st.lists(WANTED, min_size=2, max_size=4), slots=st.integers(1, 3), kinds=st.lists(KIND, max_size=2), tokens=TOKENS
    )
    def an_ordinary_minute(self, who: int, wanted: list[dict[str, Any]], slots: int, kinds: list[str], tokens: int) -> None:
        """Jobs come, some start, some calls end: what goes on while others do odd things."""
        for one in wanted:
            self.submit(who, one, token=one["size"] == 20)
        self.everybody_starts(slots)
        for n, kind in enumerate(kinds):
            self.a_call_ends(n, kind, tokens)

    @rule(which=WHICH)
    def claim(self, which: int) -> None:
        """Any doorbell that ever rang, twice and late too."""
        for one, dispatch in self.bells[-1 - which % 5 :][:1]:
            self.answer(one, dispatch)

    @rule(slots=st.integers(1, 3))
    def everybody_starts(self, slots: int) -> None:
        """What goes well most of the time."""
        self.pace(slots)
        for n in range(slots):
            self.claim(n)

    @rule(which=WHICH, kind=KIND, tokens=TOKENS)
    def a_call_ends(self, which: int, kind: str, tokens: int) -> None:
        """Any call that ever went out, however late; how one has ended may be written once more, as from the spool."""
        for call in self.calls[-1 - which % 5 :][:1]:
            self.end(call, kind, tokens)

    @rule(kind=KIND, tokens=TOKENS)
    def the_last_call_ends(self, kind: str, tokens: int) -> None:
        self.a_call_ends(0, kind, tokens)

    @rule(which=WHICH)
    def a_lease_runs_out(self, which: int) -> None:
        for one in self.pick([each for each in self.picture.tickets if each.status == "running"], which):
            self.lose_it(one)

    @rule(which=WHICH, kind=KIND, tokens=TOKENS)
    def a_worker_is_lost_and_answers_late(self, which: int, kind: str, tokens: int) -> None:
        self.a_lease_runs_out(which)
        self.a_call_ends(which, kind, tokens)

    # How it is done

    def answer(self, one: Ticket, dispatch: UUID) -> None:
        """A worker hears this doorbell."""
        with db.begin() as session:
            row = claims.claim(session, job_id(one), dispatch, lease_s=settings().lease_s)
        assert (row is not None) == self.picture.start(one, dispatch)
        if row is not None:
            assert (one.failures, one.throttles) == (row.failures, row.throttles)
            self._expect_told(one, row)
            self.calls.append((one, dispatch, row))
            return
        with db.begin() as session:
            ghost = claims.ended_unclaimed(session, job_id(one), dispatch)
        if ghost is not None:
            self.free(dispatch, CredentialModel(ghost.credential_id, ghost.model), Report(sent=False))

    def end(self, call: tuple[Ticket, UUID, Any], kind: str, tokens: int) -> None:
        """The call comes to this, or what it came to before is written once more."""
        one, dispatch, row = call
        if dispatch in self.endings:
            written, verdict = self.endings[dispatch]
            finish.commit(written)
        else:
            attempt = next(each for each in one.calls if each.dispatch == dispatch)
            made = refusing.end(self.picture, one, attempt, row, kind) if kind in refusing.ANSWERS else None
            written, verdict = self.endings[dispatch] = made or self._end(one, attempt, row, kind, tokens)
        self.free(dispatch, CredentialModel(row.credential_id, row.model), Report(sent=verdict.outcome != "not_sent"))
        self.picture.end_call(one, dispatch, verdict)

    def _end(self, one: Ticket, attempt: Call, row: Any, kind: str, tokens: int) -> tuple[AttemptRecord, Verdict]:
        written, verdict = _ending(one, attempt, row, kind, tokens)
        if kind == "good":
            feedback.store_feedback(row, None, retry_policy.Verdict(retry_policy.NextStep.SUCCEED, Outcome.SUCCEEDED))
            self.picture.serves_again(one, attempt)
        finish.commit(written)
        return written, verdict

    def lose_it(self, one: Ticket) -> None:
        """The lease of a job that runs is over."""
        query("UPDATE job SET lease_until = now() - interval '1 s' WHERE id = :id", id=job_id(one))
        with db.begin() as session:
            (lost,) = requeue.reap(session)
        self.free(lost.dispatch_id, CredentialModel(lost.credential_id, lost.model), Report())
        self.picture.lose(one)

    def _expect_told(self, one: Ticket, row: Any) -> None:
        """What goes out for a turn: all that was answered before it, in order, then its own question."""
        if one.talk is None:
            return
        before = one.talk.turns[: one.talk.turns.index(one)]
        with db.begin() as session:
            going = json.loads(bytes(prompt.assemble(session, row).request))["messages"]

        assert not any(each.is_open for each in before)
        told = [said for each in before if each.status == "succeeded" for said in (each.asked, each.said)]
        assert [*told, one.asked] == [each["content"] for each in going]

    # Time

    @rule(which=WHICH)
    def somebody_has_waited_too_long(self, which: int) -> None:
        for one in self.pick([each for each in self.picture.tickets if each.status == "queued"], which):
            # As if it had come so much earlier: who asks again has the same time to wait.
            query(
                "UPDATE job SET created_at = created_at - (expires_at - now()) - interval '1 s', expires_at = now() - interval '1 s' "
                "WHERE id = :id", id=job_id(one),
            )  # fmt: skip
            with db.begin() as session:
                assert [job_id(one)] == [row.id for row in cancellation.expire(session)]
            self.picture.expire(one)

    @rule()
    def probes_are_due(self) -> None:
        query("UPDATE parked_model SET probe_at = now() - interval '1 s'")
        for aside in self.picture.aside.values():
            aside.is_due = True

    @rule()
    def backoffs_are_over(self) -> None:
        query("UPDATE job SET not_before = now() - interval '1 s' WHERE not_before > now() AND status = 'queued'")
        for one in self.picture.tickets:
            one.delayed = False


def _ending(one: Ticket, attempt: Call, row: Any, kind: str, tokens: int) -> tuple[AttemptRecord, Verdict]:
    """As a worker makes it of what the upstream did (workers/runner/run_job.py)."""
    counts = kind in ("failed", "lost")
    is_over = counts and (attempt.failures + 1 >= one.max_attempts or (kind == "lost" and one.on_lost == "fail"))
    outcome = {"good": "succeeded", "lost": "unknown", "aborted": "cancelled"}.get(kind, kind)
    owed = None if kind in ("lost", "aborted") else 0
    common = (row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, AttemptResult(Outcome(outcome), 200 if kind == "good" else None))
    is_turn = row.conversation_id is not None
    if kind == "good":
        answer, said, usage = _answer(one, tokens)
        result = JobResult(Status.SUCCEEDED, http_status=200, response=json.dumps(answer).encode())
        return AttemptRecord(*common, result, is_turn=is_turn), Verdict(
            outcome, "succeeded", usage[3], answer=answer, said=said, usage=usage
        )
    if kind == "aborted":
        return AttemptRecord(*common, JobResult(Status.CANCELLED), is_turn=is_turn), Verdict(outcome, "cancelled", owed)
    if kind == "refused" or is_over:
        return AttemptRecord(*common, JobResult(Status.FAILED, error=NO), is_turn=is_turn), Verdict(
            outcome, "failed", owed, error=str(NO["code"])
        )
    delay_s = LATER_S if kind == "failed" else 0
    return AttemptRecord(*common, None, delay_s, counts), Verdict(outcome, None, owed, counts=counts, delay=delay_s > 0)


_CREDENTIALS = "SELECT id, credential_id FROM job WHERE id = ANY(:ids)"


def _answer(one: Ticket, tokens: int) -> tuple[dict[str, Any], str | None, tuple[int, int, int, int]]:
    """What the upstream says to this job, its text, and what it used: tokens in, out, images, micro-USD."""
    said, images = f"answer to {one.asked}", int(one.cost // 1_000) if one.endpoint == IMAGES else 0
    answers: dict[str, dict[str, Any]] = {
        CHAT: {"choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]},
        IMAGES: {"created": 1, "data": [{"b64_json": PIXEL}] * images},
        EMBEDDINGS: {"data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]},
    }
    used = {"input_tokens": 10, "output_tokens": tokens} if images else {"prompt_tokens": 10, "completion_tokens": tokens}
    cost = pricing.cost_microusd(one.lane[1], input_tokens=10, output_tokens=tokens, images=images)
    assert cost is not None
    return {**answers[one.endpoint], "usage": used}, said if one.endpoint == CHAT else None, (10, tokens, images, cost)

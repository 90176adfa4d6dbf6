"""Rules for the pacer, workers, the reaper and time: single steps, also late and repeated ones."""

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
from tests.stateful.records import Call, Lane, ModelJob, Verdict
from tests.stateful.state_machine import job_id
from tests.support.queue_tools import query
from tests.workers.pacer.test_step import make_lanes_due, report_slots
from workers.answers import retry_policy
from workers.limiter.requests import CredentialModel, Report
from workers.results import finish
from workers.results.attempt_record import AttemptRecord
from workers.runner import feedback, prompt

# Longer than any test: a delay ends only when the test ends it.
LATER_S = 3_600
KIND = st.sampled_from(
    ["good", "good", "refused", "throttled", "failed", "lost", "aborted", "not_sent", "unreadable", "unpaid", "no_access", "no_model"]
)
# Images without a token count from the upstream have no price.
TOKENS = st.integers(1, 400)
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()
NO = {"message": "no", "type": "t", "param": None, "code": "upstream_refused"}


class Service(Operators):
    """Uses the real pacer and limiter, and the real code with which workers claim jobs and store results."""

    @rule(slots=st.integers(1, 4))
    def pace(self, slots: int) -> None:
        """Gives workers this many free slots and steps the pacer until it admits no more jobs."""
        report_slots(slots + len([job for job in self.model.jobs if job.status in ("admitted", "running")]))
        self.read_starts()
        free = {id(job) for job in self.model.jobs if self.model.is_admissible(job)}
        before = {job: self.model.turn(job, among=lambda each: id(each) in free) for job in self.model.jobs if id(job) in free}
        rung = self._step()
        slots += self._notice_rebuilt()
        by_id = {job_id(job): job for job in self.model.jobs}
        going = [(by_id[number], dispatch) for number, dispatch in rung]
        called = {row.id: row.credential_id for row in query(_CREDENTIALS, ids=[number for number, _ in rung])}
        for job, dispatch in going:
            assert not self.model.is_lane_paused(job.lane)
            self.model.admit(job, dispatch, called[job_id(job)])
            self.leases[dispatch] = self.meter(job)
        self.meters |= {self.meter(job) for job, _ in going}
        self.messages += going
        self._check_fair([job for job, _ in going], slots, before)

    def _step(self) -> list[tuple[UUID, UUID]]:
        publisher, published = self.stage.publisher, list[tuple[UUID, UUID]]()
        for _ in range(10):
            make_lanes_due()
            for _ in range(10):
                if self.stage.pacer.step() > 0:
                    break
            if not publisher.published:
                break
            published += publisher.published
            publisher.published = []
        return published

    def _notice_rebuilt(self) -> int:
        """After a rebuild of the limiter, admitted jobs were requeued first. Returns the number of slots that this freed."""
        rebuilt = {job for job in self.lost_meters if self.limiter.peek_many([job])[0] is not None}
        self.lost_meters -= rebuilt
        back = [job for job in self.model.jobs if job.status == "admitted" and self.meter(job) in rebuilt]
        for job in back:
            self.model.unclaimed(job)
        self.leases |= {job.dispatch: self.meter(job) for job in self.model.jobs if job.status == "running" and self.meter(job) in rebuilt}
        return len(back)

    def _check_fair(self, going: list[ModelJob], slots: int, before: dict[ModelJob, tuple[float, str]]) -> None:
        """Checks the order of admissions: only a cap may block a job, and no slot stays free while a job is admissible.

        before: the turn of each admissible job before the step.
        """
        went: dict[Lane, list[ModelJob]] = defaultdict(list)
        with_each: dict[tuple[CredentialModel, int], list[ModelJob]] = defaultdict(list)
        for job in going:
            went[job.lane].append(job)
            with_each[self.meter(job), job.who.key_id].append(job)
        left = [job for job in self.model.jobs if self.model.is_admissible(job)]

        assert all(sorted(jobs, key=lambda job: job.place) == jobs for jobs in with_each.values())
        assert len(going) <= slots
        assert left == [] or len(going) == slots, "slots are free, and admissible jobs are queued"
        # The rest of a key's max_in_flight may be reserved for its job in another lane, whose turn is next.
        alone = [job for job in left if self.model.cap_of_key(job.who).max_in_flight is None]
        mine = [(job, other) for job in alone for other in went[job.lane] if job.who is other.who]
        assert all(other.place < job.place for job, other in mine), "an admissible job was passed over"
        if not self.model.caps:
            others = [(job, other) for job in alone for other in went[job.lane] if job.who is not other.who]
            assert all(before[other] < before[job] for job, other in others), "a key had more than its turn"
        for scope, cap in self.model.caps.items():
            if cap.max_in_flight is not None and any(job in going for job in self.model.within(scope)):
                assert self.model.live_within(scope) <= cap.max_in_flight

    @rule()
    def flush_redis(self) -> None:
        self.client.flushall()
        self.leases.clear()
        self.lost_meters = set(self.meters)

    @rule()
    def requeue_unclaimed(self) -> None:
        with db.begin() as session:
            returned = requeue.requeue_unclaimed(session, older_than_s=0)
        for row in returned:
            self.free(row.dispatch_id, CredentialModel(row.credential_id, row.model), Report(sent=False))
        for job in self.model.jobs:
            if job.status == "admitted":
                self.model.unclaimed(job)

    # Workers

    @rule(
        who=WHO, wanted=st.lists(WANTED, min_size=2, max_size=4), slots=st.integers(1, 3), kinds=st.lists(KIND, max_size=2), tokens=TOKENS
    )
    def run_ordinary_minute(self, who: int, wanted: list[dict[str, Any]], slots: int, kinds: list[str], tokens: int) -> None:
        """Submits jobs, starts some and ends some calls: ordinary load beside the other rules."""
        for fields in wanted:
            self.submit(who, fields, token=fields["size"] == 20)
        self.start_jobs(slots)
        for n, kind in enumerate(kinds):
            self.end_call(n, kind, tokens)

    @rule(which=WHICH)
    def claim(self, which: int) -> None:
        """Claims any dispatch that was ever published, also late and repeatedly."""
        for job, dispatch in self.messages[-1 - which % 5 :][:1]:
            self.answer(job, dispatch)

    @rule(slots=st.integers(1, 3))
    def start_jobs(self, slots: int) -> None:
        """Admits and claims jobs."""
        self.pace(slots)
        for n in range(slots):
            self.claim(n)

    @rule(which=WHICH, kind=KIND, tokens=TOKENS)
    def end_call(self, which: int, kind: str, tokens: int) -> None:
        """Ends any call that was ever sent, however late. A result may be stored again, as from the spool."""
        for call in self.calls[-1 - which % 5 :][:1]:
            self.end(call, kind, tokens)

    @rule(kind=KIND, tokens=TOKENS)
    def end_last_call(self, kind: str, tokens: int) -> None:
        self.end_call(0, kind, tokens)

    @rule(which=WHICH)
    def expire_lease(self, which: int) -> None:
        for job in self.pick([each for each in self.model.jobs if each.status == "running"], which):
            self.reap_job(job)

    @rule(which=WHICH, kind=KIND, tokens=TOKENS)
    def answer_late(self, which: int, kind: str, tokens: int) -> None:
        self.expire_lease(which)
        self.end_call(which, kind, tokens)

    # Steps of the rules

    def answer(self, job: ModelJob, dispatch: UUID) -> None:
        """A worker receives this dispatch."""
        with db.begin() as session:
            row = claims.claim(session, job_id(job), dispatch, lease_s=settings().lease_s)
        assert (row is not None) == self.model.start(job, dispatch)
        if row is not None:
            assert (job.failures, job.throttles) == (row.failures, row.throttles)
            self._check_prompt(job, row)
            self.calls.append((job, dispatch, row))
            return
        with db.begin() as session:
            unclaimed = claims.ended_unclaimed(session, job_id(job), dispatch)
        if unclaimed is not None:
            self.free(dispatch, CredentialModel(unclaimed.credential_id, unclaimed.model), Report(sent=False))

    def end(self, call: tuple[ModelJob, UUID, Any], kind: str, tokens: int) -> None:
        """Ends the call with this kind of answer, or stores its earlier result again."""
        job, dispatch, row = call
        if dispatch in self.endings:
            written, verdict = self.endings[dispatch]
            finish.commit(written)
        else:
            attempt = next(each for each in job.calls if each.dispatch == dispatch)
            made = refusing.end(self.model, job, attempt, row, kind) if kind in refusing.ANSWERS else None
            written, verdict = self.endings[dispatch] = made or self._end(job, attempt, row, kind, tokens)
        self.free(dispatch, CredentialModel(row.credential_id, row.model), Report(sent=verdict.outcome != "not_sent"))
        self.model.end_call(job, dispatch, verdict)

    def _end(self, job: ModelJob, attempt: Call, row: Any, kind: str, tokens: int) -> tuple[AttemptRecord, Verdict]:
        written, verdict = _ending(job, attempt, row, kind, tokens)
        if kind == "good":
            feedback.store_feedback(row, None, retry_policy.Verdict(retry_policy.NextStep.SUCCEED, Outcome.SUCCEEDED))
            self.model.unpark(job, attempt)
        finish.commit(written)
        return written, verdict

    def reap_job(self, job: ModelJob) -> None:
        """Expires the lease of a running job and reaps it."""
        query("UPDATE job SET lease_until = now() - interval '1 s' WHERE id = :id", id=job_id(job))
        with db.begin() as session:
            (lost,) = requeue.reap(session)
        self.free(lost.dispatch_id, CredentialModel(lost.credential_id, lost.model), Report())
        self.model.reap(job)

    def _check_prompt(self, job: ModelJob, row: Any) -> None:
        """Checks the prompt of a turn: all earlier answered turns in order, then its own question."""
        if job.conversation is None:
            return
        before = job.conversation.turns[: job.conversation.turns.index(job)]
        with db.begin() as session:
            going = json.loads(bytes(prompt.assemble(session, row).request))["messages"]

        assert not any(each.is_open for each in before)
        history = [message for turn in before if turn.status == "succeeded" for message in (turn.asked, turn.answer_text)]
        assert [*history, job.asked] == [each["content"] for each in going]

    # Time

    @rule(which=WHICH)
    def expire_job(self, which: int) -> None:
        for job in self.pick([each for each in self.model.jobs if each.status == "queued"], which):
            # Moves the submission into the past, so that a retry has the same time to wait.
            query(
                "UPDATE job SET created_at = created_at - (expires_at - now()) - interval '1 s', expires_at = now() - interval '1 s' "
                "WHERE id = :id", id=job_id(job),
            )  # fmt: skip
            with db.begin() as session:
                assert [job_id(job)] == [row.id for row in cancellation.expire(session)]
            self.model.expire(job)

    @rule()
    def make_probes_due(self) -> None:
        query("UPDATE parked_model SET probe_at = now() - interval '1 s'")
        for parked in self.model.parked.values():
            parked.is_due = True

    @rule()
    def end_backoffs(self) -> None:
        query("UPDATE job SET not_before = now() - interval '1 s' WHERE not_before > now() AND status = 'queued'")
        for job in self.model.jobs:
            job.delayed = False


def _ending(job: ModelJob, attempt: Call, row: Any, kind: str, tokens: int) -> tuple[AttemptRecord, Verdict]:
    """The record that a worker makes of the upstream's answer (workers/runner/run_job.py), and the expected verdict."""
    counts = kind in ("failed", "lost")
    is_over = counts and (attempt.failures + 1 >= job.max_attempts or (kind == "lost" and job.on_lost == "fail"))
    outcome = {"good": "succeeded", "lost": "unknown", "aborted": "cancelled"}.get(kind, kind)
    owed = None if kind in ("lost", "aborted") else 0
    common = (row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, AttemptResult(Outcome(outcome), 200 if kind == "good" else None))
    is_turn = row.conversation_id is not None
    if kind == "good":
        answer, answer_text, usage = _answer(job, tokens)
        result = JobResult(Status.SUCCEEDED, http_status=200, response=json.dumps(answer).encode())
        return AttemptRecord(*common, result, is_turn=is_turn), Verdict(
            outcome, "succeeded", usage[3], answer=answer, answer_text=answer_text, usage=usage
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


def _answer(job: ModelJob, tokens: int) -> tuple[dict[str, Any], str | None, tuple[int, int, int, int]]:
    """The upstream's answer to this job, its text, and its usage: input tokens, output tokens, images, micro-USD."""
    answer_text, images = f"answer to {job.asked}", int(job.cost // 1_000) if job.endpoint == IMAGES else 0
    answers: dict[str, dict[str, Any]] = {
        CHAT: {"choices": [{"index": 0, "message": {"role": "assistant", "content": answer_text}, "finish_reason": "stop"}]},
        IMAGES: {"created": 1, "data": [{"b64_json": PIXEL}] * images},
        EMBEDDINGS: {"data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]},
    }
    used = {"input_tokens": 10, "output_tokens": tokens} if images else {"prompt_tokens": 10, "completion_tokens": tokens}
    cost = pricing.cost_microusd(job.lane[1], input_tokens=10, output_tokens=tokens, images=images)
    assert cost is not None
    return {**answers[job.endpoint], "usage": used}, answer_text if job.endpoint == CHAT else None, (10, tokens, images, cost)

"""The state machine's set-up: an empty database, callers, an operator, a pacer, and the reference model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeVar
from uuid import UUID, uuid4

import redis
from flask import Flask
from hypothesis.stateful import RuleBasedStateMachine
from sqlalchemy import text

from models.access import operators
from models.billing import budgets
from models.database import db
from models.keys import keys
from models.keys.keys import Key, Limits
from models.queue import lanes
from tests.stateful.records import Lane, ModelJob, Tenant, Verdict
from tests.stateful.reference_model import ReferenceModel
from tests.support.http_tools import Caller
from tests.support.queue_tools import query, store_limits
from tests.workers.pacer.test_step import PacerHarness
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.results.attempt_record import AttemptRecord

GRANT = 3_000
NAMES = ("ann", "bob", "cas")
Item = TypeVar("Item")


class StateMachine(RuleBasedStateMachine):
    """Three callers, an operator, and the components that serve them. Two callers share a pool of two credentials; the first has a budget.

    messages: each dispatch that was ever published. calls: each call that was ever sent, with the claimed row. endings: the record of
    each ended call. leases: held in the limiter, by dispatch id. lost_meters: credentials and models whose state Redis has lost.
    """

    client: redis.Redis
    app: Flask

    def reset(self) -> None:
        """Resets the database, Redis and the model."""
        _empty()
        self.client.flushall()
        self.stage = PacerHarness(self.client)
        self.limiter = Limiter(self.client)
        self.model = ReferenceModel()
        self.asked = 0
        self.messages: list[tuple[ModelJob, UUID]] = []
        self.calls: list[tuple[ModelJob, UUID, Any]] = []
        self.endings: dict[UUID, tuple[AttemptRecord, Verdict]] = {}
        self.leases: dict[UUID, CredentialModel] = {}
        self.meters: set[CredentialModel] = set()
        self.lost_meters: set[CredentialModel] = set()
        self.times: dict[int, float] = {}
        self._create_tenants()

    def _create_tenants(self) -> None:
        own = f"sk-{uuid4().hex}"
        with db.begin() as session:
            pool = keys.create_pool(session, "team")
            for upstream_key in ("sk-team-a", "sk-team-b"):
                keys.add_credential(session, pool_id=pool, upstream_key=upstream_key)
            made = [keys.issue(session, name=name, pool="team") for name in NAMES[:2]]
            made.append((keys.authenticate(session, own), own))
            budgets.grant(session, made[0][0].id, GRANT)
            for row in session.execute(text("SELECT id, pool_id FROM credential")):
                self.model.credentials.setdefault(row.pool_id, []).append(row.id)
                store_limits(session, row.id, Limits(max_in_flight=1_000))
            self.ops = Caller(operators.create(session, f"ops-{uuid4().hex}", role="write"), self.app)
        self.callers = [Caller(token, self.app) for _, token in made]
        self.tenants = [_tenant(name, each, GRANT if name == NAMES[0] else None) for name, (each, _) in zip(NAMES, made, strict=True)]

    # Helpers

    def operate(self, path: str, *, expected_status: int = 200, **body: Any) -> dict[str, Any]:
        """The response to the operator's request."""
        response = self.ops.post(f"/ops/{path}", body)
        assert expected_status == response.status_code, response.text
        return dict(response.json)

    def caller(self, who: Tenant) -> Caller:
        return self.callers[self.tenants.index(who)]

    def other_callers(self, who: Tenant) -> list[Caller]:
        """The callers with other keys."""
        return [each for each in self.callers if each is not self.caller(who)]

    def pick(self, found: Iterable[Item], which: int) -> list[Item]:
        """One of these, counted from the newest; empty if there are none."""
        listed = list(found)
        return [listed[-1 - which % len(listed)]] if listed else []

    def count(self) -> int:
        self.asked += 1
        return self.asked

    def lanes(self) -> dict[int, Lane]:
        return {row.id: (row.pool_id, row.model) for row in query("SELECT id, pool_id, model FROM lane")}

    def meter(self, job: ModelJob) -> CredentialModel:
        """The credential and model of its last admission."""
        return CredentialModel(job.credential, job.lane[1])

    def free(self, dispatch: UUID, meter: CredentialModel, report: Report) -> None:
        """Releases the lease in the limiter."""
        self.limiter.release(meter, str(dispatch), report)
        self.leases.pop(dispatch, None)

    def key_times(self) -> dict[tuple[Lane, int], float]:
        """The virtual time of each key in each lane; for a new key, the time with which it would begin."""
        return defaultdict(float, {((row.pool_id, row.model), row.key_id): row.own_time for row in query(_TIMES)})

    def read_starts(self) -> None:
        """Copies the current turns of all keys into the model."""
        self.model.starts = {((row.pool_id, row.model), row.key_id): (row.starts, row.weight) for row in query(_STARTS)}

    # Checks of a job object

    def check_shown(self, job: ModelJob, shown: dict[str, Any]) -> None:
        usage = [call.usage for call in job.calls if call.usage is not None]
        expected = {
            "id": job.id, "status": public_status(job.status), "user": job.flow, "priority": job.priority, "model": job.lane[1],
            "conversation": job.conversation.name if job.conversation and not job.conversation.is_deleted else None,
            "cancel_requested": job.cancel_requested, "possible_duplicate_calls": job.possible_duplicates,
            "retry_of": job.retry_of.id if job.retry_of else None,
        }  # fmt: skip

        assert expected == {name: shown[name] for name in expected}
        assert [call.outcome for call in job.calls] == [attempt["outcome"] for attempt in shown["attempts"]]
        assert job.error == (shown["error"] or {}).get("code")
        assert [sum(part) for part in zip(*usage, strict=True)] == _used(shown)
        self._check_position(job, shown["queue"])

    def _check_position(self, job: ModelJob, queue: dict[str, Any] | None) -> None:
        if job.status == "queued":
            assert queue is not None
            self.read_starts()
            assert self.model.position(job) == queue["position"]
            why = self.model.blocked_by(job)
            assert why == queue["blocked_by"] if why else queue["blocked_by"] not in ("paused", "conversation")
        else:
            assert (0 if job.status == "admitted" else None) == (None if queue is None else queue["position"])


def public_status(status: str) -> str:
    """The status that callers see."""
    return "queued" if status == "admitted" else status


def job_id(job: ModelJob) -> UUID:
    return UUID(job.id.removeprefix("job_"))


def _used(shown: dict[str, Any]) -> list[int]:
    if shown["usage"] is None:
        return []
    return [*(shown["usage"][name] for name in ("input_tokens", "output_tokens", "images")), round(1e6 * shown["cost_usd"])]


def _tenant(name: str, made: Key, granted: int | None) -> Tenant:
    return Tenant(name, made.id, made.pool_id, counted=made.kind == "issued", granted=granted)


# A new key begins at the lane's time; a known key at the last finish of its users, if that is later.
_TIMES = """
    SELECT lane.pool_id, lane.model, key.id AS key_id, coalesce(share.virtual_time, greatest(lane.virtual_time, (
        SELECT max(last_finish) FROM key_flow WHERE lane_id = lane.id AND key_id = key.id
    ))) AS own_time
    FROM lane JOIN key ON key.pool_id = lane.pool_id LEFT JOIN key_share AS share ON share.lane_id = lane.id AND share.key_id = key.id
"""
_STARTS = """
    SELECT lane.pool_id, lane.model, share.key_id, greatest(lane.virtual_time, share.last_finish) AS starts, key.weight
    FROM key_share AS share JOIN lane ON lane.id = share.lane_id JOIN key ON key.id = share.key_id
"""


def _empty() -> None:
    names = "SELECT string_agg(tablename, ', ') AS names FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    query(f"TRUNCATE {query(names)[0].names}")
    lanes.id_of.cache_clear()

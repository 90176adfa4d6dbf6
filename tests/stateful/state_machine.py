"""The stage on which hypothesis plays: an empty database, callers, their operator, a pacer; and the picture beside it."""

from __future__ import annotations

import json
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
from tests.stateful.records import Lane, Tenant, Ticket, Verdict
from tests.stateful.reference_model import Picture
from tests.support.http_tools import Caller
from tests.support.queue_tools import query
from tests.workers.pacer.test_step import PacerHarness
from workers.limiter.limiter import Limiter
from workers.limiter.requests import CredentialModel, Report
from workers.results.attempt_record import AttemptRecord

GRANT = 3_000
NAMES = ("ann", "bob", "cas")
One = TypeVar("One")


class Play(RuleBasedStateMachine):
    """Three callers, of whom two share a pool of two upstream keys, the first with a budget; their operator; and what serves them.

    bells: every doorbell that ever rang. calls: every call that ever went out, with the claimed row. endings: how each came to an end.
    places: what is held in flight, by dispatch id. forgotten: of which Redis has lost the state.
    """

    client: redis.Redis
    app: Flask

    def set_stage(self) -> None:
        """All is as on the first day."""
        _empty()
        self.client.flushall()
        self.stage = PacerHarness(self.client)
        self.limiter = Limiter(self.client)
        self.picture = Picture()
        self.asked = 0
        self.bells: list[tuple[Ticket, UUID]] = []
        self.calls: list[tuple[Ticket, UUID, Any]] = []
        self.endings: dict[UUID, tuple[AttemptRecord, Verdict]] = {}
        self.places: dict[UUID, CredentialModel] = {}
        self.meters: set[CredentialModel] = set()
        self.forgotten: set[CredentialModel] = set()
        self.times: dict[int, float] = {}
        self._let_in()

    def _let_in(self) -> None:
        own = f"sk-{uuid4().hex}"
        with db.begin() as session:
            pool = keys.create_pool(session, "team")
            for upstream_key in ("sk-team-a", "sk-team-b"):
                keys.add_credential(session, pool_id=pool, upstream_key=upstream_key)
            made = [keys.issue(session, name=name, pool="team") for name in NAMES[:2]]
            made.append((keys.authenticate(session, own), own))
            budgets.grant(session, made[0][0].id, GRANT)
            for row in session.execute(text("SELECT id, pool_id FROM credential")):
                self.picture.credentials.setdefault(row.pool_id, []).append(row.id)
                keys.set_limits(session, row.id, Limits(max_in_flight=1_000))
            self.ops = Caller(operators.create(session, f"ops-{uuid4().hex}", role="write"), self.app)
        self.callers = [Caller(token, self.app) for _, token in made]
        self.tenants = [_tenant(name, each, GRANT if name == NAMES[0] else None) for name, (each, _) in zip(NAMES, made, strict=True)]

    # Short ways

    def pull(self, path: str, *, want: int = 200, **said: Any) -> dict[str, Any]:
        """What the operator is answered."""
        made = self.ops.post(f"/ops/{path}", said)
        assert want == made.status_code, made.text
        return dict(made.json)

    def caller(self, who: Tenant) -> Caller:
        return self.callers[self.tenants.index(who)]

    def strangers(self, who: Tenant) -> list[Caller]:
        """Who calls with any other key."""
        return [each for each in self.callers if each is not self.caller(who)]

    def pick(self, found: Iterable[One], which: int) -> list[One]:
        """One of these, the newest first; none of none."""
        listed = list(found)
        return [listed[-1 - which % len(listed)]] if listed else []

    def count(self) -> int:
        self.asked += 1
        return self.asked

    def lanes(self) -> dict[int, Lane]:
        return {row.id: (row.pool_id, row.model) for row in query("SELECT id, pool_id, model FROM lane")}

    def meter(self, one: Ticket) -> CredentialModel:
        """Of the credential that it was admitted with last."""
        return CredentialModel(one.credential, one.lane[1])

    def free(self, dispatch: UUID, meter: CredentialModel, report: Report) -> None:
        """The place in flight is free."""
        self.limiter.release(meter, str(dispatch), report)
        self.places.pop(dispatch, None)

    def own_times(self) -> dict[tuple[Lane, int], float]:
        """Of each key that is or was in a lane, its own time there; of others what they would begin with."""
        return defaultdict(float, {((row.pool_id, row.model), row.key_id): row.own_time for row in query(_TIMES)})

    def hear_turns(self) -> None:
        """The picture has the turns of all keys as they are now."""
        self.picture.starts = {((row.pool_id, row.model), row.key_id): (row.starts, row.weight) for row in query(_STARTS)}

    # What is to be seen of a job

    def expect_shown(self, one: Ticket, shown: dict[str, Any]) -> None:
        usage = [call.usage for call in one.calls if call.usage is not None]
        expected = {
            "id": one.id, "status": seen(one.status), "user": one.flow, "priority": one.priority, "model": one.lane[1],
            "conversation": one.talk.name if one.talk and not one.talk.is_deleted else None,
            "cancel_requested": one.cancel_requested, "possible_duplicate_calls": one.maybe_twice,
            "retry_of": one.retry_of.id if one.retry_of else None,
        }  # fmt: skip

        assert expected == {name: shown[name] for name in expected}
        assert [call.outcome for call in one.calls] == [attempt["outcome"] for attempt in shown["attempts"]]
        assert one.error == (shown["error"] or {}).get("code")
        assert [sum(part) for part in zip(*usage, strict=True)] == _used(shown)
        self._expect_place(one, shown["queue"])

    def _expect_place(self, one: Ticket, queue: dict[str, Any] | None) -> None:
        if one.status == "queued":
            assert queue is not None
            self.hear_turns()
            assert self.picture.position(one) == queue["position"]
            why = self.picture.blocked_by(one)
            assert why == queue["blocked_by"] if why else queue["blocked_by"] not in ("paused", "conversation")
        else:
            assert (0 if one.status == "admitted" else None) == (None if queue is None else queue["position"])


def seen(status: str) -> str:
    """As callers see it."""
    return "queued" if status == "admitted" else status


def job_id(one: Ticket) -> UUID:
    return UUID(one.id.removeprefix("job_"))


def said(value: dict[str, Any]) -> str:
    """What a caller sends, to be sent again."""
    return json.dumps(value)


def _used(shown: dict[str, Any]) -> list[int]:
    if shown["usage"] is None:
        return []
    return [*(shown["usage"][name] for name in ("input_tokens", "output_tokens", "images")), round(1e6 * shown["cost_usd"])]


def _tenant(name: str, made: Key, granted: int | None) -> Tenant:
    return Tenant(name, made.id, made.pool_id, counted=made.kind == "issued", granted=granted)


# A key that comes to a lane for the first time begins at the lane's time; one that comes back, where its users ended if that is later.
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

"""Pause, resume and drain: of a pool, a lane, a key, a flow or a credential. What runs is left to end.

Paused: nobody starts. Draining: nothing new is taken, what waits is served. Resume ends both, and opens a parked credential again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models import audit, lane, parking
from models.audit import Act
from models.db import Session
from models.errors import Invalid, NotFound

KINDS = ("pool", "lane", "key", "flow", "credential")
VERBS = ("pause", "resume", "drain")


@dataclass(frozen=True)
class Target:
    """What an operator acts on. number: its id; of a flow: its lane's. flow: its name."""

    kind: str
    number: int
    flow: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" + (f":{self.flow}" if self.kind == "flow" else "")


def target(kind: str, said: str) -> Target:
    """The target of this kind and id; a flow's is `<lane>:<user>`. Raises NotFound."""
    number, _, flow = said.partition(":")
    if not number.isascii() or not number.isdigit() or len(number) > 18 or (kind == "flow") != bool(flow):
        raise NotFound(f"There is no {kind} {said[:80]!r}.")
    return Target(kind, int(number), flow)


def act_on(session: Session, act: Act, verb: str, on: Target) -> tuple[dict[str, Any], list[int]]:
    """The target as it is now, and the lanes that the pacer has to look at. Raises NotFound.

    A credential that drains takes no new jobs, which is the same as a pause.
    """
    if verb not in VERBS:
        raise Invalid(f"One of {', '.join(VERBS)} is wanted.")
    before = state(session, on, lock=True)
    reason = act.reason or f"by {act.operator.name}"
    if on.kind in ("key", "flow"):
        session.execute(_CAP[verb], {"scope": on.kind, "owner_id": on.number, "flow": on.flow, "reason": reason})
    else:
        change = (_CREDENTIAL if on.kind == "credential" else _CHANGES)[verb]
        session.execute(text(f"UPDATE {on.kind} SET {change} WHERE id = :id"), {"id": on.number, "reason": reason})
    if verb == "resume" and on.kind == "credential":
        session.execute(text("DELETE FROM parked_model WHERE credential_id = :id"), {"id": on.number})
    after = state(session, on)
    audit.write(session, act, verb, str(on), before=before, after=after)
    numbers = lanes_of(session, on)
    if verb == "resume":
        lane.wake(session, [(number, float("inf")) for number in numbers])
    return after, numbers


def state(session: Session, on: Target, *, lock: bool = False) -> dict[str, Any]:
    """paused_at, paused_reason and what else stops it. Raises NotFound."""
    table, where = {"key": ("key", "id = :number"), "flow": ("flow", "lane_id = :number AND name = :flow")}.get(
        on.kind, (on.kind, "id = :number")
    )
    wanted = {"number": on.number, "flow": on.flow, "scope": on.kind}
    row = session.execute(text(f"SELECT * FROM {table} WHERE {where}" + (" FOR UPDATE" if lock else "")), wanted).one_or_none()
    if row is None:
        raise NotFound(f"There is no {on.kind} {str(on).partition(':')[2]!r}.")
    if on.kind in ("key", "flow"):
        row = session.execute(_FIND_CAP, wanted).one_or_none()
    names = ("paused_at", "paused_reason", "parked_reason" if on.kind == "credential" else "draining_at")
    return {"id": str(on).partition(":")[2], "object": on.kind, **{name: _plain(getattr(row, name, None)) for name in names}}


def lanes_of(session: Session, on: Target) -> list[int]:
    """The lanes that it is, has or serves."""
    return [row.id for row in session.execute(_LANES[on.kind], {"number": on.number})]


def _plain(value: Any) -> Any:
    return round(value.timestamp(), 3) if hasattr(value, "timestamp") else value


_CHANGES = {
    "pause": "paused_at = now(), paused_reason = :reason",
    "drain": "draining_at = now()",
    "resume": "paused_at = NULL, paused_reason = NULL, draining_at = NULL",
}
_CREDENTIAL = {
    "pause": _CHANGES["pause"],
    "drain": _CHANGES["pause"],
    "resume": f"paused_at = NULL, paused_reason = NULL, retired_at = NULL, {parking.OPEN}",
}
_CAP_KEY = "(scope, owner_id, flow, endpoint)"
_CAP = {
    "pause": text(f"""
        INSERT INTO cap (scope, owner_id, flow, endpoint, paused_at, paused_reason) VALUES (:scope, :owner_id, :flow, '', now(), :reason)
        ON CONFLICT {_CAP_KEY} DO UPDATE SET paused_at = now(), paused_reason = excluded.paused_reason
    """),
    "drain": text(f"""
        INSERT INTO cap (scope, owner_id, flow, endpoint, draining_at) VALUES (:scope, :owner_id, :flow, '', now())
        ON CONFLICT {_CAP_KEY} DO UPDATE SET draining_at = now()
    """),
    # A cap that says nothing any more is none: whoever has none pays nothing.
    "resume": text("""
        WITH open AS (
            DELETE FROM cap WHERE scope = :scope AND owner_id = :owner_id AND flow = :flow AND endpoint = ''
            AND coalesce(max_queued, max_in_flight, rpm) IS NULL
        )
        UPDATE cap SET paused_at = NULL, paused_reason = NULL, draining_at = NULL
        WHERE scope = :scope AND owner_id = :owner_id AND flow = :flow AND endpoint = ''
        AND coalesce(max_queued, max_in_flight, rpm) IS NOT NULL
    """),
}
_FIND_CAP = text("SELECT * FROM cap WHERE scope = :scope AND owner_id = :number AND flow = :flow AND endpoint = ''")
_LANES = {
    "pool": text("SELECT id FROM lane WHERE pool_id = :number"),
    "lane": text("SELECT id FROM lane WHERE id = :number"),
    "flow": text("SELECT id FROM lane WHERE id = :number"),
    "key": text("SELECT id FROM lane WHERE pool_id = (SELECT pool_id FROM key WHERE id = :number)"),
    "credential": text("SELECT id FROM lane WHERE pool_id = (SELECT pool_id FROM credential WHERE id = :number)"),
}

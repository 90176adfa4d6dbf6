"""Pauses, drains and resumes a pool, a lane, a key, a flow or a credential. Running calls end normally.

Paused: no waiting job starts. Draining: new jobs are refused, waiting ones are served. Resume ends both, and unparks a credential.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import text

from models.access import audit_log
from models.access.audit_log import Act
from models.database.db import Transaction
from models.keys import parking
from models.ops import legacy_caps
from models.platform.errors import Invalid, NotFound
from models.queue import lanes

KINDS = ("pool", "lane", "key", "flow", "credential")
VERBS = ("pause", "resume", "drain")


@dataclass(frozen=True)
class Target:
    """Target of an operator's action. number: its id, for a flow the id of its lane. flow: its name; key_id: its key, 0 if not given."""

    kind: str
    number: int
    flow: str = ""
    key_id: int = 0

    @property
    def name(self) -> str:
        """The id as operators write it: a number, or `<lane>.<key>:<user>`."""
        if self.kind != "flow":
            return str(self.number)
        return f"{self.number}{f'.{self.key_id}' if self.key_id else ''}:{self.flow}"

    @property
    def cap_columns(self) -> dict[str, Any]:
        """Columns that identify its caps: scope, owner_id, flow and key_id."""
        flow = f"{self.key_id}:{self.flow}" if self.key_id else self.flow
        return {"scope": self.kind, "owner_id": self.number, "flow": flow, "key_id": self.key_id}

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


def parse_target(kind: str, text_id: str) -> Target:
    """Parses an id: a number; for a flow `<lane>.<key>:<user>`, or `<lane>:<user>` if only one key has that user. Raises NotFound."""
    number, _, flow = text_id.partition(":")
    lane_id, dot, key_id = number.partition(".")
    if not _is_id(lane_id) or (kind == "flow") != bool(flow) or (bool(dot) and (kind != "flow" or not _is_id(key_id))):
        raise NotFound(f"There is no {kind} {text_id[:80]!r}.")
    return Target(kind, int(lane_id), flow, int(key_id or 0))


def _is_id(text_id: str) -> bool:
    return text_id.isascii() and text_id.isdigit() and len(text_id) <= 18


_KEYS_OF_FLOW = text("SELECT key_id FROM key_flow WHERE lane_id = :lane_id AND name = :flow ORDER BY key_id")


def resolve(session: Transaction, on: Target) -> Target:
    """Adds the key to a flow without one. Raises NotFound, and Invalid if several keys have a user of this name in the lane."""
    if on.kind != "flow" or on.key_id:
        return on
    keys = [row.key_id for row in session.execute(_KEYS_OF_FLOW, {"lane_id": on.number, "flow": on.flow})]
    if not keys:
        raise NotFound(f"There is no flow {on.name!r}.")
    if len(keys) > 1:
        raise Invalid(f"{len(keys)} keys have a user of this name there. Add the key: {on.number}.{keys[0]}:{on.flow} is the first one.")
    return replace(on, key_id=keys[0])


_CHANGES = {
    "pause": "paused_at = now(), paused_reason = :reason",
    "drain": "draining_at = now()",
    "resume": "paused_at = NULL, paused_reason = NULL, draining_at = NULL",
}
_CREDENTIAL = {
    "pause": _CHANGES["pause"],
    "drain": _CHANGES["pause"],
    "resume": f"paused_at = NULL, paused_reason = NULL, retired_at = NULL, {parking.UNPARK_COLUMNS}",
}
_CAP_KEY = "(scope, owner_id, flow, endpoint)"
_CAP = {
    "pause": text(f"""
        INSERT INTO cap (scope, owner_id, flow, endpoint, key_id, paused_at, paused_reason)
        VALUES (:scope, :owner_id, :flow, '', :key_id, now(), :reason)
        ON CONFLICT {_CAP_KEY} DO UPDATE SET paused_at = now(), paused_reason = excluded.paused_reason
    """),
    "drain": text(f"""
        INSERT INTO cap (scope, owner_id, flow, endpoint, key_id, draining_at) VALUES (:scope, :owner_id, :flow, '', :key_id, now())
        ON CONFLICT {_CAP_KEY} DO UPDATE SET draining_at = now()
    """),
    # An empty cap is deleted: keys without caps cost nothing at admission.
    "resume": text("""
        WITH emptied AS (
            DELETE FROM cap WHERE scope = :scope AND owner_id = :owner_id AND flow = :flow AND endpoint = ''
            AND coalesce(max_queued, max_in_flight, rpm) IS NULL
        )
        UPDATE cap SET paused_at = NULL, paused_reason = NULL, draining_at = NULL
        WHERE scope = :scope AND owner_id = :owner_id AND flow = :flow AND endpoint = ''
        AND coalesce(max_queued, max_in_flight, rpm) IS NOT NULL
    """),
}


def apply(session: Transaction, act: Act, verb: str, on: Target) -> tuple[dict[str, Any], list[int]]:
    """Applies the verb; returns the target's new state and the lanes for which the pacer must be woken. Raises NotFound.

    Draining a credential is the same as pausing it: it gets no new jobs.
    """
    if verb not in VERBS:
        raise Invalid(f"The action is one of {', '.join(VERBS)}.")
    on = resolve(session, on)
    legacy_caps.split_legacy_caps(session, lane_id=on.number, user=on.flow)
    before = target_state(session, on, lock=True)
    reason = act.reason or f"by {act.operator.name}"
    if on.kind in ("key", "flow"):
        session.execute(_CAP[verb], {**on.cap_columns, "reason": reason})
    else:
        change = (_CREDENTIAL if on.kind == "credential" else _CHANGES)[verb]
        session.execute(text(f"UPDATE {on.kind} SET {change} WHERE id = :id"), {"id": on.number, "reason": reason})
    if verb == "resume" and on.kind == "credential":
        session.execute(text("DELETE FROM parked_model WHERE credential_id = :id"), {"id": on.number})
    after = target_state(session, on)
    audit_log.write(session, act, verb, str(on), before=before, after=after)
    affected = lane_ids(session, on)
    if verb == "resume":
        lanes.wake(session, affected)
    return after, affected


_FIND_CAP = text("SELECT * FROM cap WHERE scope = :scope AND owner_id = :owner_id AND flow = :flow AND endpoint = ''")


def target_state(session: Transaction, on: Target, *, lock: bool = False) -> dict[str, Any]:
    """Returns paused_at, paused_reason, and draining_at or parked_reason, of the target. Raises NotFound."""
    on = resolve(session, on)
    is_flow = on.kind == "flow"
    table, where = ("key_flow", "lane_id = :number AND key_id = :key_id AND name = :flow") if is_flow else (on.kind, "id = :number")
    params = {"number": on.number, "key_id": on.key_id, "flow": on.flow}
    row = session.execute(text(f"SELECT * FROM {table} WHERE {where}" + (" FOR UPDATE" if lock else "")), params).one_or_none()
    if row is None:
        raise NotFound(f"There is no {on.kind} {on.name!r}.")
    if on.kind in ("key", "flow"):
        row = session.execute(_FIND_CAP, on.cap_columns).one_or_none()
    names = ("paused_at", "paused_reason", "parked_reason" if on.kind == "credential" else "draining_at")
    return {"id": on.name, "object": on.kind, **{name: _plain(getattr(row, name, None)) for name in names}}


_LANES = {
    "pool": text("SELECT id FROM lane WHERE pool_id = :number"),
    "lane": text("SELECT id FROM lane WHERE id = :number"),
    "flow": text("SELECT id FROM lane WHERE id = :number"),
    "key": text("SELECT id FROM lane WHERE pool_id = (SELECT pool_id FROM key WHERE id = :number)"),
    "credential": text("SELECT id FROM lane WHERE pool_id = (SELECT pool_id FROM credential WHERE id = :number)"),
}


def lane_ids(session: Transaction, on: Target) -> list[int]:
    """Returns the ids of the lanes of a target."""
    return [row.id for row in session.execute(_LANES[on.kind], {"number": on.number})]


def _plain(value: Any) -> Any:
    return round(value.timestamp(), 3) if hasattr(value, "timestamp") else value

"""The audit log of operators' actions: append-only (enforced by a trigger), written in the transaction of the action."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from models.access.operators import COMMAND_LINE, Operator
from models.database.db import Transaction


@dataclass(frozen=True)
class Act:
    """The author and the reason of an action. request_id: of the HTTP request; None: a command."""

    operator: Operator = COMMAND_LINE
    reason: str | None = None
    request_id: str | None = None


_WRITE = text("""
    INSERT INTO audit (operator, action, target, before, after, reason, request_id)
    VALUES (:operator, :action, :target, CAST(:before AS jsonb), CAST(:after AS jsonb), :reason, :request_id)
""")


def write(
    session: Transaction, act: Act, action: str, target: str, *, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> None:
    """Writes an entry. target: kind and id of the object, for example `lane:7`."""
    session.execute(
        _WRITE,
        {"operator": act.operator.name, "action": action, "target": target, "before": _json(before), "after": _json(after),
         "reason": act.reason, "request_id": act.request_id},
    )  # fmt: skip


_PAGE = text("""
    SELECT id, at, operator, action, target, before, after, reason, request_id FROM audit
    WHERE CAST(:before AS bigint) IS NULL OR id < :before ORDER BY id DESC LIMIT :limit
""")


def list_entries(session: Transaction, *, limit: int, before: int | None) -> Sequence[Any]:
    """Up to limit + 1 entries, newest first, older than `before`."""
    return session.execute(_PAGE, {"before": before, "limit": limit + 1}).all()


def entry_view(row: Any) -> dict[str, Any]:
    """The JSON object of an entry."""
    names = ("operator", "action", "target", "before", "after", "reason", "request_id")
    return {"id": str(row.id), "object": "audit_entry", "at": round(row.at.timestamp(), 3), **{name: getattr(row, name) for name in names}}


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, default=str)

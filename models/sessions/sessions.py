"""Sessions as their owner sees them: conversations with a title, a system prompt and rules of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import text

from models.content import chat_messages
from models.database.db import Transaction
from models.platform.errors import NotFound, WrongState
from models.queue import history_window

JsonObject = dict[str, Any]
FIELDS = ("title", "system_prompt", "context_tokens", "fresh_after_s", "on_failed_turn")
DEFAULTS: Mapping[str, object] = {name: "skip" if name == "on_failed_turn" else None for name in FIELDS}
PREVIEW_CHARS = 200


def parse_id(said: str) -> str:
    """The id in an address. Raises NotFound for what cannot be one."""
    if not said.isprintable():
        raise NotFound("No such session.")
    return said


_FIELDS = ", ".join((*FIELDS, "system_prompt_tokens"))
_VALUES = ", ".join(f":{name}" for name in (*FIELDS, "system_prompt_tokens"))
_NOTHING = "NULL AS endpoint, NULL AS request, NULL AS response"
_CREATE = text(f"""
    INSERT INTO conversation (key_id, name, turns, {_FIELDS}) VALUES (:key_id, :name, 0, {_VALUES})
    ON CONFLICT (key_id, name) WHERE deleted_at IS NULL DO NOTHING RETURNING *, {_NOTHING}
""")


def create(session: Transaction, key_id: int, name: str, said: Mapping[str, Any]) -> Any:
    """A new session's row, without turns. said: of FIELDS. Raises WrongState when this key has one of that name."""
    row = session.execute(_CREATE, {**_values({**DEFAULTS, **said}), "key_id": key_id, "name": name}).one_or_none()
    if row is None:
        raise WrongState("This key has a session of that id. PATCH it, or choose another id.")
    return row


# Of a large turn nothing is shown in lists.
_COLUMNS = """
    talk.*, last.endpoint, last.request, last.response
"""
_LAST = """
    LEFT JOIN LATERAL (
        SELECT endpoint, request, response FROM job
        WHERE conversation_id = talk.id AND status = 'succeeded' AND turn_tokens IS NOT NULL
        AND octet_length(request) + octet_length(response) < 262144 ORDER BY turn DESC LIMIT 1
    ) AS last ON true
"""
_HERE = "key_id = :key_id AND name = :name AND deleted_at IS NULL"
_GET = text(f"SELECT {_COLUMNS} FROM conversation AS talk {_LAST} WHERE {_HERE}")


def get(session: Transaction, key_id: int, name: str) -> Any:
    """The session's row. Raises NotFound when this key has no such session."""
    return _one(session.execute(_GET, {"key_id": key_id, "name": name}).one_or_none())


_PAGE = text(f"""
    SELECT {_COLUMNS} FROM conversation AS talk {_LAST}
    WHERE key_id = :key_id AND deleted_at IS NULL AND starts_with(talk.name, :begins)
    AND (CAST(:at AS timestamptz) IS NULL OR (talk.last_active_at, talk.id) < (:at, :id))
    ORDER BY talk.last_active_at DESC, talk.id DESC LIMIT :most
""")


def list_sessions(session: Transaction, key_id: int, *, limit: int, after: str | None = None, begins: str = "") -> Sequence[Any]:
    """Up to limit + 1 rows of this key's sessions, the one last active first, after the one of this name. Raises NotFound.

    begins: what their names begin with.
    """
    last = get(session, key_id, after) if after is not None else None
    wanted = {
        "key_id": key_id,
        "at": last.last_active_at if last else None,
        "id": last.id if last else None,
        "most": limit + 1,
        "begins": begins,
    }
    return session.execute(_PAGE, wanted).all()


_UPDATE = text(f"""
    WITH changed AS (
        UPDATE conversation SET ({_FIELDS}) = ROW({_VALUES}), learned_tokens = CASE WHEN NOT :relearn THEN learned_tokens END
        WHERE id = :id AND deleted_at IS NULL RETURNING *
    )
    SELECT {_COLUMNS} FROM changed AS talk {_LAST}
""")


def update(session: Transaction, key_id: int, name: str, said: Mapping[str, Any]) -> Any:
    """The session's row with these of FIELDS; what is not said stays. Raises NotFound."""
    before = get(session, key_id, name)._asdict()
    wanted = _values({field: said.get(field, before[field]) for field in FIELDS})
    return _one(session.execute(_UPDATE, {**wanted, "id": before["id"], "relearn": "context_tokens" in said}).one_or_none())


_TOUCH = text(f"UPDATE conversation SET last_active_at = clock_timestamp() WHERE {_HERE} RETURNING id")


def touch(session: Transaction, key_id: int, name: str) -> int:
    """The session is active now; returns its number and holds its row until the transaction ends. Raises NotFound."""
    return int(_one(session.execute(_TOUCH, {"key_id": key_id, "name": name}).one_or_none()).id)


def to_json(row: Any) -> JsonObject:
    """The session as a caller sees it. null: as the operator's settings have it."""
    return {
        "id": row.name,
        "object": "session",
        **{name: getattr(row, name) for name in FIELDS},
        "turns": row.turns,
        "preview": _preview(row),
        "created_at": _epoch(row.created_at),
        "last_active_at": _epoch(row.last_active_at),
    }


def _values(fields: Mapping[str, Any]) -> JsonObject:
    """With what the system prompt takes of each turn."""
    own = fields["system_prompt"]
    return {**fields, "system_prompt_tokens": None if own is None else history_window.prompt_tokens(own)}


def _preview(row: Any) -> str | None:
    """How its last turn that was answered begins: the answer, or what was asked where that has no words."""
    if row.request is None:
        return None
    message = chat_messages.reply_message(row.response)
    said = (
        chat_messages.plain_text([message])
        if message
        else chat_messages.plain_text(chat_messages.stored_request_messages(row.endpoint, row.request))
    )
    return said[:PREVIEW_CHARS]


def _one(row: Any | None) -> Any:
    if row is None:
        raise NotFound("No such session.")
    return row


def _epoch(at: datetime) -> float:
    return round(at.timestamp(), 3)

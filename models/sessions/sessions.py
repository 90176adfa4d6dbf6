"""Sessions of a key: conversations with a title, a system prompt and settings of their own."""

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


def parse_id(name: str) -> str:
    """Returns the session id of a URL. Raises NotFound for a text that cannot be one."""
    if not name.isprintable():
        raise NotFound("No such session.")
    return name


_FIELDS = ", ".join((*FIELDS, "system_prompt_tokens"))
_VALUES = ", ".join(f":{name}" for name in (*FIELDS, "system_prompt_tokens"))
_NOTHING = "NULL AS endpoint, NULL AS request, NULL AS response"
_CREATE = text(f"""
    INSERT INTO conversation (key_id, name, turns, {_FIELDS}) VALUES (:key_id, :name, 0, {_VALUES})
    ON CONFLICT (key_id, name) WHERE deleted_at IS NULL DO NOTHING RETURNING *, {_NOTHING}
""")


def create(session: Transaction, key_id: int, name: str, fields: Mapping[str, Any]) -> Any:
    """Creates a session without turns; returns its row. fields: of FIELDS. Raises WrongState if this key has one of that name."""
    row = session.execute(_CREATE, {**_values({**DEFAULTS, **fields}), "key_id": key_id, "name": name}).one_or_none()
    if row is None:
        raise WrongState("This key has a session of that id. PATCH it, or choose another id.")
    return row


# Lists show no preview of a large turn.
_COLUMNS = """
    conversation_row.*, last.endpoint, last.request, last.response
"""
_LAST = """
    LEFT JOIN LATERAL (
        SELECT endpoint, request, response FROM job
        WHERE conversation_id = conversation_row.id AND status = 'succeeded' AND turn_tokens IS NOT NULL
        AND octet_length(request) + octet_length(response) < 262144 ORDER BY turn DESC LIMIT 1
    ) AS last ON true
"""
_OWNED = "key_id = :key_id AND name = :name AND deleted_at IS NULL"
_GET = text(f"SELECT {_COLUMNS} FROM conversation AS conversation_row {_LAST} WHERE {_OWNED}")


def get(session: Transaction, key_id: int, name: str) -> Any:
    """Returns the session's row. Raises NotFound if this key has no such session."""
    return _expect_row(session.execute(_GET, {"key_id": key_id, "name": name}).one_or_none())


_PAGE = text(f"""
    SELECT {_COLUMNS} FROM conversation AS conversation_row {_LAST}
    WHERE key_id = :key_id AND deleted_at IS NULL AND starts_with(conversation_row.name, :begins)
    AND (CAST(:at AS timestamptz) IS NULL OR (conversation_row.last_active_at, conversation_row.id) < (:at, :id))
    ORDER BY conversation_row.last_active_at DESC, conversation_row.id DESC LIMIT :limit
""")


def list_sessions(session: Transaction, key_id: int, *, limit: int, after: str | None = None, begins: str = "") -> Sequence[Any]:
    """Returns up to limit + 1 rows of this key's sessions, last active first, after the session of this name. Raises NotFound.

    begins: prefix of their names.
    """
    last = get(session, key_id, after) if after is not None else None
    params = {
        "key_id": key_id,
        "at": last.last_active_at if last else None,
        "id": last.id if last else None,
        "limit": limit + 1,
        "begins": begins,
    }
    return session.execute(_PAGE, params).all()


_UPDATE = text(f"""
    WITH changed AS (
        UPDATE conversation SET ({_FIELDS}) = ROW({_VALUES}), learned_tokens = CASE WHEN NOT :relearn THEN learned_tokens END
        WHERE id = :id AND deleted_at IS NULL RETURNING *
    )
    SELECT {_COLUMNS} FROM changed AS conversation_row {_LAST}
""")


def update(session: Transaction, key_id: int, name: str, fields: Mapping[str, Any]) -> Any:
    """Changes these of FIELDS and returns the session's row; the others stay. Raises NotFound."""
    before = get(session, key_id, name)._asdict()
    params = _values({field: fields.get(field, before[field]) for field in FIELDS})
    return _expect_row(session.execute(_UPDATE, {**params, "id": before["id"], "relearn": "context_tokens" in fields}).one_or_none())


_TOUCH = text(f"UPDATE conversation SET last_active_at = clock_timestamp() WHERE {_OWNED} RETURNING id")


def touch(session: Transaction, key_id: int, name: str) -> int:
    """Marks the session active now, locks its row until the transaction ends, and returns its id. Raises NotFound."""
    return int(_expect_row(session.execute(_TOUCH, {"key_id": key_id, "name": name}).one_or_none()).id)


def to_json(row: Any) -> JsonObject:
    """Returns the session as JSON for its owner. null: the operator's setting applies."""
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
    """Adds the number of tokens that the system prompt takes of each turn."""
    own = fields["system_prompt"]
    return {**fields, "system_prompt_tokens": None if own is None else history_window.prompt_tokens(own)}


def _preview(row: Any) -> str | None:
    """Returns the beginning of the last answered turn: of the answer, or of the question if the answer has no text."""
    if row.request is None:
        return None
    message = chat_messages.reply_message(row.response)
    words = (
        chat_messages.plain_text([message])
        if message
        else chat_messages.plain_text(chat_messages.stored_request_messages(row.endpoint, row.request))
    )
    return words[:PREVIEW_CHARS]


def _expect_row(row: Any | None) -> Any:
    if row is None:
        raise NotFound("No such session.")
    return row


def _epoch(at: datetime) -> float:
    return round(at.timestamp(), 3)

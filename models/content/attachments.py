"""Files attached to a conversation: stored unchanged, typed by their content, never opened or run here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from uuid_utils.compat import uuid7

from models.content import artifacts, image_size, token_estimate
from models.database.db import Transaction
from models.platform import ids
from models.platform.errors import Invalid, NotFound

PREFIX = "art_"
# Per conversation; more files belong on a file server.
MAX_FILES = 200
TEXT = "text/plain"
# The prompt names a file whose content the model does not get.
_NAMED_TOKENS = 64
# The prompt puts a heading around a text file.
_HEADING_TOKENS = 16


@dataclass(frozen=True)
class File:
    """An uploaded file. name: its base name."""

    name: str
    content_type: str
    content: bytes


# The label of a file's card on the chat page, by media type.
KINDS = {
    "application/msword": "word",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "word",
    "application/vnd.ms-excel": "excel",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "excel",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "ppt",
    "application/pdf": "pdf",
    "application/zip": "zip",
    TEXT: "txt",
    "image/png": "image",
    "image/jpeg": "image",
    "image/gif": "image",
    "image/webp": "image",
}


def parse_id(text_id: str) -> UUID:
    """The id behind `art_…`. Raises NotFound."""
    return ids.parse_id(PREFIX, text_id, otherwise="No such attachment.")


_COUNT = text("SELECT count(*) FROM artifact WHERE conversation_id = :of")
_STORE = text("""
    INSERT INTO artifact (id, n, content_type, content, conversation_id, name, tokens)
    VALUES (:id, 0, :type, :content, :of, :name, :tokens) RETURNING id, name, content_type, length(content) AS size
""")


def store(session: Transaction, conversation_id: int, file: File) -> Any:
    """Stores a file of this conversation; returns its row. Raises Invalid if the conversation has MAX_FILES already.

    Lock the row of the conversation first.
    """
    if session.execute(_COUNT, {"of": conversation_id}).scalar_one() >= MAX_FILES:
        raise Invalid(f"This session has {MAX_FILES} attachments, as many as it may. Begin another one.", code="too_many_attachments")
    params = {"id": uuid7(), "of": conversation_id, "name": file.name, "type": file.content_type, "content": file.content}
    return session.execute(_STORE, {**params, "tokens": _weigh(file)}).one()


_WEIGH = text("""
    SELECT artifact.tokens FROM artifact JOIN conversation ON conversation.id = artifact.conversation_id
    WHERE artifact.id = ANY(:ids) AND conversation.key_id = :key_id AND conversation.name = :name AND conversation.deleted_at IS NULL
""")


def total_tokens(session: Transaction, key_id: int, conversation: str, attachments: Sequence[UUID]) -> int:
    """The estimated tokens of these files in a prompt. Raises NotFound unless all belong to this key's conversation."""
    rows = session.execute(_WEIGH, {"key_id": key_id, "name": conversation, "ids": list(attachments)}).all()
    if len(rows) < len(set(attachments)):
        raise NotFound(
            "This session has no such attachment. Send it to POST /v1/sessions/{id}/attachments first, and name the id it gets.",
            param="attachments",
        )
    return sum(row.tokens for row in rows)


_OF = text("SELECT id, name, content_type, length(content) AS size FROM artifact WHERE id = ANY(:ids) AND conversation_id IS NOT NULL")


def by_ids(session: Transaction, attachments: Sequence[UUID] | None) -> list[Any]:
    """These files in this order, without deleted ones. Rows: id, name, content_type, size."""
    rows = {row.id: row for row in session.execute(_OF, {"ids": list(attachments)})} if attachments else {}
    return [rows[file_id] for file_id in attachments or () if file_id in rows]


_CONTENT = text("SELECT content FROM artifact WHERE id = :id")


def read_content(session: Transaction, attachment_id: UUID) -> bytes:
    """The content of the file; empty if it was deleted in the meantime."""
    return bytes(session.execute(_CONTENT, {"id": attachment_id}).scalar_one_or_none() or b"")


def attachment_view(row: Any, *, now: float, origin: str = "") -> dict[str, Any]:
    """The JSON object of an attachment within its session, with a signed URL."""
    return {
        "id": artifacts.public_id(row.id),
        "object": "session.attachment",
        "name": row.name,
        "kind": KINDS.get(row.content_type, "unknown"),
        "content_type": row.content_type,
        "bytes": row.size,
        "url": artifacts.artifact_url(row.id, now=now, origin=origin),
    }


def _weigh(file: File) -> int:
    if file.content_type == TEXT:
        return token_estimate.estimate_text(file.content.decode()) + token_estimate.estimate_text(file.name) + _HEADING_TOKENS
    if file.content_type.startswith("image/"):
        return token_estimate.sized_image_tokens(image_size.from_bytes(file.content))
    return token_estimate.estimate_text(file.name) + _NAMED_TOKENS

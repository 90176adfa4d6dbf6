"""What a caller is answered about sessions, as pydantic models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from api.submit.responses import Answer, Shown


class Session(Answer):
    """A conversation and its rules. null: as the operator's settings have it."""

    id: str
    object: Literal["session"]
    title: str | None
    system_prompt: str | None
    context_tokens: int | None
    fresh_after_s: float | None
    on_failed_turn: Literal["skip", "stop"]
    turns: int
    preview: str | None = Field(description="How its last answered turn begins; null: there is none, or a very large one.")
    created_at: float
    last_active_at: float


class SessionList(Answer):
    """One page of sessions, the one last active first."""

    object: Literal["list"]
    data: list[Session]
    has_more: bool
    first_id: str | None
    last_id: str | None


class SessionDeleted(Answer):
    """It is gone."""

    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


class TurnDeleted(Answer):
    """The turn of this message is gone."""

    id: str
    object: Literal["session.turn.deleted"]
    turn: int
    deleted: Literal[True]


class Attachment(Answer):
    """A file of a session."""

    id: str = Field(pattern="^art_[0-9a-f]{32}$")
    object: Literal["session.attachment"]
    name: str
    kind: Literal["word", "excel", "ppt", "pdf", "zip", "txt", "image", "unknown"]
    content_type: str
    bytes: int
    url: str = Field(description="Opens without a key until it expires.")


class AttachmentList(Answer):
    """The files that were taken, in their order."""

    object: Literal["list"]
    data: list[Attachment]


class MessageImage(Answer):
    """A picture in a message. What its caller linked is that link."""

    url: str
    content_type: str | None


class SessionMessage(Answer):
    """What was asked in a turn, or what was answered."""

    id: str = Field(pattern="^msg_[0-9]+$")
    object: Literal["session.message"]
    turn: int
    job_id: str
    role: Literal["user", "assistant"]
    status: Shown = Field(
        description="Of the turn: an answer that is not there yet is queued or running; only a succeeded turn is remembered."
    )
    starts_afresh: bool = Field(description="This turn remembers nothing of those before: it came long after them.")
    text: str | None
    images: list[MessageImage]
    attachments: list[Attachment]
    error: dict[str, Any] | None = Field(description="Why there is no answer.")
    created_at: float | None


class SessionMessageList(Answer):
    """One page of messages."""

    object: Literal["list"]
    data: list[SessionMessage]
    has_more: bool
    first_id: str | None
    last_id: str | None

"""Response models of the session routes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from api.openapi.page import Page
from api.submit.responses import Answer, Shown


class Session(Answer):
    """A conversation and its rules. null: the operator's setting."""

    id: str
    object: Literal["session"]
    title: str | None
    system_prompt: str | None
    context_tokens: int | None
    fresh_after_s: float | None
    on_failed_turn: Literal["skip", "stop"]
    turns: int
    preview: str | None = Field(description="The beginning of its last answered turn; null: there is none, or it is very large.")
    created_at: float
    last_active_at: float


class SessionList(Page):
    """One page of sessions, the one last active first."""

    data: list[Session]


class SessionDeleted(Answer):
    """Confirms the deletion."""

    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


class TurnDeleted(Answer):
    """Confirms the deletion of a turn."""

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
    """The stored files, in their order."""

    object: Literal["list"]
    data: list[Attachment]


class MessageImage(Answer):
    """An image in a message. For an image that the caller linked, url is that link."""

    url: str
    content_type: str | None


class SessionMessage(Answer):
    """The request or the answer of a turn."""

    id: str = Field(pattern="^msg_[0-9]+$")
    object: Literal["session.message"]
    turn: int
    job_id: str
    role: Literal["user", "assistant"]
    status: Shown = Field(description="Of the turn: a missing answer is queued or running; only a succeeded turn becomes history.")
    starts_afresh: bool = Field(description="This turn has no history: it came long after the turns before it.")
    text: str | None
    images: list[MessageImage]
    attachments: list[Attachment]
    error: dict[str, Any] | None = Field(description="The error, if there is no answer.")
    created_at: float | None


class SessionMessageList(Page):
    """One page of messages."""

    data: list[SessionMessage]

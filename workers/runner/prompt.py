"""Assembles the prompt of a conversation's turn: instructions, the turns in its history window, its own messages and attachments.

The stored request stays as the client sent it. The prompt is assembled when the turn is claimed, after all earlier turns have ended.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from models.config.settings import settings
from models.content import attachments, chat_messages
from models.content.chat_messages import INSTRUCTIONS, JsonObject
from models.content.endpoints import CHAT
from models.database.db import Transaction
from models.platform import json_reading
from models.queue import history_window
from models.queue.history_window import History

Messages = list[JsonObject]


def assemble(session: Transaction, row: Any) -> Any:
    """The claimed row with the request to send: byte for byte its own request without history and attachments.

    Only chats have a history. row: of claims.claim.
    """
    if row.conversation_id is None or row.endpoint != CHAT:
        return row
    history = history_window.read_history(session, row, max_bytes=settings().max_body_bytes)
    if not (history.prompt or history.turns or row.attachments):
        return row
    body = json_reading.parse_json(bytes(row.request))
    own = _attach(session, body["messages"], row.attachments)
    messages = [*_instructions(history, own), *_earlier_turns(session, history, own), *_without_instructions(own)]
    return row._replace(request=_dump({**body, "messages": messages}))


def _dump(body: JsonObject) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(body, separators=(",", ":")).encode()


def _instructions(history: History, own: Messages) -> Messages:
    """The turn's own instructions, or else the conversation's."""
    instructions = [message for message in own if message.get("role") in INSTRUCTIONS]
    return instructions or ([{"role": "system", "content": history.prompt}] if history.prompt else [])


def _earlier_turns(session: Transaction, history: History, own: Messages) -> Messages:
    """The messages of the turns in the history window, without their instructions.

    Upstreams reject a tool result without its tool call, and a tool call without its results. Where one of the two turns failed or left
    the window, the other one is dropped too.
    """
    after, kept = _without_instructions(own), list[Messages]()
    for messages in (_turn(session, row) for row in reversed(history.turns)):
        if messages and _calls_tools(messages) == _begins_with_tool_result(after):
            kept.append(messages)
            after = messages
    while kept and _begins_with_tool_result(kept[-1]):
        kept.pop()
    return [message for messages in reversed(kept) for message in messages]


def _turn(session: Transaction, row: Any) -> Messages:
    answer = chat_messages.reply_message(row.response)
    request = _attach(session, chat_messages.stored_request_messages(row.endpoint, row.request), row.attachments)
    return [*_without_instructions(request), *([answer] if answer else [])]


def _calls_tools(messages: Messages) -> bool:
    return bool(messages and (messages[-1].get("tool_calls") or messages[-1].get("function_call")))


def _begins_with_tool_result(messages: Messages) -> bool:
    return bool(messages and messages[0].get("role") in ("tool", "function"))


def _without_instructions(messages: Messages) -> Messages:
    return [message for message in messages if message.get("role") not in INSTRUCTIONS]


def _attach(session: Transaction, messages: Messages, ids: Sequence[UUID] | None) -> Messages:
    """The messages with these files in the last user message."""
    parts = [part for row in attachments.by_ids(session, ids) for part in _parts(session, row)]
    if not parts:
        return messages
    last = max((n for n, message in enumerate(messages) if message.get("role") == "user"), default=None)
    if last is None:
        return [*messages, {"role": "user", "content": parts}]
    content = messages[last].get("content")
    own_parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    return [*messages[:last], {**messages[last], "content": [*own_parts, *parts]}, *messages[last + 1 :]]


def _parts(session: Transaction, row: Any) -> Messages:
    """The content parts of one file: an image, or a text. For any other file, a text that names it."""
    if row.content_type.startswith("image/"):
        encoded = base64.b64encode(attachments.read_content(session, row.id)).decode()
        return [{"type": "image_url", "image_url": {"url": f"data:{row.content_type};base64,{encoded}"}}]
    if row.content_type == attachments.TEXT:
        text = attachments.read_content(session, row.id).decode("utf-8-sig", "replace")
        return [{"type": "text", "text": f"File {row.name}:\n{text}"}]
    return [{"type": "text", "text": f"(Attached: {row.name}, {row.size} bytes. Its content is not shown here.)"}]

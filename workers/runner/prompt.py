"""What goes out for a turn of a conversation: instructions, the turns that it remembers, and its own messages with what is attached.

The stored request stays what its caller sent; this is made of it when the turn is claimed, all turns before it having ended.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec

from models.config.settings import settings
from models.content import attachments as attachment
from models.content import chat_messages
from models.content.chat_messages import INSTRUCTIONS, JsonObject
from models.content.endpoints import CHAT
from models.database.db import Transaction
from models.platform import json_reading
from models.queue import history_window
from models.queue.history_window import History

Messages = list[JsonObject]


def assemble(session: Transaction, row: Any) -> Any:
    """The claimed row with the request that is to go out: byte for byte its own where nothing is remembered or attached.

    Only chats are told what was before. row: as job.claim gives it.
    """
    if row.conversation_id is None or row.endpoint != CHAT:
        return row
    memory = history_window.read_history(session, row, most_bytes=settings().max_body_bytes)
    if not (memory.prompt or memory.turns or row.attachments):
        return row
    body = json_reading.value(bytes(row.request))
    asked = _attach(session, body["messages"], row.attachments)
    messages = [*_instructions(memory, asked), *_history(session, memory, asked), *_talk(asked)]
    return row._replace(request=_dump({**body, "messages": messages}))


def _dump(body: JsonObject) -> bytes:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(body, separators=(",", ":")).encode()


def _instructions(memory: History, asked: Messages) -> Messages:
    """The turn's own, else the conversation's."""
    own = [one for one in asked if one.get("role") in INSTRUCTIONS]
    return own or ([{"role": "system", "content": memory.prompt}] if memory.prompt else [])


def _history(session: Transaction, memory: History, asked: Messages) -> Messages:
    """The remembered turns without their instructions.

    An upstream takes neither a tool's result without the call that asked for it nor a call without its results: where a turn between
    has failed or was forgotten, the other goes too.
    """
    after, kept = _talk(asked), list[Messages]()
    for messages in (_turn(session, row) for row in reversed(memory.turns)):
        if messages and _asks_tools(messages) == _is_of_tools(after):
            kept.append(messages)
            after = messages
    while kept and _is_of_tools(kept[-1]):
        kept.pop()
    return [one for messages in reversed(kept) for one in messages]


def _turn(session: Transaction, row: Any) -> Messages:
    answer = chat_messages.answer(row.response)
    asked = _attach(session, chat_messages.asked(row.endpoint, row.request), row.attachments)
    return [*_talk(asked), *([answer] if answer else [])]


def _asks_tools(messages: Messages) -> bool:
    return bool(messages and (messages[-1].get("tool_calls") or messages[-1].get("function_call")))


def _is_of_tools(messages: Messages) -> bool:
    return bool(messages and messages[0].get("role") in ("tool", "function"))


def _talk(messages: Messages) -> Messages:
    return [one for one in messages if one.get("role") not in INSTRUCTIONS]


def _attach(session: Transaction, messages: Messages, attachments: Sequence[UUID] | None) -> Messages:
    """The messages with these files in the last one that a user said."""
    parts = [part for row in attachment.of(session, attachments) for part in _parts(session, row)]
    if not parts:
        return messages
    last = max((n for n, one in enumerate(messages) if one.get("role") == "user"), default=None)
    if last is None:
        return [*messages, {"role": "user", "content": parts}]
    said = messages[last].get("content")
    own = [{"type": "text", "text": said}] if isinstance(said, str) else list(said or ())
    return [*messages[:last], {**messages[last], "content": [*own, *parts]}, *messages[last + 1 :]]


def _parts(session: Transaction, row: Any) -> Messages:
    """A picture as a picture, a text as text; of any other file the model is told that it is there."""
    if row.content_type.startswith("image/"):
        encoded = base64.b64encode(attachment.content(session, row.id)).decode()
        return [{"type": "image_url", "image_url": {"url": f"data:{row.content_type};base64,{encoded}"}}]
    if row.content_type == attachment.TEXT:
        said = attachment.content(session, row.id).decode("utf-8-sig", "replace")
        return [{"type": "text", "text": f"File {row.name}:\n{said}"}]
    return [{"type": "text", "text": f"(Attached: {row.name}, {row.size} bytes. Its content is not shown here.)"}]

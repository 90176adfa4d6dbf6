"""The question and the answer of a conversation's turn, as messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.content.endpoints import CHAT, EDITS, IMAGES
from models.platform import json_reading

JsonObject = dict[str, Any]
# Whoever says how to answer speaks for one turn alone; the conversation's own system prompt is for all.
INSTRUCTIONS = frozenset({"system", "developer"})
# What of an answer the upstream takes back; the rest is about how it was made.
_SENT_AGAIN = ("role", "content", "name", "tool_calls", "function_call")


def request_messages(endpoint: str, body: JsonObject) -> list[JsonObject]:
    """What is asked, as messages: a chat's own, of pictures the prompt. Empty for what no model is ever told again."""
    if endpoint == CHAT:
        return list(body["messages"])
    return [{"role": "user", "content": body["prompt"]}] if endpoint in (IMAGES, EDITS) else []


def stored_request_messages(endpoint: str, request: bytes) -> list[JsonObject]:
    """`question` of a stored request. Empty too for a form, which only its upstream reads, and for a request that was erased."""
    body = json_reading.json_object(request)
    return request_messages(endpoint, body) if body else []


def reply_message(response: bytes | None) -> JsonObject | None:
    """The first choice's message as the upstream can be told it again; None where the answer is no chat's."""
    choices = (json_reading.json_object(response) or {}).get("choices") if response else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return None
    made = {name: message[name] for name in _SENT_AGAIN if message.get(name) is not None}
    calls = made.get("tool_calls") or made.get("function_call")
    return {"role": "assistant", "content": None if calls else message.get("refusal") or "", **made}


def plain_text(messages: Sequence[JsonObject]) -> str:
    """The text of these messages, without instructions, as a person reads it."""
    texts = [text for one in messages if one.get("role") not in INSTRUCTIONS for text in _texts(one.get("content"))]
    return "\n".join(texts)


def image_urls(messages: Sequence[JsonObject]) -> list[str]:
    """The URLs of the pictures in these messages, `data:` ones too, in order."""
    found = []
    for one in messages:
        for part in _parts(one.get("content")):
            inside = part.get("image_url")
            url = inside.get("url") if isinstance(inside, dict) else inside
            if isinstance(url, str):
                found.append(url)
    return found


def _parts(content: object) -> list[JsonObject]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in _parts(content) if isinstance(part.get("text"), str)]

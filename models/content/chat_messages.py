"""The request and the reply of a conversation's turn, as chat messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.content.endpoints import CHAT, EDITS, IMAGES
from models.platform import json_reading

JsonObject = dict[str, Any]
# Instructions in a request apply to one turn; the system prompt of the conversation applies to all turns.
INSTRUCTIONS = frozenset({"system", "developer"})
# The fields of a reply that the upstream accepts in a later request.
_REPLY_FIELDS = ("role", "content", "name", "tool_calls", "function_call")


def request_messages(endpoint: str, body: JsonObject) -> list[JsonObject]:
    """The messages of a request: those of a chat, or the prompt of an image. Empty for routes whose requests are not repeated."""
    if endpoint == CHAT:
        return list(body["messages"])
    return [{"role": "user", "content": body["prompt"]}] if endpoint in (IMAGES, EDITS) else []


def stored_request_messages(endpoint: str, request: bytes) -> list[JsonObject]:
    """`request_messages` of a stored request. Empty also for a form, which only the upstream reads, and for an erased request."""
    body = json_reading.json_object(request)
    return request_messages(endpoint, body) if body else []


def reply_message(response: bytes | None) -> JsonObject | None:
    """The message of the first choice, as a later request can contain it; None if this is no answer of a chat."""
    choices = (json_reading.json_object(response) or {}).get("choices") if response else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return None
    kept = {name: message[name] for name in _REPLY_FIELDS if message.get(name) is not None}
    calls = kept.get("tool_calls") or kept.get("function_call")
    return {"role": "assistant", "content": None if calls else message.get("refusal") or "", **kept}


def plain_text(messages: Sequence[JsonObject]) -> str:
    """The text of these messages, without instructions, one per line."""
    texts = [text for message in messages if message.get("role") not in INSTRUCTIONS for text in _texts(message.get("content"))]
    return "\n".join(texts)


def image_urls(messages: Sequence[JsonObject]) -> list[str]:
    """The URLs of the images in these messages, `data:` ones too, in order."""
    urls = []
    for message in messages:
        for part in _parts(message.get("content")):
            inside = part.get("image_url")
            url = inside.get("url") if isinstance(inside, dict) else inside
            if isinstance(url, str):
                urls.append(url)
    return urls


def _parts(content: object) -> list[JsonObject]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _texts(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in _parts(content) if isinstance(part.get("text"), str)]

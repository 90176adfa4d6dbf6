"""Token estimates for texts, messages, images, files and whole requests: the only estimator of this project."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from models.content import image_size, token_weights
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS

JsonObject = dict[str, Any]
TOKENS_PER_MESSAGE = 4
# An image of unknown size in a request: six tiles, as a 16:9 screen has.
DEFAULT_IMAGE_TOKENS = 85 + 6 * 170
# An image in an answer, at most: the largest image of the best quality, of models that count generated images as tokens.
MAX_GENERATED_IMAGE_TOKENS = 6_240
# Texts are counted in pieces. Of a text longer than MAX_COUNTED_CHARS, every second, third … piece: no model reads so much.
PIECE_CHARS = 262_144
MAX_COUNTED_CHARS = 16 * PIECE_CHARS
# Message parts whose tokens follow from their size: speech of 64 kbit/s has 10 tokens a second; a page of a PDF has about 75 kB.
_BYTES_PER_TOKEN = MappingProxyType({"input_audio": 800, "file": 50})
# Fields of a chat request that the model reads besides the messages, and of a message besides its content.
_CHAT_FIELDS = ("tools", "functions", "response_format")
_MESSAGE_FIELDS = ("name", "tool_calls", "function_call", "tool_call_id", "refusal", "reasoning_content", "reasoning")
# In a JPEG, 64 kB of camera metadata may precede the size.
_HEADER_CHARS = 131_072
# The separator of texts that are counted together. It has no character class, so it adds no weight.
_SEPARATOR = "\0"


def estimate_text(text: str, *, model: str = "") -> int:
    """The estimated tokens of this text for that model: within 10 % in English, Chinese prose and code. 0 for an empty text only."""
    if not text:
        return 0
    starts = range(0, len(text), PIECE_CHARS * math.ceil(len(text) / MAX_COUNTED_CHARS))
    pieces = [text[start : start + PIECE_CHARS] for start in starts]
    counted = sum(map(len, pieces))
    weight = sum(token_weights.estimate_tokens(piece, model=model) for piece in pieces)
    return math.ceil(weight * len(text) / counted)


def estimate_messages(messages: Iterable[object], *, model: str = "") -> int:
    """The estimated tokens of these chat messages: texts, tool calls and names, images, audio and files."""
    texts: list[str] = []
    tokens = sum(TOKENS_PER_MESSAGE + (_take(message, texts) if isinstance(message, Mapping) else 0) for message in messages)
    return tokens + _estimate_all(texts, model)


def estimate_request(endpoint: str, body: Mapping[str, Any], *, model: str = "") -> int:
    """The estimated input tokens of a request. body: as it was sent to one of the upstream's routes; 0 for any other route."""
    if endpoint == CHAT:
        also = [_json(body[name]) for name in _CHAT_FIELDS if body.get(name)]
        messages = body.get("messages")
        asked = estimate_messages(messages if isinstance(messages, list) else [], model=model)
        return asked + _estimate_all(also, model)
    if endpoint in (IMAGES, EDITS):
        pictures = body.get("images") if endpoint == EDITS else None
        seen = sum(map(image_tokens, pictures)) if isinstance(pictures, list) else 0
        return estimate_text(str(body.get("prompt") or ""), model=model) + seen
    return _estimate_input(body.get("input"), model) if endpoint in (EMBEDDINGS, MODERATIONS) else 0


def estimate_answer(answer: Mapping[str, Any], *, model: str = "") -> int:
    """The estimated output tokens of an answer: the texts, reasoning and tool calls of a chat's choices; 0 for any other answer."""
    choices = answer.get("choices")
    messages = [choice.get("message") for choice in choices if isinstance(choice, Mapping)] if isinstance(choices, list) else []
    texts: list[str] = []
    seen = sum(_take(message, texts) for message in messages if isinstance(message, Mapping))
    return seen + _estimate_all(texts, model)


def _estimate_all(texts: Iterable[str], model: str) -> int:
    return estimate_text(_SEPARATOR.join(filter(None, texts)), model=model)


def image_tokens(part: object) -> int:
    """The tokens of an image in a request, as OpenAI documents them: 85, and 170 for each tile of 512 px unless its detail is `low`.

    part: an `image_url` part, or an image of an edit. DEFAULT_IMAGE_TOKENS if the image is elsewhere or its size is unreadable.
    """
    inside = part.get("image_url") if isinstance(part, Mapping) else part
    detail = inside.get("detail") if isinstance(inside, Mapping) else None
    if detail == "low" or (isinstance(part, Mapping) and part.get("detail") == "low"):
        return 85
    url = inside.get("url") if isinstance(inside, Mapping) else inside
    size = image_size.from_url(url[:_HEADER_CHARS]) if isinstance(url, str) else None
    return sized_image_tokens(size)


def sized_image_tokens(size: image_size.Size | None) -> int:
    """The tokens of an image of this size; None: unknown."""
    return _tiles(*size) * 170 + 85 if size else DEFAULT_IMAGE_TOKENS


def _tiles(width: int, height: int) -> int:
    """The number of tiles after scaling the image to at most 2,048 px, then its shorter side to at most 768 px."""
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    return math.ceil(round(width * scale, 6) / 512) * math.ceil(round(height * scale, 6) / 512)


def _estimate_input(asked: object, model: str) -> int:
    """The tokens of an `input`: texts, lists of tokens, or parts."""
    items: Sequence[object] = asked if isinstance(asked, list) else [asked]
    texts = [item for item in items if isinstance(item, str)]
    parts = [item for item in items if isinstance(item, Mapping)]
    given = sum(len(item) if isinstance(item, list) else isinstance(item, int) for item in items)
    seen = sum(_take_part(part, texts) for part in parts)
    return given + seen + _estimate_all(texts, model)


def _take(message: Mapping[str, Any], texts: list[str]) -> int:
    """Adds the texts of this message to `texts`; returns the tokens of its images, audio and files."""
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content)
    for name in _MESSAGE_FIELDS:
        if value := message.get(name):
            texts.append(value if isinstance(value, str) else _json(value))
    return sum(_take_part(part, texts) for part in content if isinstance(part, Mapping)) if isinstance(content, list) else 0


def _take_part(part: Mapping[str, Any], texts: list[str]) -> int:
    if isinstance(part.get("text"), str):
        texts.append(part["text"])
        return 0
    kind = str(part.get("type"))
    if "image_url" in part or "image" in kind:
        return image_tokens(part)
    if kind in _BYTES_PER_TOKEN:
        return _file_tokens(part.get(kind), _BYTES_PER_TOKEN[kind])
    texts.append(_json(part))
    return 0


def _file_tokens(inside: object, bytes_per_token: int) -> int:
    """The tokens of a file by its size; a file that is only referenced counts as an image."""
    held = (inside.get("data") or inside.get("file_data")) if isinstance(inside, Mapping) else None
    return len(held) * 3 // 4 // bytes_per_token + 1 if isinstance(held, str) else DEFAULT_IMAGE_TOKENS


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return ""

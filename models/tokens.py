"""The project's one estimate of tokens: texts, messages, pictures, files and whole requests, without a tokenizer's tables.

A text is reduced to one byte per character, the character's class, and patterns of classes are counted: starts of words, runs of digits
or punctuation, Chinese characters. Each pattern has a weight, fitted to OpenAI's encodings o200k_base and cl100k_base. bytes.translate
and bytes.count do the work, so the time is linear in the text, whatever it says. tests/test_tokens.py compares with exact counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from models import image_size
from models.endpoint import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS

JsonObject = dict[str, Any]
TOKENS_PER_MESSAGE = 4
# A picture whose size is not known: six tiles, as a screen of 16:9 has.
PICTURE_TOKENS = 85 + 6 * 170
# The largest picture of the best quality, of models that count the pictures they make as tokens.
MADE_PICTURE_TOKENS = 6_240
# Texts are counted in pieces, and of one longer than this only every second, third … piece: no model reads so much.
PIECE_CHARS = 262_144
COUNTED_CHARS = 16 * PIECE_CHARS
# Parts of a message by the size of what they hold: compressed speech of 64 kbit/s is 10 tokens a second; a page of a PDF about 75 kB.
_BYTES_PER_TOKEN = MappingProxyType({"input_audio": 800, "file": 50})
# Members of a chat's request that the model reads beside its messages, and of a message beside its content.
_READ_TOO = ("tools", "functions", "response_format")
_MESSAGE_TOO = ("name", "tool_calls", "function_call", "tool_call_id", "refusal", "reasoning_content", "reasoning")
# JPEG's size may stand behind 64 kB of a camera's notes.
_HEADER_CHARS = 131_072


@dataclass(frozen=True)
class _Encoding:
    """Tokens per character of scripts other than ASCII, on top of what their words and punctuation weigh."""

    latin: float
    latin_east: float
    greek: float
    cyrillic: float
    semitic: float
    indic: float
    symbol: float
    kana: float
    chinese: float
    spoken_chinese: float
    hangul: float
    emoji: float


_O200K = _Encoding(
    latin=0.9, latin_east=1.6, greek=0.27, cyrillic=0.11, semitic=0.4, indic=0.39, symbol=0.9, kana=0.78, chinese=0.7,
    spoken_chinese=1.4, hangul=0.82, emoji=2.2,
)  # fmt: skip
_CL100K = _Encoding(
    latin=2.4, latin_east=2.6, greek=0.82, cyrillic=0.31, semitic=1.0, indic=1.31, symbol=0.9, kana=1.1, chinese=0.9,
    spoken_chinese=3.2, hangul=1.42, emoji=2.8,
)  # fmt: skip
# Models of OpenAI that read cl100k_base; all newer ones read o200k_base, and others' tokenizers are nearer to that.
_CL100K_MODELS = ("gpt-4", "gpt-3.5", "text-embedding-")
_O200K_MODELS = ("gpt-4o", "gpt-4.1", "gpt-4.5")
# Characters that rarely share a token with a neighbour: the words of stories and talk, and forms of traditional Chinese.
_LONERS = "了我他她你不着就也都很说這們說來會學國沒對"

# Between texts that are counted together: of no class, so that together they weigh no more than one by one.
_BETWEEN = "\0"
_CONTINUATION = bytes(range(0x80, 0xC0))
_SPANS = (
    (0xC3, 0xC3, b"e"), (0xC4, 0xCB, b"E"), (0xCC, 0xCF, b"g"), (0xD0, 0xD3, b"r"), (0xD4, 0xDF, b"b"), (0xE0, 0xE1, b"i"),
    (0xE3, 0xE3, b"k"), (0xE4, 0xE9, b"c"), (0xEA, 0xED, b"h"), (0xEF, 0xEF, b"k"), (0xF0, 0xFF, b"m"),
)  # fmt: skip


def _classes() -> bytes:
    """From the first byte of a character in UTF-8 to its class: a and A letters, 0, blank, newline, . punctuation, else a script's."""
    table = bytearray(b"s" * 256)
    for code in range(128):
        char = chr(code)
        known = "a" if char.islower() else "A" if char.isupper() else "0" if char.isdigit() else char if char in " \n" else None
        table[code] = ord(known or ("\n" if char.isspace() else "."))
    table[0] = ord("?")
    for first, last, name in _SPANS:
        table[first : last + 1] = name * (last + 1 - first)
    return bytes(table)


def _only(members: bytes, shown: bytes) -> bytes:
    """A table that shows these bytes as one, and all others as blanks."""
    return bytes(shown[0] if code in members else 32 for code in range(256))


_CLASS = _classes()
_LETTER, _DIGIT, _PUNCT = _only(b"aAeEgr", b"a"), _only(b"0", b"0"), _only(b".", b".")
_CONSONANT = _only(b"bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ", b"x")


def estimate_text(text: str, *, model: str = "") -> int:
    """About how many tokens this text is to that model: within 10 % in English, Chinese prose and code. 0 for an empty text only."""
    if not text:
        return 0
    starts = range(0, len(text), PIECE_CHARS * math.ceil(len(text) / COUNTED_CHARS))
    pieces = [text[start : start + PIECE_CHARS] for start in starts]
    counted = sum(map(len, pieces))
    weight = sum(_weigh(piece, _encoding(model)) for piece in pieces)
    return math.ceil(weight * len(text) / counted)


def estimate_messages(messages: Iterable[object], *, model: str = "") -> int:
    """About how many tokens these messages of a chat are: texts, tool calls and names, pictures, sound and files."""
    texts: list[str] = []
    tokens = sum(TOKENS_PER_MESSAGE + (_take(message, texts) if isinstance(message, Mapping) else 0) for message in messages)
    return tokens + estimate_text(_BETWEEN.join(texts), model=model)


def estimate_request(endpoint: str, body: Mapping[str, Any], *, model: str = "") -> int:
    """About how many tokens the model is given to read. body: as it was sent to one of the upstream's routes; 0 for any other."""
    if endpoint == CHAT:
        also = [_json(body[name]) for name in _READ_TOO if body.get(name)]
        messages = body.get("messages")
        asked = estimate_messages(messages if isinstance(messages, list) else [], model=model)
        return asked + estimate_text(_BETWEEN.join(also), model=model)
    if endpoint in (IMAGES, EDITS):
        pictures = body.get("images") if endpoint == EDITS else None
        seen = sum(map(image_tokens, pictures)) if isinstance(pictures, list) else 0
        return estimate_text(str(body.get("prompt") or ""), model=model) + seen
    return _estimate_input(body.get("input"), model) if endpoint in (EMBEDDINGS, MODERATIONS) else 0


def estimate_answer(answer: Mapping[str, Any], *, model: str = "") -> int:
    """About how many tokens the model wrote: the texts, reasoning and tool calls of a chat's choices; 0 for any other answer."""
    choices = answer.get("choices")
    messages = [choice.get("message") for choice in choices if isinstance(choice, Mapping)] if isinstance(choices, list) else []
    texts: list[str] = []
    seen = sum(_take(message, texts) for message in messages if isinstance(message, Mapping))
    return seen + estimate_text(_BETWEEN.join(texts), model=model)


def image_tokens(part: object) -> int:
    """Tokens of a picture in a request, as OpenAI documents them: 85, and 170 for each tile of 512 px unless its detail is `low`.

    part: an `image_url` part, or an edit's picture. PICTURE_TOKENS where the picture is elsewhere or its size cannot be read.
    """
    inside = part.get("image_url") if isinstance(part, Mapping) else part
    detail = inside.get("detail") if isinstance(inside, Mapping) else None
    if detail == "low" or (isinstance(part, Mapping) and part.get("detail") == "low"):
        return 85
    url = inside.get("url") if isinstance(inside, Mapping) else inside
    size = image_size.of_url(url[:_HEADER_CHARS]) if isinstance(url, str) else None
    return sized_image_tokens(size)


def sized_image_tokens(size: image_size.Size | None) -> int:
    """The same of a picture of so many pixels; None: not known."""
    return _tiles(*size) * 170 + 85 if size else PICTURE_TOKENS


def _tiles(width: int, height: int) -> int:
    """As the picture is seen: within 2,048 px, then its shorter side at most 768."""
    scale = min(1.0, 2048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    return math.ceil(round(width * scale, 6) / 512) * math.ceil(round(height * scale, 6) / 512)


def _estimate_input(asked: object, model: str) -> int:
    """Texts, texts that are tokens already, or parts."""
    items: Sequence[object] = asked if isinstance(asked, list) else [asked]
    texts = [item for item in items if isinstance(item, str)]
    parts = [item for item in items if isinstance(item, Mapping)]
    given = sum(len(item) if isinstance(item, list) else isinstance(item, int) for item in items)
    seen = sum(_take_part(part, texts) for part in parts)
    return given + seen + estimate_text(_BETWEEN.join(texts), model=model)


def _take(message: Mapping[str, Any], texts: list[str]) -> int:
    """Adds this message's texts; returns the tokens of its pictures, sound and files."""
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content)
    for name in _MESSAGE_TOO:
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
    """By the size of what is sent along; a file that is elsewhere counts as a picture."""
    held = (inside.get("data") or inside.get("file_data")) if isinstance(inside, Mapping) else None
    return len(held) * 3 // 4 // bytes_per_token + 1 if isinstance(held, str) else PICTURE_TOKENS


def _weigh(text: str, encoding: _Encoding) -> float:
    raw = text.encode("utf-8", "surrogatepass")
    # Before it a byte of no class, so that a run at its start counts as one.
    kinds = b"?" + raw.translate(_CLASS, _CONTINUATION)
    letters, digits, puncts = kinds.translate(_LETTER), kinds.translate(_DIGIT), kinds.translate(_PUNCT)
    weight = (
        0.99 * letters.count(b" a") + 0.57 * letters.count(b"a" * 8) + 0.6 * kinds.count(b"aA")
        + 2.43 * raw.translate(_CONSONANT).count(b"xxxx")
        + 1.22 * digits.count(b" 0") + digits.count(b"000") + 1.54 * kinds.count(b" 0")
        + 0.42 * puncts.count(b" .") + 0.25 * puncts.count(b".") - 1.75 * puncts.count(b"." * 8)
        + 0.25 * kinds.count(b"\n") + kinds.count(b"\n ")
    )  # fmt: skip
    # Blanks alone are few tokens, not none.
    return max(weight if len(raw) == len(text) else weight + _weigh_scripts(text, kinds, encoding), len(text) / 100)


def _weigh_scripts(text: str, kinds: bytes, known: _Encoding) -> float:
    chinese = kinds.count(b"c")
    spoken = sum(map(text.count, _LONERS)) if chinese else 0
    return (
        known.latin * kinds.count(b"e") + known.latin_east * kinds.count(b"E") + known.greek * kinds.count(b"g")
        + known.cyrillic * kinds.count(b"r") + known.semitic * kinds.count(b"b") + known.indic * kinds.count(b"i")
        + known.symbol * kinds.count(b"s") + known.kana * kinds.count(b"k") + known.chinese * chinese
        + known.spoken_chinese * spoken + known.hangul * kinds.count(b"h") + known.emoji * kinds.count(b"m")
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _encoding(model: str) -> _Encoding:
    # `ft:gpt-4:acme::x` and `openai/gpt-4` are gpt-4.
    name = model.removeprefix("ft:").rpartition("/")[2].lower()
    return _CL100K if name.startswith(_CL100K_MODELS) and not name.startswith(_O200K_MODELS) else _O200K


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

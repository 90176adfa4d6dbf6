"""What a job reserves, as OpenAI counts it before a call: a quarter of the characters, and all that the reply may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from models.settings import settings
from models.view import JsonObject

CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_PICTURE = 1_000
# The column is 32 bits wide, and nobody's limit is higher.
MOST = 2**31 - 1


@dataclass(frozen=True)
class Reserve:
    """tokens and images that one call is charged with."""

    tokens: int
    images: int = 0


def chat(body: JsonObject) -> Reserve:
    """A chat completion: its messages' texts and pictures, and n replies of the greatest length. body: validated."""
    chars = pictures = 0
    for message in body["messages"]:
        for part in _parts(message.get("content")):
            chars += len(part) if isinstance(part, str) else 0
            pictures += part is None
    asked = _quarter(chars) + len(body["messages"]) * TOKENS_PER_MESSAGE + pictures * TOKENS_PER_PICTURE
    reply = body.get("max_completion_tokens") or body.get("max_tokens") or settings().default_max_output_tokens
    return Reserve(tokens=min(MOST, asked + reply * (body.get("n") or 1)))


def images(body: JsonObject) -> Reserve:
    """Pictures: they are counted as pictures, their prompt as tokens. body: validated."""
    return Reserve(tokens=_quarter(len(body["prompt"])), images=body.get("n") or 1)


def _parts(content: object) -> Iterator[str | None]:
    """The texts; None for each picture."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part.get("text"), str):
                yield part["text"]
            elif "image" in str(part.get("type")):
                yield None


def _quarter(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)

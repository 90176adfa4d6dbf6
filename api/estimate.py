"""What a job reserves, as OpenAI counts it before a call: a quarter of the characters, and all that the reply may use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from models import budget, pricing
from models.endpoint import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS
from models.line import TOKENS_MOST
from models.settings import settings
from models.view import JsonObject

CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_PICTURE = 1_000
FREE = frozenset({MODERATIONS})


@dataclass(frozen=True)
class Reserve:
    """tokens and images that one call is charged with. reply: how many of the tokens are the longest replies."""

    tokens: int
    images: int = 0
    reply: int = 0


def reserve(endpoint: str, body: JsonObject) -> Reserve:
    """What this request is charged with. body: validated."""
    return _BY_ENDPOINT[endpoint](body)


def most_microusd(kind: str, endpoint: str, model: str, reserve: Reserve, *, remembered: int = 0) -> int | None:
    """What a call with this reserve may cost; 0 where the upstream takes nothing.

    kind: of the key. remembered: tokens that a conversation may put before it. None: no price is known for the model, or nobody asks,
    for such a key has no budget.
    """
    if endpoint in FREE:
        return 0
    if not budget.covers(kind):
        return None
    asked = reserve.tokens - reserve.reply + remembered
    return pricing.most_microusd(model, input_tokens=asked, output_tokens=reserve.reply, images=reserve.images)


def chat(body: JsonObject) -> Reserve:
    """A chat completion: its messages' texts and pictures, and n replies of the greatest length."""
    messages = body["messages"]
    asked = _tokens_of(message.get("content") for message in messages) + len(messages) * TOKENS_PER_MESSAGE
    reply = body.get("max_completion_tokens") or body.get("max_tokens") or settings().default_max_output_tokens
    replies = min(TOKENS_MOST, reply * (body.get("n") or 1))
    return Reserve(tokens=min(TOKENS_MOST, asked + replies), reply=replies)


def images(body: JsonObject) -> Reserve:
    """Pictures: they are counted as pictures, their prompt as tokens."""
    return Reserve(tokens=_quarter(len(body["prompt"])), images=body.get("n") or 1)


def edits(body: JsonObject) -> Reserve:
    """Pictures made of pictures."""
    made = images(body)
    return Reserve(tokens=made.tokens + TOKENS_PER_PICTURE * len(body["images"]), images=made.images)


def embeddings(body: JsonObject) -> Reserve:
    """Texts, or texts that are tokens already."""
    asked = body["input"]
    if isinstance(asked, str):
        return Reserve(tokens=_quarter(len(asked)))
    if isinstance(asked[0], int):
        return Reserve(tokens=len(asked))
    return Reserve(tokens=sum(_quarter(len(one)) if isinstance(one, str) else len(one) for one in asked))


def moderations(body: JsonObject) -> Reserve:
    """Texts and pictures to look at."""
    asked = body["input"]
    return Reserve(tokens=_tokens_of(asked if isinstance(asked, list) and isinstance(asked[0], str) else [asked]))


def _tokens_of(contents: Iterable[object]) -> int:
    chars = pictures = 0
    for content in contents:
        for part in _parts(content):
            chars += len(part) if isinstance(part, str) else 0
            pictures += part is None
    return _quarter(chars) + pictures * TOKENS_PER_PICTURE


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


_BY_ENDPOINT: Mapping[str, Callable[[JsonObject], Reserve]] = MappingProxyType(
    {CHAT: chat, IMAGES: images, EDITS: edits, EMBEDDINGS: embeddings, MODERATIONS: moderations}
)

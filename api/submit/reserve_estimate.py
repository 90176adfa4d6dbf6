"""The reservation of a job: the estimated tokens of its prompt (models/content/token_estimate.py), and the most its reply may use."""

from __future__ import annotations

from dataclasses import dataclass

from models.billing import budgets, pricing
from models.config.settings import settings
from models.content import token_estimate
from models.content.endpoints import CHAT, EDITS, IMAGES, PAID
from models.platform.wire import JsonObject
from models.queue.submission import MAX_TOKENS


@dataclass(frozen=True)
class Reserve:
    """The tokens and images that one call reserves. reply: the part of the tokens for the longest replies."""

    tokens: int
    images: int = 0
    reply: int = 0


def estimate(endpoint: str, body: JsonObject) -> Reserve:
    """The reservation of this request. body: validated."""
    prompt = token_estimate.estimate_request(endpoint, body, model=body.get("model") or "")
    replies = _chat_replies(body) if endpoint == CHAT else 0
    images = body.get("n") or 1 if endpoint in (IMAGES, EDITS) else 0
    return Reserve(tokens=min(MAX_TOKENS, prompt + replies), images=images, reply=replies)


def max_microusd(kind: str, endpoint: str, model: str, reserve: Reserve, *, history_tokens: int = 0) -> int | None:
    """The most that a call with this reservation may cost; 0 for endpoints without a price.

    kind: of the key. history_tokens: that the conversation may add to the prompt. None: the model has no known price, or keys of this
    kind have no budget.
    """
    if endpoint not in PAID:
        return 0
    if not budgets.applies_to_kind(kind):
        return None
    input_tokens = reserve.tokens - reserve.reply + history_tokens
    return pricing.max_microusd(model, input_tokens=input_tokens, output_tokens=reserve.reply, images=reserve.images)


def _chat_replies(body: JsonObject) -> int:
    """The tokens of n replies of the greatest length."""
    reply = body.get("max_completion_tokens") or body.get("max_tokens") or settings().default_max_output_tokens
    return min(MAX_TOKENS, int(reply * (body.get("n") or 1)))

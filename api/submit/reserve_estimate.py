"""What a job reserves: the estimate of its prompt (models/content/token_estimate.py), and all that the reply may use."""

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
    """tokens and images that one call is charged with. reply: how many of the tokens are the longest replies."""

    tokens: int
    images: int = 0
    reply: int = 0


def estimate(endpoint: str, body: JsonObject) -> Reserve:
    """What this request is charged with. body: validated."""
    asked = token_estimate.estimate_request(endpoint, body, model=body.get("model") or "")
    replies = _chat_replies(body) if endpoint == CHAT else 0
    pictures = body.get("n") or 1 if endpoint in (IMAGES, EDITS) else 0
    return Reserve(tokens=min(MAX_TOKENS, asked + replies), images=pictures, reply=replies)


def max_microusd(kind: str, endpoint: str, model: str, reserve: Reserve, *, remembered: int = 0) -> int | None:
    """What a call with this reserve may cost; 0 where the upstream takes nothing.

    kind: of the key. remembered: tokens that a conversation may put before it. None: no price is known for the model, or nobody asks,
    for such a key has no budget.
    """
    if endpoint not in PAID:
        return 0
    if not budgets.applies_to_kind(kind):
        return None
    asked = reserve.tokens - reserve.reply + remembered
    return pricing.max_microusd(model, input_tokens=asked, output_tokens=reserve.reply, images=reserve.images)


def _chat_replies(body: JsonObject) -> int:
    """n replies of the greatest length."""
    reply = body.get("max_completion_tokens") or body.get("max_tokens") or settings().default_max_output_tokens
    return min(MAX_TOKENS, int(reply * (body.get("n") or 1)))

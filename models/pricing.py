"""What tokens cost, by the price list that ships with genai-prices; nothing is fetched."""

from __future__ import annotations

from decimal import ROUND_HALF_UP
from functools import lru_cache

from genai_prices import Usage, calc_price

MICRO = 1_000_000


def cost_microusd(model: str, *, input_tokens: int, output_tokens: int) -> int | None:
    """The price of one call in millionths of a dollar; None when the list does not know the model."""
    if not _is_listed(model):
        return None
    price = calc_price(Usage(input_tokens=input_tokens, output_tokens=output_tokens), model, provider_id="openai")
    return int((price.total_price * MICRO).to_integral_value(ROUND_HALF_UP))


@lru_cache(maxsize=1024)
def _is_listed(model: str) -> bool:
    try:
        calc_price(Usage(input_tokens=1, output_tokens=1), model, provider_id="openai")
    except LookupError:
        return False
    return True

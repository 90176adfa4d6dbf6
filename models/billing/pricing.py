"""Prices of calls: from the operator's price file, else from the list that ships with genai-prices. Nothing is downloaded."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from models.billing.money import MICRO_PER_USD
from models.config import price_file
from models.config.price_file import Price
from models.config.settings import settings
from models.content.token_estimate import MAX_GENERATED_IMAGE_TOKENS

log = logging.getLogger(__name__)

MTOK = 1_000_000


@cache
def load_price_list() -> Any:
    """The module of genai-prices. A late import: it takes a second and 66 MB, which an API process without budgets does not need."""
    return importlib.import_module("genai_prices")


def cost_microusd(model: str, *, input_tokens: int, output_tokens: int, images: int = 0) -> int | None:
    """The price of one call; None, with a warning, if it is unknown. A call without usage costs 0, whatever the model."""
    cost = _cost(model, input_tokens, output_tokens, images) if input_tokens or output_tokens or images else Decimal(0)
    if cost is None:
        _warn(model)
        return None
    return int((cost * MICRO_PER_USD).to_integral_value(ROUND_HALF_UP))


def max_microusd(model: str, *, input_tokens: int, output_tokens: int, images: int = 0) -> int | None:
    """The maximum price of a call, rounded up: its prompt, the longest reply and its images. None, with a warning, if it is unknown.

    An image without a price of its own counts as MAX_GENERATED_IMAGE_TOKENS.
    """
    own = _own(model)
    tokens = output_tokens + (images * MAX_GENERATED_IMAGE_TOKENS if own is None else 0)
    cost = _of(own, input_tokens, tokens, images) if own is not None else _listed(model, input_tokens, tokens)
    if cost is None:
        _warn(model)
        return None
    return int((cost * MICRO_PER_USD).to_integral_value(ROUND_CEILING))


def _cost(model: str, input_tokens: int, output_tokens: int, images: int) -> Decimal | None:
    own = _own(model)
    if own is not None:
        return _of(own, input_tokens, output_tokens, images)
    # The list has no prices of images: without a token count, images have no price.
    return None if images and not output_tokens else _listed(model, input_tokens, output_tokens)


def _of(price: Price, input_tokens: int, output_tokens: int, images: int) -> Decimal:
    return (price.input_per_mtok * input_tokens + price.output_per_mtok * output_tokens) / MTOK + price.per_image * images


def _listed(model: str, input_tokens: int, output_tokens: int) -> Decimal | None:
    flat = _flat(model)
    if flat is None:
        return None
    if isinstance(flat, Price):
        return _of(flat, input_tokens, output_tokens, 0)
    return Decimal(_calc(model, input_tokens, output_tokens).total_price)


@lru_cache(maxsize=1024)
def _flat(model: str) -> Price | str | None:
    """The cached price in the list, as a lookup takes 0.3 ms; `tiers`: the price depends on the amount; None: not listed."""
    try:
        priced = _calc(model, 1, 1).model_price
    except LookupError:
        return None
    input_price, output_price = priced.input_mtok or Decimal(0), priced.output_mtok or Decimal(0)
    return Price(input_price, output_price) if isinstance(input_price, Decimal) and isinstance(output_price, Decimal) else "tiers"


def _calc(model: str, input_tokens: int, output_tokens: int) -> Any:
    """The price by the list. Raises LookupError if the list does not have the model."""
    prices = load_price_list()
    return prices.calc_price(prices.Usage(input_tokens=input_tokens, output_tokens=output_tokens), model, provider_id="openai")


def _own(model: str) -> Price | None:
    path = settings().prices_file
    return _file(path).get(model) if path is not None else None


@lru_cache(maxsize=4)
def _file(path: Path) -> Mapping[str, Price]:
    """The price file, read once per process, as settings are."""
    return price_file.load_prices(path)


@lru_cache(maxsize=1024)
def _warn(model: str) -> None:
    """Logs a warning, once per model and process."""
    log.warning("no price is known for this model: its calls are charged 0; name it in NOWSERVING_PRICES_FILE", extra={"model": model})

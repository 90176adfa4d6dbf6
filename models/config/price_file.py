"""The operator's price file: JSON or TOML, from model to the prices of its tokens and images.

{"my-model": {"input_per_mtok": "0.50", "output_per_mtok": "1.50"}, "dall-e-3": {"per_image": "0.04"}}
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

FIELDS = ("input_per_mtok", "output_per_mtok", "per_image")
# A higher price is a typing error: the most expensive models cost a few hundred dollars per million tokens.
MAX_USD = 1_000_000


@dataclass(frozen=True)
class Price:
    """US dollars per million input tokens, per million output tokens, and per image."""

    input_per_mtok: Decimal = Decimal(0)
    output_per_mtok: Decimal = Decimal(0)
    per_image: Decimal = Decimal(0)


def load_prices(path: Path) -> Mapping[str, Price]:
    """The prices in this file. Raises ValueError, which names the file and the error."""
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the price file {path} cannot be read ({type(error).__name__})") from error
    try:
        table = tomllib.loads(content, parse_float=Decimal) if path.suffix == ".toml" else json.loads(content, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the price file {path} is not {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"the price file {path} is not a table of models")
    return {model: _price(model, fields) for model, fields in table.items()}


def _price(model: str, fields: object) -> Price:
    if not isinstance(fields, dict) or not fields or not fields.keys() <= set(FIELDS):
        raise ValueError(f"the price of {model!r} has one or more of {', '.join(FIELDS)}, and nothing else")
    return Price(**{name: _amount(f"{name} of {model!r}", amount) for name, amount in fields.items()})


def _amount(name: str, raw: object) -> Decimal:
    try:
        # A bool is an int, and no price.
        amount = Decimal(raw) if isinstance(raw, str | int | Decimal) and not isinstance(raw, bool) else None
    except InvalidOperation:
        amount = None
    if amount is None or not amount.is_finite() or not 0 <= amount <= MAX_USD:
        raise ValueError(f"{name} is not a price in US dollars: {str(raw)[:40]!r}")
    return amount

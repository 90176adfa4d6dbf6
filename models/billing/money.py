"""Money: parsing and formatting. Inside the system every amount is a whole number of micro-USD."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from models.platform.errors import Invalid

MICRO_PER_USD = 1_000_000
# More than any grant, and far from the range of a 64-bit sum.
MAX_USD = 1_000_000_000


def parse_usd(amount_text: str) -> int:
    """The micro-USD of an amount in US dollars, for example `20`, `0.5`, `-3.25`. Raises Invalid."""
    try:
        amount = Decimal(amount_text)
    except InvalidOperation:
        raise Invalid(f"{amount_text[:40]!r} is not an amount of US dollars. Write it as 20 or 0.50.", param="usd") from None
    if not amount.is_finite() or abs(amount) > MAX_USD:
        raise Invalid(f"An amount is a number of at most {MAX_USD:,} US dollars.", param="usd")
    if amount * MICRO_PER_USD % 1:
        raise Invalid("An amount has at most six digits behind its point: less than a millionth of a dollar is not kept.", param="usd")
    return int(amount * MICRO_PER_USD)


def to_usd(amount_microusd: int) -> float:
    """US dollars as a JSON number, for output only: never calculate with it."""
    return amount_microusd / MICRO_PER_USD


def format_usd(amount_microusd: int) -> str:
    """Formats an amount as `12.50` or `0.000068`: at least two decimal places, without further trailing zeros."""
    digits = f"{Decimal(amount_microusd) / MICRO_PER_USD:.6f}"
    return digits[:-4] + digits[-4:].rstrip("0")

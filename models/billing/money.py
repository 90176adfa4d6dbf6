"""Money is a whole number of millionths of a dollar (micro-USD), from where it is read to where it is shown."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from models.platform.errors import Invalid

MICRO_PER_USD = 1_000_000
# More than anybody grants, and far from where a sum of 64 bits ends.
MAX_USD = 1_000_000_000


def parse_usd(said: str) -> int:
    """Micro-USD of an amount as people write it: `20`, `0.5`, `-3.25`. Raises Invalid."""
    try:
        amount = Decimal(said)
    except InvalidOperation:
        raise Invalid(f"{said[:40]!r} is not an amount of US dollars. Write it as 20 or 0.50.", param="usd") from None
    if not amount.is_finite() or abs(amount) > MAX_USD:
        raise Invalid(f"An amount is a number of at most {MAX_USD:,} US dollars.", param="usd")
    if amount * MICRO_PER_USD % 1:
        raise Invalid("An amount has at most six digits behind its point: less than a millionth of a dollar is not kept.", param="usd")
    return int(amount * MICRO_PER_USD)


def to_usd(amount_microusd: int) -> float:
    """To be shown: JSON has no other number for it. Never to be reckoned with."""
    return amount_microusd / MICRO_PER_USD


def format_usd(amount_microusd: int) -> str:
    """`12.50` or `0.000068`: at least two digits behind the point, and all that are not zero."""
    whole = f"{Decimal(amount_microusd) / MICRO_PER_USD:.6f}"
    return whole[:-4] + whole[-4:].rstrip("0")

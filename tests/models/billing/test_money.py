"""Amounts: whole millionths of a dollar, read and shown without a float in between."""

from __future__ import annotations

import pytest

from models.billing import money
from models.platform.errors import Invalid


@pytest.mark.parametrize(
    ("result", "microusd"),
    [("20", 20_000_000), ("0.5", 500_000), ("-3.25", -3_250_000), ("0.000001", 1), ("1e3", 1_000_000_000), ("0.1", 100_000), ("0", 0)],
)
def test_an_amount_is_read_exactly(result: str, microusd: int) -> None:
    assert microusd == money.parse_usd(result)


@pytest.mark.parametrize("result", ["", "ten", "NaN", "-Infinity", "1e400", "0.0000001", "$5", "5 USD", "1,000", "1000000001", "9" * 5_000])
def test_invalid_amounts_are_refused(result: str) -> None:
    with pytest.raises(Invalid):
        money.parse_usd(result)


@pytest.mark.parametrize(
    ("microusd", "shown"), [(12_500_000, "12.50"), (68, "0.000068"), (-68, "-0.000068"), (0, "0.00"), (10**15 + 1, "1000000000.000001")]
)
def test_an_amount_is_shown_as_people_write_it(microusd: int, shown: str) -> None:
    assert shown == money.format_usd(microusd)

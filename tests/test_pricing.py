"""What a call costs, in millionths of a dollar."""

from __future__ import annotations

import pytest

from models import pricing


def test_tokens_cost_what_the_list_says() -> None:
    assert 2_500_000 == pricing.cost_microusd("gpt-4o", input_tokens=1_000_000, output_tokens=0)
    assert 10_000_000 == pricing.cost_microusd("gpt-4o", input_tokens=0, output_tokens=1_000_000)


def test_a_dated_name_costs_what_its_model_costs() -> None:
    assert pricing.cost_microusd("gpt-4o-mini", input_tokens=1_000, output_tokens=10) == pricing.cost_microusd(
        "gpt-4o-mini-2024-07-18", input_tokens=1_000, output_tokens=10
    )


def test_a_price_is_a_whole_number_rounded_half_up() -> None:
    assert 3 == pricing.cost_microusd("gpt-4o", input_tokens=1, output_tokens=0)


def test_nothing_costs_nothing() -> None:
    assert 0 == pricing.cost_microusd("gpt-4o", input_tokens=0, output_tokens=0)


@pytest.mark.parametrize("model", ["no-such-model", "", "модель", "gpt-4o\x00", "x" * 10_000, "claude-sonnet-4"])
def test_an_unknown_model_has_no_price(model: str) -> None:
    assert pricing.cost_microusd(model, input_tokens=1, output_tokens=1) is None


@pytest.mark.parametrize("tokens", [2**31 - 1, 200_000])
def test_any_count_of_tokens_has_a_price(tokens: int) -> None:
    cost = pricing.cost_microusd("gpt-4o", input_tokens=tokens, output_tokens=tokens)

    assert cost is not None
    assert 0 < cost < 2**63

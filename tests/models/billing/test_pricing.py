"""Cost of a call, in millionths of a dollar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.billing import pricing
from models.config.settings import Settings


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    pricing._warn.cache_clear()


@pytest.fixture
def prices_are(override: Callable[..., None], tmp_path: Path) -> Callable[..., None]:
    def write(content: str, *, name: str = "prices.json") -> None:
        (tmp_path / name).write_text(content, encoding="utf-8")
        pricing._file.cache_clear()
        override(prices_file=tmp_path / name)

    return write


def test_tokens_cost_their_list_price() -> None:
    assert 2_500_000 == pricing.cost_microusd("gpt-4o", input_tokens=1_000_000, output_tokens=0)
    assert 10_000_000 == pricing.cost_microusd("gpt-4o", input_tokens=0, output_tokens=1_000_000)


def test_dated_model_name_has_its_models_price() -> None:
    assert pricing.cost_microusd("gpt-4o-mini", input_tokens=1_000, output_tokens=10) == pricing.cost_microusd(
        "gpt-4o-mini-2024-07-18", input_tokens=1_000, output_tokens=10
    )


def test_a_price_is_a_whole_number_rounded_half_up() -> None:
    assert 3 == pricing.cost_microusd("gpt-4o", input_tokens=1, output_tokens=0)


@pytest.mark.parametrize("model", ["gpt-4o", "no-such-model"])
def test_nothing_costs_nothing(model: str) -> None:
    assert 0 == pricing.cost_microusd(model, input_tokens=0, output_tokens=0)


@pytest.mark.parametrize("model", ["no-such-model", "", "модель", "gpt-4o\x00", "x" * 10_000, "claude-sonnet-4"])
def test_an_unknown_model_has_no_price(model: str) -> None:
    assert pricing.cost_microusd(model, input_tokens=1, output_tokens=1) is None


@pytest.mark.parametrize("tokens", [2**31 - 1, 200_000])
def test_any_count_of_tokens_has_a_price(tokens: int) -> None:
    cost = pricing.cost_microusd("gpt-4o", input_tokens=tokens, output_tokens=tokens)

    assert cost is not None
    assert 0 < cost < 2**63


def test_a_picture_without_a_price_has_none() -> None:
    assert pricing.cost_microusd("dall-e-3", input_tokens=0, output_tokens=0, images=1) is None
    assert pricing.max_microusd("dall-e-3", input_tokens=10, output_tokens=0, images=1) is None


def test_a_picture_that_is_paid_for_in_tokens_reserves_the_dearest() -> None:
    """gpt-image-1: 5 USD for a million tokens in, 40 out; 6,240 tokens are its largest picture at its best quality."""
    assert 2 * 249_600 + 50 == pricing.max_microusd("gpt-image-1", input_tokens=10, output_tokens=0, images=2)
    assert 42_250 == pricing.cost_microusd("gpt-image-1", input_tokens=50, output_tokens=1_050, images=1)


@pytest.mark.parametrize("tokens", [1, 100, 272_000, 272_001, 10**6])
@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5.4", "gpt-image-1"])
def test_charge_never_exceeds_the_largest_amount(model: str, tokens: int) -> None:
    cost = pricing.cost_microusd(model, input_tokens=tokens, output_tokens=7)
    most = pricing.max_microusd(model, input_tokens=tokens, output_tokens=7)

    assert cost is not None and most is not None
    assert cost <= most <= cost + 1


# The operator's own


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prices.json", '{"mine": {"input_per_mtok": "0.50", "output_per_mtok": 1.5, "per_image": "0.04"}}'),
        ("prices.toml", '[mine]\ninput_per_mtok = "0.50"\noutput_per_mtok = 1.5\nper_image = "0.04"'),
    ],
)
def test_a_file_names_prices(prices_are: Callable[..., None], name: str, content: str) -> None:
    prices_are(content, name=name)

    assert 500_000 + 150 == pricing.cost_microusd("mine", input_tokens=10**6, output_tokens=100)
    assert 120_000 == pricing.cost_microusd("mine", input_tokens=0, output_tokens=0, images=3)
    assert 80_001 == pricing.max_microusd("mine", input_tokens=1, output_tokens=0, images=2)


def test_a_file_beats_the_list_and_leaves_the_rest_of_it(prices_are: Callable[..., None]) -> None:
    prices_are('{"gpt-4o": {"input_per_mtok": "99"}}')

    assert 99 == pricing.cost_microusd("gpt-4o", input_tokens=1, output_tokens=1)
    assert 750 == pricing.cost_microusd("gpt-4o-mini", input_tokens=1_000, output_tokens=1_000)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"), ("[]", "is not a table"), ('{"m": 3}', "'m' has one or more of"), ('{"m": {}}', "'m' has one or more of"),
        ('{"m": {"per_mtok": 1}}', "and nothing else"), ('{"m": {"per_image": "x"}}', "per_image of 'm' is not a price"),
        ('{"m": {"per_image": -1}}', "is not a price"), ('{"m": {"per_image": true}}', "is not a price"),
        ('{"m": {"per_image": "NaN"}}', "is not a price"), ('{"m": {"per_image": NaN}}', "is not a price"),
        ('{"m": {"per_image": 1e300}}', "is not a price"), ('{"m": {"per_image": null}}', "is not a price"),
    ],
)  # fmt: skip
def test_a_wrong_price_file_stops_the_start(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "prices.json").write_text(content)
    with pytest.raises(ValidationError, match=says):
        Settings(prices_file=tmp_path / "prices.json")


def test_a_missing_price_file_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="cannot be read"):
        Settings(prices_file=tmp_path / "none.toml")
    assert Settings(prices_file="").prices_file is None


def test_an_unknown_model_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for model in ("mystery", "mystery", "riddle"):
            pricing.cost_microusd(model, input_tokens=1, output_tokens=1)
            pricing.max_microusd(model, input_tokens=1, output_tokens=1)

    assert ["mystery", "riddle"] == [record.__dict__["model"] for record in caplog.records]

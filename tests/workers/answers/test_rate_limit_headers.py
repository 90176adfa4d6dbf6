"""Rate-limit headers of upstreams: valid and invalid values."""

from __future__ import annotations

import pytest

from workers.answers import rate_limit_headers
from workers.answers.rate_limit_headers import DAY_MS, MAX_PAUSE_MS, RateLimitHeaders

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1s", 1_000), ("6m0s", 360_000), ("12ms", 12), ("1.5s", 1_500), ("1h2m3s", 3_723_000), ("0.3ms", 1), ("7µs", 1), ("24h", DAY_MS),
        ("", None), (None, None), ("0s", None), ("-1s", None), ("1", None), ("1d", None), ("s", None), ("24h1ms", None), ("1s junk", None),
        ("1e3s", None), ("9" * 400 + "s", None),
    ],
)  # fmt: skip
def test_durations_are_whole_milliseconds_rounded_up(text: str | None, ms: int | None) -> None:
    assert ms == rate_limit_headers.duration_ms(text)


def test_limits_and_resets_are_read_together() -> None:
    result = {
        "x-ratelimit-limit-requests": "500", "x-ratelimit-limit-tokens": "30000",
        "x-ratelimit-reset-requests": "120ms", "x-ratelimit-reset-tokens": "6s",
    }  # fmt: skip

    assert RateLimitHeaders(500, 30_000, 120, 6_000) == rate_limit_headers.parse_headers(result)


def test_a_limit_that_takes_longer_than_a_minute_to_refill_is_not_one_per_minute() -> None:
    free_tier = {
        "x-ratelimit-limit-requests": "200", "x-ratelimit-reset-requests": "7m12s",
        "x-ratelimit-limit-tokens": "30000", "x-ratelimit-reset-tokens": "1m0s",
    }  # fmt: skip

    assert RateLimitHeaders(limit_tokens=30_000, reset_tokens_ms=60_000) == rate_limit_headers.parse_headers(free_tier)
    assert RateLimitHeaders() == rate_limit_headers.parse_headers(
        {"x-ratelimit-limit-tokens": "100000", "x-ratelimit-reset-tokens": "23h59m0s"}
    )


@pytest.mark.parametrize("nonsense", ["-1", "0", "", "many", "1.5", "99999999999", "²", " 5", "9" * 5_000])
def test_a_limit_that_is_none_is_not_learned(nonsense: str) -> None:
    assert RateLimitHeaders() == rate_limit_headers.parse_headers(
        {"x-ratelimit-limit-requests": nonsense, "x-ratelimit-limit-tokens": nonsense}
    )


def test_no_headers_say_nothing() -> None:
    assert RateLimitHeaders() == rate_limit_headers.parse_headers({})


@pytest.mark.parametrize(
    ("result", "ms"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1_500), ({"retry-after": "2"}, 2_000), ({"retry-after": " 2.5 "}, 2_500),
        ({"retry-after": "0"}, None), ({"retry-after": "999999"}, MAX_PAUSE_MS),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}, 30_000),
        ({"retry-after": "Wed, 31 Dec 2025 23:00:00 GMT"}, None), ({"retry-after-ms": "soon", "retry-after": "3"}, 3_000),
        ({"retry-after": "soon"}, None), ({"retry-after": "-5"}, None), ({}, None),
        ({"retry-after": "9" * 400}, MAX_PAUSE_MS), ({"retry-after": "Thu, 01 Jan 99999 00:00:30 GMT"}, None),
    ],
)  # fmt: skip
def test_how_long_to_stay_away(result: dict[str, str], ms: int | None) -> None:
    assert ms == rate_limit_headers.retry_after_ms(result, now=NOW)


def test_reset_of_a_fixed_window_is_read_with_the_remaining_units() -> None:
    window = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "594", "x-ratelimit-reset-requests": "59s"}
    bucket = {"x-ratelimit-limit-requests": "5000", "x-ratelimit-remaining-requests": "4999", "x-ratelimit-reset-requests": "12ms"}

    assert 600 == rate_limit_headers.parse_headers(window).reset_requests_ms
    assert 12 == rate_limit_headers.parse_headers(bucket).reset_requests_ms

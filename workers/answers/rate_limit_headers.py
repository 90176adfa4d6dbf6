"""Parses the rate-limit headers of an answer: x-ratelimit-*, retry-after."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

MINUTE_MS = 60_000
DAY_MS = 86_400_000
MAX_PAUSE_MS = 15 * 60_000
_UNITS_MS = {"h": 3_600_000.0, "m": 60_000.0, "s": 1_000.0, "ms": 1.0, "us": 0.001, "µs": 0.001, "ns": 0.000001}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)")


@dataclass(frozen=True)
class RateLimitHeaders:
    """Limits per minute and the time until they reset; None for missing or unusable values (Azure sends -1 and 0)."""

    limit_requests: int | None = None
    limit_tokens: int | None = None
    reset_requests_ms: int | None = None
    reset_tokens_ms: int | None = None

    def resets_only(self) -> RateLimitHeaders:
        """Without the limits: those in a refusal are not reliable, but its resets are."""
        return replace(self, limit_requests=None, limit_tokens=None)


NO_RATE_LIMITS = RateLimitHeaders()


def parse_headers(headers: Mapping[str, str]) -> RateLimitHeaders:
    """Parses OpenAI's x-ratelimit headers. headers: names in lower case."""
    limit_requests, reset_requests_ms = _per_minute(headers, "requests")
    limit_tokens, reset_tokens_ms = _per_minute(headers, "tokens")
    return RateLimitHeaders(limit_requests, limit_tokens, reset_requests_ms, reset_tokens_ms)


def duration_ms(text: str | None) -> int | None:
    """`6m0s`, `12ms`, `1.5s` in milliseconds, rounded up; None for anything else, and for more than a day."""
    if not text or _DURATION.sub("", text):
        return None
    total = sum(float(number) * _UNITS_MS[unit] for number, unit in _DURATION.findall(text))
    return -int(-total // 1) if 0 < total <= DAY_MS else None


def retry_after_ms(headers: Mapping[str, str], *, now: float | None = None, max_ms: int = MAX_PAUSE_MS) -> int | None:
    """The pause in retry-after-ms, or else in retry-after, in seconds or as a date; at most `max_ms`.

    None for a missing, malformed, zero, negative or past value.
    """
    for name, factor in (("retry-after-ms", 1.0), ("retry-after", 1000.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0:
            return _pause_ms(float(text) * factor, max_ms)
    parsed = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if parsed is None:
        return None
    try:
        until = email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError):
        return None  # not a valid date
    left_s = until - (time.time() if now is None else now)
    return _pause_ms(left_s * 1000, max_ms) if left_s > 0 else None


def pause_ms(headers: Mapping[str, str], *, now: float | None = None) -> int | None:
    """The pause that a refusal for load asks for: Retry-After, or the reset of a limit that is used up.

    A reset beyond a minute belongs to a limit per hour or day: the longer of the two applies. A limit per minute serves the next call long
    before its reset, so there Retry-After applies where it is given.
    """
    retry_after = retry_after_ms(headers, now=now)
    resets = [reset for unit in ("requests", "tokens") if (reset := _refused_reset_ms(headers, unit)) is not None]
    longest = max(resets, default=None)
    if longest is None or (retry_after is not None and longest <= MINUTE_MS):
        return retry_after
    return max(longest, retry_after or 0)


def _refused_reset_ms(headers: Mapping[str, str], unit: str) -> int | None:
    if _count(headers.get(f"x-ratelimit-remaining-{unit}")) != 0:
        return None
    text = headers.get(f"x-ratelimit-reset-{unit}", "").strip()
    if re.fullmatch(r"\d{1,5}(\.\d+)?", text):
        return _pause_ms(float(text) * 1000, DAY_MS) if float(text) > 0 else None
    return duration_ms(text)


def _pause_ms(pause_ms: float, max_ms: int) -> int:
    return int(max(100, min(max_ms, pause_ms)))


def _per_minute(headers: Mapping[str, str], unit: str) -> tuple[int | None, int | None]:
    limit, reset_ms = _positive(headers.get(f"x-ratelimit-limit-{unit}")), duration_ms(headers.get(f"x-ratelimit-reset-{unit}"))
    # A limit per minute resets within a minute. A longer reset belongs to a limit per day (free tier: 200 requests, 7m12s each), which
    # would be 1,440 times too loose as a limit per minute.
    if reset_ms is not None and reset_ms > MINUTE_MS:
        return None, None
    # Other servers' resets may mean "until the window ends", which does not depend on the use. The remaining amount does, and for
    # OpenAI's own limits both give the same time.
    left = _count(headers.get(f"x-ratelimit-remaining-{unit}"))
    if limit is not None and reset_ms is not None and left is not None:
        reset_ms = min(reset_ms, -(-max(0, limit - left) * MINUTE_MS // limit))
    return limit, reset_ms or None


def _positive(text: str | None) -> int | None:
    return _count(text) or None


def _count(text: str | None) -> int | None:
    # The length is checked first, because int() rejects thousands of digits.
    return int(text) if text and len(text) <= 10 and text.isascii() and text.isdigit() and int(text) < 2**31 else None

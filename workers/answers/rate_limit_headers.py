"""What an upstream's answer says about its limits: x-ratelimit-*, retry-after."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

MINUTE_MS = 60_000
DAY_MS = 86_400_000
PAUSE_MOST_MS = 15 * 60_000
_UNITS_MS = {"h": 3_600_000.0, "m": 60_000.0, "s": 1_000.0, "ms": 1.0, "us": 0.001, "µs": 0.001, "ns": 0.000001}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)")


@dataclass(frozen=True)
class RateLimitHeaders:
    """Limits per minute and the time until they are whole again; None where nothing sensible was said (Azure sends -1 and 0)."""

    limit_requests: int | None = None
    limit_tokens: int | None = None
    reset_requests_ms: int | None = None
    reset_tokens_ms: int | None = None

    def resets_only(self) -> RateLimitHeaders:
        """Only an answer that served states limits; the resets of a refusal hold."""
        return replace(self, limit_requests=None, limit_tokens=None)


NO_RATE_LIMITS = RateLimitHeaders()


def parse_headers(headers: Mapping[str, str]) -> RateLimitHeaders:
    """The x-ratelimit headers of OpenAI. headers: names in lower case."""
    limit_requests, reset_requests_ms = _per_minute(headers, "requests")
    limit_tokens, reset_tokens_ms = _per_minute(headers, "tokens")
    return RateLimitHeaders(limit_requests, limit_tokens, reset_requests_ms, reset_tokens_ms)


def duration_ms(text: str | None) -> int | None:
    """`6m0s`, `12ms`, `1.5s` in milliseconds, rounded up; None for anything else, and for more than a day."""
    if not text or _DURATION.sub("", text):
        return None
    total = sum(float(number) * _UNITS_MS[unit] for number, unit in _DURATION.findall(text))
    return -int(-total // 1) if 0 < total <= DAY_MS else None


def retry_after_ms(headers: Mapping[str, str], *, now: float | None = None, most_ms: int = PAUSE_MOST_MS) -> int | None:
    """How long to stay away: retry-after-ms, else retry-after in seconds or as a date; at most `most_ms`.

    None where neither says so: missing, unreadable, 0, negative or past.
    """
    for name, factor in (("retry-after-ms", 1.0), ("retry-after", 1000.0)):
        text = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0:
            return _pause_ms(float(text) * factor, most_ms)
    parsed = email.utils.parsedate_tz(headers.get("retry-after", ""))
    if parsed is None:
        return None
    try:
        until = email.utils.mktime_tz(parsed)
    except (ValueError, OverflowError):
        return None  # a date that no calendar has
    left_s = until - (time.time() if now is None else now)
    return _pause_ms(left_s * 1000, most_ms) if left_s > 0 else None


def pause_ms(headers: Mapping[str, str], *, now: float | None = None) -> int | None:
    """How long a refusal for load asks to stay away: Retry-After, or the reset of a limit that is used up where that counts more.

    A reset beyond a minute belongs to a limit per hour or day: it is believed where it is longer. A bucket of a minute serves the next call
    long before its reset, so there Retry-After wins where it is told.
    """
    told = retry_after_ms(headers, now=now)
    resets = [reset for unit in ("requests", "tokens") if (reset := _refused_reset_ms(headers, unit)) is not None]
    longest = max(resets, default=None)
    if longest is None or (told is not None and longest <= MINUTE_MS):
        return told
    return max(longest, told or 0)


def _refused_reset_ms(headers: Mapping[str, str], unit: str) -> int | None:
    if _count(headers.get(f"x-ratelimit-remaining-{unit}")) != 0:
        return None
    text = headers.get(f"x-ratelimit-reset-{unit}", "").strip()
    if re.fullmatch(r"\d{1,5}(\.\d+)?", text):
        return _pause_ms(float(text) * 1000, DAY_MS) if float(text) > 0 else None
    return duration_ms(text)


def _pause_ms(told: float, most_ms: int) -> int:
    return int(max(100, min(most_ms, told)))


def _per_minute(headers: Mapping[str, str], unit: str) -> tuple[int | None, int | None]:
    limit, reset_ms = _positive(headers.get(f"x-ratelimit-limit-{unit}")), duration_ms(headers.get(f"x-ratelimit-reset-{unit}"))
    # A minute's bucket is whole again within a minute. What takes longer is a limit per day (free tier: 200 requests, 7m12s each):
    # taken for one per minute it would be 1,440 times too loose.
    if reset_ms is not None and reset_ms > MINUTE_MS:
        return None, None
    # Elsewhere a reset may mean "until the window ends", which says nothing of how much is used. What remains does, and of
    # OpenAI's own buckets the two say the same.
    left = _count(headers.get(f"x-ratelimit-remaining-{unit}"))
    if limit is not None and reset_ms is not None and left is not None:
        reset_ms = min(reset_ms, -(-max(0, limit - left) * MINUTE_MS // limit))
    return limit, reset_ms or None


def _positive(text: str | None) -> int | None:
    return _count(text) or None


def _count(text: str | None) -> int | None:
    # By its length first: int() refuses thousands of digits.
    return int(text) if text and len(text) <= 10 and text.isascii() and text.isdigit() and int(text) < 2**31 else None

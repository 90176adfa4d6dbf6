"""The limits of one key: remaining capacity, retry time of a refused call, and the x-ratelimit headers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tests.upstream.meters import Bucket, Meter, Window

DAY_S = 86_400
NAMES = {
    "rpm": "requests per min (RPM)", "tpm": "tokens per min (TPM)", "ipm": "images per min (IPM)", "rpd": "requests per day (RPD)",
    "in_flight": "concurrent requests",
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Limits set by the control API. limits: by rpm, tpm, ipm, rpd, in_flight; a minute lasts window_s.

    count_refused: whether a refused call uses up a request; None: depends on the mode (bucket yes, window no).
    per_model: each model has the limits for itself, as at OpenAI; otherwise all models of the key share them.
    """

    limits: dict[str, int] = field(default_factory=dict)
    mode: str = "bucket"
    window_s: float = 60
    count_refused: bool | None = None
    hide_headers: bool = False
    per_model: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.limits) - set(NAMES):
            raise ValueError(f"unknown limits {sorted(unknown)}, there are {sorted(NAMES)}")
        if self.mode not in ("bucket", "window"):
            raise ValueError(f"mode is bucket or window, not {self.mode!r}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused call. retry_after_s: None when waiting does not help, because the call alone exceeds the limit."""

    name: str
    limit: int
    used: int
    requested: int
    retry_after_s: float | None


class Limits:
    """The meters of one key, or of one of its models. A call is charged to all of them or to none."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.in_flight = 0
        kind = Bucket if rule.mode == "bucket" else Window
        periods_s = {"rpm": rule.window_s, "tpm": rule.window_s, "ipm": rule.window_s, "rpd": DAY_S}
        self._meters: dict[str, Meter] = {name: kind(rule.limits[name], periods_s[name]) for name in periods_s if name in rule.limits}

    def admit(self, now: float, *, tokens: int, images: int) -> Refusal | None:
        """Charge the call, or refuse it by the limit with the longest wait. The end of an admitted call is `in_flight -= 1`."""
        amounts = {"rpm": 1, "rpd": 1, "tpm": tokens, "ipm": images}
        refusal = self._refusal(amounts, now)
        if refusal is None:
            self.in_flight += 1
            for name, meter in self._meters.items():
                meter.take(amounts[name], now)
            return None
        counts = self.rule.count_refused if self.rule.count_refused is not None else self.rule.mode == "bucket"
        if not counts:
            return refusal
        for name in {"rpm", "rpd"} & set(self._meters):
            self._meters[name].take(1, now)
        return self._refusal(amounts, now)  # the refused request itself lengthens the wait

    def _refusal(self, amounts: dict[str, int], now: float) -> Refusal | None:
        worst: Refusal | None = None
        for name, meter in self._meters.items():
            amount = amounts[name]
            if amount > meter.limit:
                return Refusal(name, meter.limit, int(meter.used(now)), amount, None)
            wait_s = meter.wait_s(amount, now)
            if wait_s and (worst is None or wait_s > (worst.retry_after_s or 0)):
                worst = Refusal(name, meter.limit, math.ceil(meter.used(now)), amount, wait_s)
        most = self.rule.limits.get("in_flight")
        if worst is None and most is not None and self.in_flight >= most:
            return Refusal("in_flight", most, self.in_flight, 1, 1.0)
        return worst

    def headers(self, now: float) -> str:
        """The x-ratelimit lines of requests and tokens, where they are limited."""
        if self.rule.hide_headers:
            return ""
        lines = []
        for name, unit in (("rpm", "requests"), ("tpm", "tokens")):
            if meter := self._meters.get(name):
                remaining, reset = int(meter.limit - meter.used(now)), duration(meter.reset_s(now))
                lines.append(
                    f"x-ratelimit-limit-{unit}: {meter.limit}\r\nx-ratelimit-remaining-{unit}: {max(0, remaining)}\r\n"
                    f"x-ratelimit-reset-{unit}: {reset}\r\n"
                )
        return "".join(lines)


def duration(seconds: float) -> str:
    """Format seconds as Go does: 0s, 12ms, 1s, 8.64s, 6m0s, 23h59m51s. Rounded up to a millisecond."""
    millis = math.ceil(seconds * 1000 - 1e-6)
    if millis < 1000:
        return f"{millis}ms" if millis > 0 else "0s"
    minutes, millis = divmod(millis, 60_000)
    tail = f"{millis / 1000:g}s" if millis % 1000 == 0 else f"{millis / 1000:.3f}".rstrip("0") + "s"
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else "") + tail

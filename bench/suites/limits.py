"""Limits suite: the share of a limit that a queue which never empties uses, without a single 429."""

from __future__ import annotations

import time
from typing import Any

from bench.measure import load
from bench.measure.figure import Figure, at_least, at_most
from bench.measure.load import Wanted
from bench.measure.stack import Caller, Stack
from models.keys.keys import Limits

TITLE = "Use of limits"
RPM = 600
TPM = 60_000
TOKENS = 500
USED_LEAST = 0.98
# No window of a minute may hold more, wherever it begins; harder to please than OpenAI's bucket, and it says nothing beforehand.
EXACT = {"mode": "window", "hide_headers": True}
PROMPT = "Say hello."
# The upstream charges these for our prompt; the rest of a job's tokens are its reply.
PROMPT_TOKENS = -(-len(PROMPT) // 4) + 4


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """Three keys at once: one bound by requests, one by tokens, one whose limit only the upstream knows."""
    stack.serve()
    seconds = 30 if short else 120
    by_requests = _saturate(stack, "sk-rpm", Limits(rpm=RPM), seconds=seconds, upstream={"rpm": RPM, **EXACT})
    by_tokens = _saturate(stack, "sk-tpm", Limits(tpm=TPM), seconds=seconds, upstream={"tpm": TPM, **EXACT}, tokens=TOKENS)
    unknown = _saturate(stack, "sk-unknown", Limits(), seconds=seconds, upstream={"rpm": RPM, "mode": "bucket"})
    time.sleep(seconds + 3)
    stack.clear()
    return [
        *_figures(stack, by_requests, f"{RPM} requests/min, exact window", per_s=RPM / 60, seconds=seconds),
        *_figures(stack, by_tokens, f"{TPM:,} tokens/min, exact window", per_s=TPM / TOKENS / 60, seconds=seconds),
        *_figures(stack, unknown, f"unknown, learned from headers ({RPM}/min)", per_s=RPM / 60, seconds=seconds),
    ]


def _saturate(stack: Stack, token: str, limits: Limits, *, seconds: int, upstream: dict[str, Any], tokens: int = 100) -> Caller:
    caller = stack.caller(token, limits)
    stack.upstream.limit(token, **upstream)
    jobs = int((seconds + 10) * RPM / 60 * 1.1)
    load.submit(Wanted(stack.port, token, jobs=jobs, users=20, prompt=PROMPT, max_tokens=tokens - PROMPT_TOKENS))
    return caller


def _figures(stack: Stack, caller: Caller, how: str, *, per_s: float, seconds: int) -> list[Figure]:
    calls = stack.upstream.calls(key=caller.token)
    first = min(call.at for call in calls)
    within = [call for call in calls if call.at < first + seconds]
    note = f"{how}; {len(within)} calls in {seconds} s"
    return [
        at_least("limit used", 100 * len(within) / (per_s * seconds), USED_LEAST * 100, unit="%", note=note),
        at_most("429s", sum(call.is_refused for call in within), 0, unit="", note=how),
    ]

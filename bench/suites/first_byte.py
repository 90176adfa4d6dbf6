"""Latency that the queue adds to a stream's first chunk on an idle stack."""

from __future__ import annotations

import http.client
import json
import time

from bench.measure.figure import Figure, at_most, quantile, reported
from bench.measure.load import CHAT
from bench.measure.stack import MODEL, Stack
from models.keys.keys import Limits

TITLE = "First chunk of a stream"
ADDED_P50_MS = 40
WARM = 5
PAUSE_S = 0.05


def run(stack: Stack, *, short: bool) -> list[Figure]:
    """One stream after another into an idle stack, in turn through us and straight from the upstream."""
    stack.serve()
    caller = stack.caller("sk-first-byte", Limits(max_in_flight=8))
    streams = 30 if short else 100
    ours, direct = [], []
    for _ in range(streams + WARM):
        ours.append(_first_chunk_s(stack.port, caller.token))
        direct.append(_first_chunk_s(stack.upstream.port, caller.token))
        time.sleep(PAUSE_S)
    through, alone = (sorted(one[WARM:]) for one in (ours, direct))
    how = f"{streams} streams; comments do not count"
    return [
        reported("first chunk, p50 / p95, straight from the upstream", _ms(alone), note=how),
        reported("first chunk, p50 / p95, ours", _ms(through), note=how),
        at_most("added to the first chunk, p50", (quantile(through, 0.5) - quantile(alone, 0.5)) * 1000, ADDED_P50_MS, unit="ms", note=how),
    ]


def _first_chunk_s(port: int, token: str) -> float:
    """Seconds from the request to the first event with data; the stream is then read to its end."""
    asked = {"model": MODEL, "stream": True, "max_tokens": 100, "messages": [{"role": "user", "content": "Say hello."}]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    began = time.perf_counter()
    connection.request("POST", CHAT, json.dumps(asked), {"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    response = connection.getresponse()
    while not (line := response.readline()).startswith(b"data:"):
        if not line:
            raise RuntimeError(f"no chunk came: HTTP {response.status}")
    took_s = time.perf_counter() - began
    rest = response.read()
    connection.close()
    if not rest.endswith(b"data: [DONE]\n\n"):
        raise RuntimeError(f"the stream broke off: {rest[-200:]!r}")
    return took_s


def _ms(took_s: list[float]) -> str:
    return " / ".join(f"{quantile(took_s, share) * 1000:.1f}" for share in (0.5, 0.95)) + " ms"

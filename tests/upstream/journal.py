"""Journal of all calls, recorded before they are answered, and statistics."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any

OPEN, HANG, RESET, CUT, ERROR, GONE = "open", "hang", "reset", "cut", "error", "client_gone"
TEXT_CHARS = 4096  # characters of the prompt that are kept


@dataclass(slots=True)
class Call:
    """One call.

    outcome: open, a status such as "200", hang, reset, cut, error (in a stream) or client_gone. in_flight_at_start:
    without this call. before: role and text of each message before the last one of a chat.
    """

    n: int
    at: float
    key: str
    model: str
    path: str
    text: str
    headers: dict[str, str]
    tokens: int
    images: int
    is_stream: bool
    in_flight_at_start: int
    request_id: str
    is_refused: bool = False
    behaviour: str = ""
    before: list[list[str]] = field(default_factory=list)
    outcome: str = OPEN
    ended_at: float | None = None
    query: str = ""
    connection: int = 0  # calls with the same number used the same connection


FIELDS = tuple(each.name for each in fields(Call))


class Span:
    """The maximum of requests, tokens and images in any window of `window_s`."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, int, int]] = deque()
        self._tokens = self._images = 0
        self.most = {"requests": 0, "tokens": 0, "images": 0}

    def add(self, call: Call, *, now: float, window_s: float) -> None:
        self._entries.append((now, call.tokens, call.images))
        self._tokens += call.tokens
        self._images += call.images
        while now - self._entries[0][0] >= window_s:
            _, tokens, images = self._entries.popleft()
            self._tokens -= tokens
            self._images -= images
        most = self.most
        most["requests"] = max(most["requests"], len(self._entries))
        most["tokens"] = max(most["tokens"], self._tokens)
        most["images"] = max(most["images"], self._images)


@dataclass(slots=True)
class Tally:
    """Statistics of one key, or of all.

    refused: calls over the limits. max_window counts admitted calls, max_window_sent all calls.
    """

    window_s: float
    calls: int = 0
    refused: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    sent: Span = field(default_factory=Span)
    admitted: Span = field(default_factory=Span)

    def begin(self, call: Call, *, now: float) -> None:
        self.calls += 1
        self.sent.add(call, now=now, window_s=self.window_s)
        if call.is_refused:
            self.refused += 1
        else:
            self.admitted.add(call, now=now, window_s=self.window_s)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)

    def end(self, call: Call) -> None:
        self.in_flight -= 1
        self.outcomes[call.outcome] += 1

    def view(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("calls", "refused", "in_flight", "max_in_flight", "window_s")}
        return counts | {"outcomes": dict(self.outcomes), "max_window": self.admitted.most, "max_window_sent": self.sent.most}


class Journal:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._window_s = 60.0
        self._all = Tally(self._window_s)
        self._keys: dict[str, Tally] = {}

    def tally(self, key: str) -> Tally:
        found = self._keys.get(key)
        if found is None:
            found = self._keys[key] = Tally(self._window_s)
        return found

    def measure_in(self, window_s: float, *, key: str | None) -> None:
        """Set the window length of the maxima, for one key or for all."""
        if key is not None:
            self.tally(key).window_s = window_s
            return
        self._window_s = window_s
        for tally in (self._all, *self._keys.values()):
            tally.window_s = window_s

    def begin(self, call: Call, *, now: float) -> None:
        """Record a call. now: the clock of the limits, so that both use the same windows."""
        self.calls.append(call)
        self._all.begin(call, now=now)
        self.tally(call.key).begin(call, now=now)

    def end(self, call: Call, outcome: str) -> bool:
        """Record the outcome. Returns False, and changes nothing, if the call has ended already."""
        if call.ended_at is not None:
            return False
        call.outcome = outcome
        call.ended_at = time.time()
        self._all.end(call)
        self.tally(call.key).end(call)
        return True

    def find(self, *, since: int = 0, key: str | None = None, outcome: str | None = None) -> list[dict[str, Any]]:
        """Calls by key and outcome. since: the first call number, counted from 0."""
        found = (call for call in self.calls[since:] if key in (None, call.key) and outcome in (None, call.outcome))
        return [{name: getattr(call, name) for name in FIELDS} for call in found]

    def view(self) -> dict[str, Any]:
        return {"all": self._all.view(), "keys": {key: tally.view() for key, tally in self._keys.items()}}


@lru_cache(maxsize=65_536)
def fingerprint(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]

"""Control API under /_fake/: tests set behaviours and limits, release held calls, and read the journal."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.upstream.answer import Answer, JsonObject, plain
from tests.upstream.ask import body_of
from tests.upstream.behaviour import Scripts
from tests.upstream.faults import Held
from tests.upstream.journal import Journal, fingerprint
from tests.upstream.limits import Limits, Rule
from tests.upstream.wire import Request

ANY = "*"


@dataclass
class State:
    """All state that `reset` clears."""

    journal: Journal = field(default_factory=Journal)
    scripts: Scripts = field(default_factory=Scripts)
    held: Held = field(default_factory=Held)
    rules: dict[tuple[str, str], Rule] = field(default_factory=dict)
    limits: dict[tuple[str, str], Limits | None] = field(default_factory=dict)

    def limits_of(self, key: str, model: str) -> Limits | None:
        """The meters of this call: those of key and model, of the key, of the model, or of all."""
        if not self.rules:
            return None
        if (key, model) not in self.limits:
            self.limits[key, model] = self._find(key, model)
        return self.limits[key, model]

    def _find(self, key: str, model: str) -> Limits | None:
        for place in ((key, model), (key, ANY), (ANY, model), (ANY, ANY)):
            if rule := self.rules.get(place):
                if rule.per_model or place[1] != ANY:
                    return Limits(rule)
                shared = self.limits[key, ANY] = self.limits.get((key, ANY)) or Limits(rule)
                return shared
        return None

    def configure(self, key: str, given: dict[str, Any]) -> None:
        """Change the given options only.

        A changed rule begins with unused meters. Raises ValueError and TypeError on unknown options.
        """
        if (behaviours := given.pop("behaviours", None)) is not None:
            self.scripts.put(key, behaviours)
        model = given.pop("model", None) or ANY
        if not given:
            return
        rule = replace(self.rules.get((key, model), Rule()), **given)
        self.rules[key, model] = rule
        for place in [place for place in self.limits if key in (ANY, place[0])]:
            del self.limits[place]
        self.journal.measure_in(rule.window_s, key=None if key == ANY else fingerprint(key))


def answer(state: State, request: Request) -> Answer:
    try:
        return plain(_answer(state, request))
    except (KeyError, TypeError, ValueError) as error:
        return plain({"error": f"{type(error).__name__}: {error}"}, status=400)


def _answer(state: State, request: Request) -> JsonObject:
    asked = {name: values[0] for name, values in parse_qs(request.query).items()}
    method, path = request.method, request.path.removeprefix("/_fake/")
    if method == "POST" and path.startswith("keys/"):
        state.configure(unquote(path.removeprefix("keys/")), body_of(request))
        return {}
    if (method, path) == ("POST", "release"):
        return {"released": state.held.release(most=int(asked["most"]) if "most" in asked else None)}
    if (method, path) == ("GET", "waiting"):
        return {"waiting": len(state.held)}
    if (method, path) == ("GET", "calls"):
        key = fingerprint(asked["key"]) if "key" in asked else None
        return {"calls": state.journal.find(since=int(asked.get("since", 0)), key=key, outcome=asked.get("outcome"))}
    if (method, path) == ("GET", "stats"):
        return state.journal.view() | {"waiting": len(state.held), "cpu_s": time.process_time()}
    raise ValueError(f"no {method} {request.path}")

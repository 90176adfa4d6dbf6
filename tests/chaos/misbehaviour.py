"""Sets how the fake upstream misbehaves: all calls of one key, all calls of some prompts, or a share of all calls, in this order."""

from __future__ import annotations

from collections.abc import Sequence

from tests.upstream.client import FakeUpstream

# A few calls last longer than a lease.
LONG_DELAY, LONG_SHARE = (10, 12), 0.02
USUAL_DELAY = (0.2, 1.6)
Behaviour = dict[str, object]
USUAL: Sequence[Behaviour] = ({"delay": LONG_DELAY, "probability": LONG_SHARE}, {"delay": USUAL_DELAY, "probability": 1})


class Misbehaviour:
    """Each method replaces its earlier setting; without a behaviour it removes it.

    See tests.upstream.behaviour for the behaviours.
    """

    def __init__(self, upstream: FakeUpstream, upstream_keys: Sequence[str]) -> None:
        self._upstream, self._keys = upstream, upstream_keys
        self._for_key: dict[str, Behaviour] = {}
        self._for_prompts: list[Behaviour] = []
        self._for_calls: list[Behaviour] = []

    def for_calls(self, share: float = 0.0, **behaviour: object) -> None:
        """Misbehave for this share of the calls of every key; answer the others after a short delay."""
        self._for_calls = [{**behaviour, "probability": share}] if share else []
        self._set()

    def for_prompts(self, share: float = 0.0, **behaviour: object) -> None:
        """Misbehave for this share of the prompts, at every call and with every key."""
        self._for_prompts = [{**behaviour, "prompts": share}] if share else []
        self._set()

    def for_key(self, name: str, **behaviour: object) -> None:
        """Misbehave at every call with this upstream key."""
        self._for_key = {name: {**behaviour, "probability": 1}} if behaviour else {}
        self._set()

    def _set(self) -> None:
        for name in self._keys:
            own = [self._for_key[name]] if name in self._for_key else []
            self._upstream.behave(name, *own, *self._for_prompts, *self._for_calls, *USUAL)

"""How the upstream mistreats calls: every call of one key, every call of some prompts, and a share of all calls, in this order."""

from __future__ import annotations

from collections.abc import Sequence

from tests.upstream.client import FakeUpstream

# A few calls take longer than a lease.
LONG_DELAY, LONG_SHARE = (10, 12), 0.02
USUAL_DELAY = (0.2, 1.6)
Behaviour = dict[str, object]
USUAL: Sequence[Behaviour] = ({"delay": LONG_DELAY, "probability": LONG_SHARE}, {"delay": USUAL_DELAY, "probability": 1})


class Mistreatment:
    """Each method replaces what it set before; without a behaviour it ends. The behaviours are those of tests.upstream.behaviour."""

    def __init__(self, upstream: FakeUpstream, upstream_keys: Sequence[str]) -> None:
        self._upstream, self._keys = upstream, upstream_keys
        self._of_key: dict[str, Behaviour] = {}
        self._of_prompts: list[Behaviour] = []
        self._of_calls: list[Behaviour] = []

    def calls(self, share: float = 0.0, **how: object) -> None:
        """This share of the calls of every key is mistreated; the others are answered after a moment."""
        self._of_calls = [{**how, "probability": share}] if share else []
        self._set()

    def prompts(self, share: float = 0.0, **how: object) -> None:
        """This share of the prompts is mistreated, each at every call and with every key."""
        self._of_prompts = [{**how, "prompts": share}] if share else []
        self._set()

    def key(self, name: str, **how: object) -> None:
        """Every call with this upstream key is mistreated."""
        self._of_key = {name: {**how, "probability": 1}} if how else {}
        self._set()

    def _set(self) -> None:
        for name in self._keys:
            own = [self._of_key[name]] if name in self._of_key else []
            self._upstream.behave(name, *own, *self._of_prompts, *self._of_calls, *USUAL)

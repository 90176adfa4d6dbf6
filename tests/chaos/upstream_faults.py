"""An upstream that refuses, fails, hangs, breaks off, answers nonsense, or is slow: for a share of calls, of prompts, or for one key."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.chaos.fault import Fault
from tests.upstream.behaviour import GARBAGE, PACKED


class UpstreamFault(Fault):
    """share: of the calls. how: as tests.upstream.behaviour names it."""

    on = frozenset({"upstream"})
    lasts_s = 12
    share: ClassVar[float] = 0.3
    how: ClassVar[dict[str, Any]] = {}

    def begin(self) -> None:
        self.plant.upstream_does(self.share, **self.how)

    def end(self) -> None:
        self.plant.upstream_does()


class Storm(UpstreamFault):
    """429 with Retry-After."""

    share, how = 0.5, {"status": 429, "kind": "rate", "retry_after": 1}


class SilentStorm(UpstreamFault):
    """429 without Retry-After."""

    share, how = 0.5, {"status": 429, "kind": "rate_no_retry_after"}


class Errors(UpstreamFault):
    """500."""

    how = {"status": 500}  # noqa: RUF012


class Hangs(UpstreamFault):
    """No byte ever comes."""

    share, how = 0.15, {"hang": "before"}


class Resets(UpstreamFault):
    """Reset in the middle of the body."""

    how = {"reset": "body"}  # noqa: RUF012


class Garbage(UpstreamFault):
    """Status 200 and nonsense, of another kind every second."""

    def begin(self) -> None:
        self._steps = 0

    def step(self) -> None:
        if self._steps % 10 == 0:
            self.plant.upstream_does(self.share, garbage=self.chance.choice([kind for kind in GARBAGE if kind != "type"]))
        self._steps += 1


class Packed(UpstreamFault):
    """Good answers compressed, in another charset, as events, or with something around them."""

    def begin(self) -> None:
        self._steps = 0

    def step(self) -> None:
        if self._steps % 10 == 0:
            self.plant.upstream_does(self.share, packed=self.chance.choice(PACKED))
        self._steps += 1


class SlowBytes(UpstreamFault):
    """Three hundred bytes a second, and a piece of a stream every tenth of one."""

    how = {"drip": 300, "chunk_delay": 0.1}  # noqa: RUF012


class WrongType(UpstreamFault):
    """A good answer that says it is plain text."""

    how = {"garbage": "type"}  # noqa: RUF012


class PoisonedRequests(Fault):
    """A share of the prompts is refused for load at every call; the others of the same keys are answered."""

    on = frozenset({"prompts"})
    lasts_s = 14
    share = 0.2
    kinds: ClassVar[tuple[dict[str, Any], ...]] = (
        {"status": 429, "kind": "rate", "retry_after": 1},
        {"status": 429, "kind": "rate_no_retry_after"},
        {"status": 503, "retry_after": 1},
    )

    def begin(self) -> None:
        self.plant.mistreated.prompts(self.share, **self.chance.choice(self.kinds))

    def end(self) -> None:
        self.plant.mistreated.prompts()


class FailingCredential(Fault):
    """One upstream key of the pool refuses every call; the others are good."""

    on = frozenset({"credential"})
    lasts_s = 14
    kinds: ClassVar[tuple[dict[str, Any], ...]] = (
        {"status": 402}, {"status": 403}, {"status": 404}, {"status": 400, "code": "budget_exceeded"}, {"status": 401},
        {"status": 429, "kind": "quota"},
    )  # fmt: skip

    def begin(self) -> None:
        self.key = self.chance.choice(self.plant.pool_keys)
        self.plant.mistreated.key(self.key, **self.chance.choice(self.kinds))

    def end(self) -> None:
        self.plant.mistreated.key(self.key)

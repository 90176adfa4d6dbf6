"""Faults of the upstream: refusals, errors, hangs, resets, garbage and slow answers, for a share of calls or prompts, or for one key."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.chaos.fault import Fault
from tests.upstream.behaviour import GARBAGE, PACKED


class UpstreamFault(Fault):
    """share: of the calls. behaviour: keyword arguments of tests.upstream.behaviour."""

    on = frozenset({"upstream"})
    lasts_s = 12
    share: ClassVar[float] = 0.3
    behaviour: ClassVar[dict[str, Any]] = {}

    def begin(self) -> None:
        self.stack.misbehave(self.share, **self.behaviour)

    def end(self) -> None:
        self.stack.misbehave()


class Storm(UpstreamFault):
    """429 with Retry-After."""

    share, behaviour = 0.5, {"status": 429, "kind": "rate", "retry_after": 1}


class SilentStorm(UpstreamFault):
    """429 without Retry-After."""

    share, behaviour = 0.5, {"status": 429, "kind": "rate_no_retry_after"}


class Errors(UpstreamFault):
    """500."""

    behaviour = {"status": 500}  # noqa: RUF012


class Hangs(UpstreamFault):
    """The upstream never sends a byte."""

    share, behaviour = 0.15, {"hang": "before"}


class Resets(UpstreamFault):
    """Connection reset in the middle of the body."""

    behaviour = {"reset": "body"}  # noqa: RUF012


class Garbage(UpstreamFault):
    """Status 200 and an unreadable body, of another kind every second."""

    def begin(self) -> None:
        self._steps = 0

    def step(self) -> None:
        if self._steps % 10 == 0:
            self.stack.misbehave(self.share, garbage=self.rng.choice([kind for kind in GARBAGE if kind != "type"]))
        self._steps += 1


class Packed(UpstreamFault):
    """Valid answers that are compressed, in another charset, sent as SSE, or wrapped in other text."""

    def begin(self) -> None:
        self._steps = 0

    def step(self) -> None:
        if self._steps % 10 == 0:
            self.stack.misbehave(self.share, packed=self.rng.choice(PACKED))
        self._steps += 1


class SlowBytes(UpstreamFault):
    """300 bytes a second, and a stream chunk every 0.1 s."""

    behaviour = {"drip": 300, "chunk_delay": 0.1}  # noqa: RUF012


class WrongType(UpstreamFault):
    """A valid answer with content type text/plain."""

    behaviour = {"garbage": "type"}  # noqa: RUF012


class PoisonedRequests(Fault):
    """A share of the prompts gets a load refusal at every call; other prompts of the same keys are answered."""

    on = frozenset({"prompts"})
    lasts_s = 14
    share = 0.2
    kinds: ClassVar[tuple[dict[str, Any], ...]] = (
        {"status": 429, "kind": "rate", "retry_after": 1},
        {"status": 429, "kind": "rate_no_retry_after"},
        {"status": 503, "retry_after": 1},
    )

    def begin(self) -> None:
        self.stack.misbehaviour.for_prompts(self.share, **self.rng.choice(self.kinds))

    def end(self) -> None:
        self.stack.misbehaviour.for_prompts()


class FailingCredential(Fault):
    """One upstream key of the pool refuses every call; the others work."""

    on = frozenset({"credential"})
    lasts_s = 14
    kinds: ClassVar[tuple[dict[str, Any], ...]] = (
        {"status": 402}, {"status": 403}, {"status": 404}, {"status": 400, "code": "budget_exceeded"}, {"status": 401},
        {"status": 429, "kind": "quota"},
    )  # fmt: skip

    def begin(self) -> None:
        self.key = self.rng.choice(self.stack.pool_keys)
        self.stack.misbehaviour.for_key(self.key, **self.rng.choice(self.kinds))

    def end(self) -> None:
        self.stack.misbehaviour.for_key(self.key)

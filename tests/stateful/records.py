"""Callers, conversations, jobs and calls as a person would write them down: no SQL, no HTTP, no Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WEIGHTS = {"low": 1.0, "normal": 4.0, "high": 16.0}
OPEN = frozenset({"queued", "admitted", "running"})
ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
Lane = tuple[int, str]
# One user of one key in a lane.
Flow = tuple[Lane, int, str]


@dataclass
class Tenant:
    """A key. counted: whether what its calls may cost is reckoned at all. granted: None without a budget."""

    name: str
    key_id: int
    pool_id: int
    counted: bool
    granted: int | None
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Talk:
    """A conversation. stops: a failed turn cancels those that wait behind it."""

    name: str
    stops: bool = False
    is_deleted: bool = False
    turns: list[Ticket] = field(default_factory=list)


@dataclass
class Call:
    """One attempt. paid: what the ledger says of it; None: nothing was written. is_open: it may still be corrected.

    credential: the upstream key that it went out with, is_probe: which was put aside then. throttles, failures, refusals: of the job
    when the call began.
    """

    dispatch: Any
    credential: int = 0
    is_probe: bool = False
    throttles: int = 0
    failures: int = 0
    refusals: tuple[tuple[int, int], ...] = ()
    outcome: str = "running"
    paid: int | None = None
    is_open: bool = True
    usage: tuple[int, int, int, int] | None = None


@dataclass(eq=False)
class Ticket:
    """A job as it must be.

    throttles: refusals for load. refusals: credential and status of each that cannot serve it. credential: of its last dispatch.
    """

    number: int
    who: Tenant
    lane: Lane
    endpoint: str
    flow: str
    priority: str
    cost: float
    asked: str
    reserved: int | None
    on_lost: str
    max_attempts: int
    hook: str | None
    talk: Talk | None = None
    retry_of: Ticket | None = None
    id: str = ""
    tag: float = 0.0
    share: float = 0.0
    held: bool = False
    delayed: bool = False
    status: str = "queued"
    cancel_requested: bool = False
    failures: int = 0
    throttles: int = 0
    refusals: tuple[tuple[int, int], ...] = ()
    credential: int = 0
    maybe_twice: int = 0
    dispatch: Any = None
    lost: Any = None
    calls: list[Call] = field(default_factory=list)
    events: list[str] = field(default_factory=lambda: ["queued"])
    answer: Any = None
    said: str | None = None
    error: str | None = None
    is_erased: bool = False

    @property
    def of(self) -> Flow:
        return self.lane, self.who.key_id, self.flow

    @property
    def place(self) -> tuple[float, str]:
        """Among the jobs of its key."""
        return self.tag, self.id

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def waits(self) -> bool:
        """It stands in line, and no turn before it keeps it from going."""
        return self.status == "queued" and not self.held


@dataclass
class Cap:
    """What holds a key or a flow up."""

    is_paused: bool = False
    is_draining: bool = False
    max_queued: int | None = None
    max_in_flight: int | None = None

    @property
    def says_anything(self) -> bool:
        return self.is_paused or self.is_draining or self.max_queued is not None or self.max_in_flight is not None


@dataclass
class Aside:
    """A credential that is not called for one lane's jobs while another can be. job: the one that it refused last. is_due: for a probe."""

    job: Ticket
    is_due: bool = False


@dataclass
class Endpoint:
    """Where a tenant's events go."""

    id: str
    who: Tenant
    types: frozenset[str]


@dataclass(frozen=True)
class Verdict:
    """What one call comes to. ends_as: None: the job waits again, counting as a failure or not. owed: what it cost; None: nobody knows.

    throttled: the upstream refused the call for load. refused: the status with which this credential cannot serve the job.
    """

    outcome: str
    ends_as: str | None
    owed: int | None = 0
    counts: bool = False
    delay: bool = False
    answer: Any = None
    said: str | None = None
    usage: tuple[int, int, int, int] | None = None
    error: str | None = None
    throttled: bool = False
    refused: int | None = None

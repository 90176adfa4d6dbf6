"""Records of the reference model: callers, conversations, jobs and calls."""

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
    """A key. counted: its calls have a cost. granted: micro-USD; None: no budget."""

    name: str
    key_id: int
    pool_id: int
    counted: bool
    granted: int | None
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)


@dataclass
class Conversation:
    """A conversation. stops: a failed turn cancels the turns that are held behind it."""

    name: str
    stops: bool = False
    is_deleted: bool = False
    turns: list[ModelJob] = field(default_factory=list)


@dataclass
class Call:
    """One attempt. paid: its ledger entries; None: no entry. is_open: a correction may follow.

    credential: the upstream key that it went out with, is_probe: which was put parked then. throttles, failures, refusals: of the job
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
class ModelJob:
    """The expected state of a job.

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
    conversation: Conversation | None = None
    retry_of: ModelJob | None = None
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
    possible_duplicates: int = 0
    dispatch: Any = None
    lost: Any = None
    calls: list[Call] = field(default_factory=list)
    events: list[str] = field(default_factory=lambda: ["queued"])
    answer: Any = None
    answer_text: str | None = None
    error: str | None = None
    is_erased: bool = False

    @property
    def of(self) -> Flow:
        return self.lane, self.who.key_id, self.flow

    @property
    def place(self) -> tuple[float, str]:
        """Its order among the jobs of its key."""
        return self.tag, self.id

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def waits(self) -> bool:
        """Whether it is queued and not held behind an earlier turn."""
        return self.status == "queued" and not self.held


@dataclass
class Cap:
    """The caps of a key or a flow."""

    is_paused: bool = False
    is_draining: bool = False
    max_queued: int | None = None
    max_in_flight: int | None = None

    @property
    def is_set(self) -> bool:
        return self.is_paused or self.is_draining or self.max_queued is not None or self.max_in_flight is not None


@dataclass
class ParkedModel:
    """A credential parked for one lane. job: the last one that it refused. is_due: its probe is due."""

    job: ModelJob
    is_due: bool = False


@dataclass
class Endpoint:
    """A webhook endpoint of a tenant."""

    id: str
    who: Tenant
    types: frozenset[str]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one call. ends_as None: the job is requeued, with or without counting a failure. owed: its cost; None: unknown.

    throttled: the upstream refused the call for load. refused: the status with which this credential cannot serve the job.
    """

    outcome: str
    ends_as: str | None
    owed: int | None = 0
    counts: bool = False
    delay: bool = False
    answer: Any = None
    answer_text: str | None = None
    usage: tuple[int, int, int, int] | None = None
    error: str | None = None
    throttled: bool = False
    refused: int | None = None

"""Network faults: partitions between pairs of hosts and around one host, slow and lossy links, and clocks that differ."""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import ClassVar

from sqlalchemy import text

from models.database import db
from models.platform.errors import Unavailable
from tests.chaos.fault import Fault
from tests.chaos.schedule import Faults
from tests.hosts.network import TEST_HOST, both_directions
from tests.hosts.stack import SERVICE_HOSTS, WORKERS, Hosts
from tests.support.programs.processes import until

CUT_S = (5.0, 60.0)
SLOW_S, LOSS, LASTS_S = 0.2, 0.05, 30.0
# The end of a call is stored a while after its host is reachable again.
RECORDED_S = 5.0
MAX_CLOCK_OFFSET_S = 5 * 60
SERVERS = ("postgres", "valkey")
PAIRS = (
    *((host, server) for host in SERVICE_HOSTS for server in SERVERS),
    *((worker, "upstream") for worker in WORKERS), (TEST_HOST, "api"), (WORKERS[0], TEST_HOST),
)  # fmt: skip
Direction = tuple[str, str]


class NetworkFault(Fault):
    """A fault of links. lost: the calls in flight meanwhile, where the fault can hide their outcome."""

    hides_calls: ClassVar[bool] = False
    stack: Hosts

    def directions(self) -> Iterable[Direction]:
        """The affected directions, as (from, to)."""
        raise NotImplementedError

    def packet_rule(self) -> dict[str, object]:
        """The rule for packets, as Network.change takes it."""
        raise NotImplementedError

    def begin(self) -> None:
        self._directions = list(self.directions())
        self.stack.network.change(self._directions, **self.packet_rule())

    def end(self) -> None:
        self.stack.network.change(self._directions, **dict.fromkeys(self.packet_rule()))
        if self.hides_calls:
            self.lost = _calls_in_flight(self.lasts_s + RECORDED_S)


class Cut(NetworkFault):
    """No packet passes between two hosts, or in one direction, and no connection is closed.

    lasts_s: 5 to 60; short cuts are more frequent.
    """

    pair: ClassVar[Direction]
    lasts_s = CUT_S[1]
    longest_s: ClassVar[float] = CUT_S[1]

    def __init__(self, stack: Hosts, rng: random.Random) -> None:
        super().__init__(stack, rng)
        # The schedule uses the value of the class.
        self.lasts_s = CUT_S[0] * (self.longest_s / CUT_S[0]) ** rng.random()

    def directions(self) -> Iterable[Direction]:
        directions = both_directions(*self.pair)
        return self.rng.choice((directions, directions, directions[:1], directions[1:]))

    def packet_rule(self) -> dict[str, object]:
        return {"cut": True}


class Isolated(Cut):
    """One host reaches no other host of the stack, and none reaches it."""

    host: ClassVar[str]

    def directions(self) -> Iterable[Direction]:
        return [direction for other in self.stack.network.others(self.host) for direction in both_directions(self.host, other)]


class Slow(NetworkFault):
    """Each packet that one host sends is 200 ms late."""

    host: ClassVar[str]
    lasts_s = LASTS_S

    def directions(self) -> Iterable[Direction]:
        return [(self.host, other) for other in self.stack.network.names if other != self.host]

    def packet_rule(self) -> dict[str, object]:
        return {"delay_s": SLOW_S}


class Lossy(Slow):
    """5 % of the packets that one host sends or receives are lost."""

    hides_calls = True

    def directions(self) -> Iterable[Direction]:
        return [direction for other in self.stack.network.names if other != self.host for direction in both_directions(self.host, other)]

    def packet_rule(self) -> dict[str, object]:
        return {"loss": LOSS}


class ClocksApart(Fault):
    """Each host's clock jumps by up to five minutes ahead or behind, and back at the end."""

    on = frozenset({"clocks"})
    lasts_s = LASTS_S
    stack: Hosts

    def begin(self) -> None:
        for own_clock in self.stack.clocks.values():
            own_clock.set(self.rng.randint(-MAX_CLOCK_OFFSET_S, MAX_CLOCK_OFFSET_S))

    def end(self) -> None:
        for own_clock in self.stack.clocks.values():
            own_clock.set(0)


def _calls_in_flight(since_s: float) -> int:
    """The number of calls that were in flight at some time during the last since_s seconds."""
    return int(until(partial(_count_calls, since_s), what="calls counted")) - 1


def _count_calls(since_s: float) -> int | None:
    """The number plus one, so that it is never falsy; None when the connection to Postgres breaks."""
    with suppress(Unavailable), db.begin() as session:
        return 1 + int(session.execute(_CALLS_IN_FLIGHT, {"since_s": since_s}).scalar_one())
    return None


def _build_faults() -> dict[str, type[Fault]]:
    faults: dict[str, type[Fault]] = {}
    for host, other in PAIRS:
        hides = host in WORKERS and other in ("postgres", "upstream")
        more = {"pair": (host, other), "hides_calls": hides, "on": frozenset({f"{host}-{other}"})}
        faults[f"{host} | {other}"] = type("CutOfPair", (Cut,), more)
    for host in ("api", "pacer", WORKERS[1], *SERVERS):
        hides = host in (WORKERS[1], "postgres")
        faults[f"{host} isolated"] = type(
            "IsolatedHost", (Isolated,), {"host": host, "hides_calls": hides, "on": frozenset({f"{host} isolated"})}
        )
    for kind, name in ((Slow, "200 ms"), (Lossy, "5 % lost")):
        for host in ("api", WORKERS[0], *SERVERS):
            faults[f"{host}, {name}"] = type(f"{kind.__name__}OfHost", (kind,), {"host": host, "on": frozenset({name})})
    return {**faults, "clocks minutes apart": ClocksApart}


FAULTS: Faults = _build_faults()
_CALLS_IN_FLIGHT = text("""
    SELECT count(*) FROM attempt WHERE ended_at IS NULL OR ended_at > clock_timestamp() - make_interval(secs => :since_s)
""")

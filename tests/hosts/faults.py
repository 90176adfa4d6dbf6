"""Faults between hosts: partitions of every pair, of one host from all others, slow and lossy links, clocks that go apart."""

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
from tests.hosts.network import HERE, both
from tests.hosts.stack import OURS, WORKERS, Hosts
from tests.support.programs.process import until

CUT_S = (5.0, 60.0)
SLOW_S, LOSS, LASTS_S = 0.2, 0.05, 30.0
# The end of a call is stored a while after its host can be reached again.
RECORDED_S = 5.0
CLOCKS_MOST_S = 5 * 60
SERVERS = ("postgres", "valkey")
PAIRS = (
    *((one, other) for one in OURS for other in SERVERS), *((worker, "upstream") for worker in WORKERS), (HERE, "api"), (WORKERS[0], HERE),
)  # fmt: skip
Direction = tuple[str, str]


class OfNetwork(Fault):
    """Of the links between hosts. lost: calls that were under way while it was on, where it can hide what came of them."""

    hides_calls: ClassVar[bool] = False
    plant: Hosts

    def directions(self) -> Iterable[Direction]:
        """From and to."""
        raise NotImplementedError

    def how(self) -> dict[str, object]:
        """What becomes of packets, as Network.change takes it."""
        raise NotImplementedError

    def begin(self) -> None:
        self._directions = list(self.directions())
        self.plant.network.change(self._directions, **self.how())

    def end(self) -> None:
        self.plant.network.change(self._directions, **dict.fromkeys(self.how()))
        if self.hides_calls:
            self.lost = _under_way(self.lasts_s + RECORDED_S)


class Cut(OfNetwork):
    """No packet passes between two hosts, or in one direction, and no connection is closed. lasts_s: 5 to 60, short ones more often."""

    pair: ClassVar[Direction]
    lasts_s = CUT_S[1]
    longest_s: ClassVar[float] = CUT_S[1]

    def __init__(self, plant: Hosts, chance: random.Random) -> None:
        super().__init__(plant, chance)
        # The class's own is what the schedule expects.
        self.lasts_s = CUT_S[0] * (self.longest_s / CUT_S[0]) ** chance.random()

    def directions(self) -> Iterable[Direction]:
        ways = both(*self.pair)
        return self.chance.choice((ways, ways, ways[:1], ways[1:]))

    def how(self) -> dict[str, object]:
        return {"cut": True}


class Alone(Cut):
    """One host reaches no other of ours, and no other reaches it."""

    host: ClassVar[str]

    def directions(self) -> Iterable[Direction]:
        return [way for other in self.plant.network.others(self.host) for way in both(self.host, other)]


class Slow(OfNetwork):
    """All that one host sends is 200 ms late."""

    host: ClassVar[str]
    lasts_s = LASTS_S

    def directions(self) -> Iterable[Direction]:
        return [(self.host, other) for other in self.plant.network.names if other != self.host]

    def how(self) -> dict[str, object]:
        return {"delay_s": SLOW_S}


class Lossy(Slow):
    """Of all that one host sends and gets, 5 % is lost."""

    hides_calls = True

    def directions(self) -> Iterable[Direction]:
        return [way for other in self.plant.network.names if other != self.host for way in both(self.host, other)]

    def how(self) -> dict[str, object]:
        return {"loss": LOSS}


class ClocksApart(Fault):
    """The hosts' clocks jump to up to five minutes ahead or behind, each by itself, and back in the end."""

    on = frozenset({"clocks"})
    lasts_s = LASTS_S
    plant: Hosts

    def begin(self) -> None:
        for own in self.plant.clocks.values():
            own.set(self.chance.randint(-CLOCKS_MOST_S, CLOCKS_MOST_S))

    def end(self) -> None:
        for own in self.plant.clocks.values():
            own.set(0)


def _under_way(since_s: float) -> int:
    """How many calls were on record as begun and not ended at some time in the last so many seconds."""
    return int(until(partial(_counted, since_s), what="calls counted")) - 1


def _counted(since_s: float) -> int | None:
    """One more than there are; None where the link to Postgres breaks off just now."""
    with suppress(Unavailable), db.begin() as session:
        return 1 + int(session.execute(_UNDER_WAY, {"since_s": since_s}).scalar_one())
    return None


def _made() -> dict[str, type[Fault]]:
    found: dict[str, type[Fault]] = {}
    for one, other in PAIRS:
        hides = one in WORKERS and other in ("postgres", "upstream")
        more = {"pair": (one, other), "hides_calls": hides, "on": frozenset({f"{one}-{other}"})}
        found[f"{one} | {other}"] = type("CutOfPair", (Cut,), more)
    for host in ("api", "pacer", WORKERS[1], *SERVERS):
        hides = host in (WORKERS[1], "postgres")
        found[f"{host} alone"] = type("AloneOfHost", (Alone,), {"host": host, "hides_calls": hides, "on": frozenset({f"{host} alone"})})
    for kind, name in ((Slow, "200 ms"), (Lossy, "5 % lost")):
        for host in ("api", WORKERS[0], *SERVERS):
            found[f"{host}, {name}"] = type(f"{kind.__name__}OfHost", (kind,), {"host": host, "on": frozenset({name})})
    return {**found, "clocks minutes apart": ClocksApart}


FAULTS: Faults = _made()
_UNDER_WAY = text("""
    SELECT count(*) FROM attempt WHERE ended_at IS NULL OR ended_at > clock_timestamp() - make_interval(secs => :since_s)
""")

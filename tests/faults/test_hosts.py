"""Short form of `make hosts`: five partitions between services on separate hosts, with traffic, and all promises checked."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos import schedule
from tests.hosts.__main__ import SKIPPED_EXIT_CODE
from tests.hosts.faults import FAULTS, PAIRS
from tests.hosts.router import Router
from tests.support.programs.forks import ROOT

A, B = "10.77.0.1", "10.77.0.2"


def test_all_promises_hold_while_hosts_are_partitioned() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NOWSERVING_")}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.hosts", "--short"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )

    if finished.returncode == SKIPPED_EXIT_CODE and "CI" not in environment:
        pytest.skip(finished.stdout.strip())
    assert 0 == finished.returncode, finished.stdout + finished.stderr[-4000:]


def test_faults_cut_every_service_from_every_server() -> None:
    services = ("api", "pacer", "worker0", "worker1")

    assert {
        *((service, server) for service in services for server in ("postgres", "valkey")),
        ("worker0", "upstream"),
        ("worker1", "upstream"),
    } <= {*PAIRS}
    assert all(f"{host} | {other}" in FAULTS for host, other in PAIRS)
    assert {event.fault for event in schedule.mixed(FAULTS, seed=1, for_s=3600, faults=FAULTS)} == {*FAULTS}


class Wire:
    """Two hosts at a router: sends packets and reads the received ones."""

    def __init__(self, stack: ExitStack) -> None:
        self._ends = {}
        devices = {}
        for address in (A, B):
            host, device = (stack.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
            for end in (host, device):
                end.setblocking(False)
            self._ends[address], devices[socket.inet_aton(address)] = host, device.fileno()
        self.router, self._devices = Router(devices, random.Random(1)), devices

    def send(self, source: str, target: str, text: bytes, *, now: float = 0.0, first: int = 0x45) -> None:
        head = bytes([first]) + b"\0" * 11 + socket.inet_aton(source) + socket.inet_aton(target)
        self._ends[source].send(head + text)
        self.router.forward_from(self._devices[socket.inet_aton(source)], now)

    def received(self, address: str) -> list[bytes]:
        packets = []
        while True:
            try:
                packets.append(self._ends[address].recv(1500)[20:])
            except BlockingIOError:
                return packets


@pytest.fixture
def wire() -> Iterator[Wire]:
    with ExitStack() as stack:
        yield Wire(stack)


def test_cut_direction_drops_packets_and_the_other_does_not(wire: Wire) -> None:
    wire.router.set([{"from": A, "to": B, "cut": True}])
    wire.send(A, B, b"there")
    wire.send(B, A, b"back")

    assert ([], [b"back"]) == (wire.received(B), wire.received(A))


def test_late_packets_arrive_in_order_and_when_they_are_due(wire: Wire) -> None:
    wire.router.set([{"from": A, "to": B, "delay_s": 0.2}])
    wire.send(A, B, b"1", now=10.0)
    wire.send(A, B, b"2", now=10.05)
    seen = []
    for now in (10.1, 10.21, 10.3):
        wire.router.deliver(now)
        seen.append(wire.received(B))

    assert [[], [b"1"], [b"2"]] == seen
    assert wire.router.deliver(11.0) is None


def test_lossy_link_drops_its_share(wire: Wire) -> None:
    wire.router.set([{"from": A, "to": B, "loss": 0.05}])
    arrived = 0
    for _ in range(1000):
        wire.send(A, B, b"x")
        arrived += len(wire.received(B))

    assert 920 < arrived < 980


def test_router_drops_packets_to_unknown_hosts_and_ipv6(wire: Wire) -> None:
    wire.send(A, "10.77.0.9", b"x")
    wire.send(A, "8.8.8.8", b"x")
    wire.send(A, B, b"x", first=0x60)

    assert ([], []) == (wire.received(A), wire.received(B))

"""`python -m tests.hosts.router 7=10.77.0.1 8=10.77.0.2 …`: forwards packets between TUN devices, given as file descriptors.

Each line on standard input replaces the state of the links, and is acknowledged with `ok`. It is a JSON list of
{"from", "to": addresses, "cut": bool, "delay_s": float, "loss": share}. Each item is one direction; an unlisted
direction forwards at once. The router ends at the end of its standard input.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import selectors
import socket
import sys
import time
from contextlib import suppress
from typing import Any

PACKETS_PER_READ = 64
MAX_PACKET = 65_536
Direction = tuple[bytes, bytes]


class Router:
    """devices: descriptor by address."""

    def __init__(self, devices: dict[bytes, int], rng: random.Random) -> None:
        self._devices, self._rng = devices, rng
        self._links: dict[Direction, dict[str, Any]] = {}
        self._delayed: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()

    def set(self, links: list[dict[str, Any]]) -> None:
        """Replace the state of the links. Packets that are delayed already keep their time."""
        self._links = {(socket.inet_aton(link["from"]), socket.inet_aton(link["to"])): link for link in links}

    def forward_from(self, device: int, now: float) -> None:
        """Read the packets that this device has sent, and forward them."""
        with suppress(BlockingIOError):
            for _ in range(PACKETS_PER_READ):
                self._forward(os.read(device, MAX_PACKET), now)

    def deliver(self, now: float) -> float | None:
        """Deliver the packets that are due; return the seconds until the next one."""
        while self._delayed and self._delayed[0][0] <= now:
            _, _, device, packet = heapq.heappop(self._delayed)
            self._write(device, packet)
        return max(0.0, self._delayed[0][0] - now) if self._delayed else None

    def _forward(self, packet: bytes, now: float) -> None:
        if packet[0] >> 4 != 4:
            return  # IPv6 messages of a device that comes up
        source, target = packet[12:16], packet[16:20]
        device, link = self._devices.get(target), self._links.get((source, target), {})
        if device is None or link.get("cut") or self._rng.random() < link.get("loss", 0):
            return
        if delay_s := link.get("delay_s", 0):
            heapq.heappush(self._delayed, (now + delay_s, next(self._numbers), device, packet))
        else:
            self._write(device, packet)

    def _write(self, device: int, packet: bytes) -> None:
        with suppress(OSError):  # the device's queue is full: the packet is lost, as on a wire
            os.write(device, packet)


def main() -> None:
    pairs = (arg.split("=") for arg in sys.argv[1:])
    devices = {socket.inet_aton(address): int(device) for device, address in pairs}
    router, selector = Router(devices, random.Random(0)), selectors.DefaultSelector()
    for device in devices.values():
        os.set_blocking(device, False)
        selector.register(device, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for ready, _ in selector.select(router.deliver(time.monotonic())):
            if ready.fileobj is not sys.stdin:
                router.forward_from(ready.fd, time.monotonic())
                continue
            if not (line := sys.stdin.readline()):
                return
            router.set(json.loads(line))
            print("ok", flush=True)


if __name__ == "__main__":
    main()

"""`python -m tests.hosts.router 7=10.77.0.1 8=10.77.0.2 …`: passes packets on between TUN devices, each a descriptor of this process.

A line of JSON on standard input replaces the state of the links, and is acknowledged with `ok`: a list of {"from", "to": addresses,
"cut": bool, "delay_s": float, "loss": share}. Each is one direction; what is not listed passes at once. It ends with its standard input.
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

AT_ONCE = 64
PACKET_MOST = 65_536
Direction = tuple[bytes, bytes]


class Router:
    """devices: address to descriptor."""

    def __init__(self, devices: dict[bytes, int], chance: random.Random) -> None:
        self._devices, self._chance = devices, chance
        self._links: dict[Direction, dict[str, Any]] = {}
        self._late: list[tuple[float, int, int, bytes]] = []
        self._numbers = itertools.count()

    def set(self, links: list[dict[str, Any]]) -> None:
        """The state of the links is this one from now on. Packets that are late already arrive when they would have."""
        self._links = {(socket.inet_aton(one["from"]), socket.inet_aton(one["to"])): one for one in links}

    def take_from(self, device: int, now: float) -> None:
        """What this device has sent is on its way."""
        with suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                self._pass(os.read(device, PACKET_MOST), now)

    def deliver(self, now: float) -> float | None:
        """What is due has arrived; seconds until the next is."""
        while self._late and self._late[0][0] <= now:
            _, _, device, packet = heapq.heappop(self._late)
            self._write(device, packet)
        return max(0.0, self._late[0][0] - now) if self._late else None

    def _pass(self, packet: bytes, now: float) -> None:
        if packet[0] >> 4 != 4:
            return  # what IPv6 says of itself when a device comes up
        source, target = packet[12:16], packet[16:20]
        device, link = self._devices.get(target), self._links.get((source, target), {})
        if device is None or link.get("cut") or self._chance.random() < link.get("loss", 0):
            return
        if delay_s := link.get("delay_s", 0):
            heapq.heappush(self._late, (now + delay_s, next(self._numbers), device, packet))
        else:
            self._write(device, packet)

    def _write(self, device: int, packet: bytes) -> None:
        with suppress(OSError):  # its queue is full: lost, as on a wire
            os.write(device, packet)


def main() -> None:
    pairs = (word.split("=") for word in sys.argv[1:])
    devices = {socket.inet_aton(address): int(device) for device, address in pairs}
    router, selector = Router(devices, random.Random(0)), selectors.DefaultSelector()
    for device in devices.values():
        os.set_blocking(device, False)
        selector.register(device, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for ready, _ in selector.select(router.deliver(time.monotonic())):
            if ready.fileobj is not sys.stdin:
                router.take_from(ready.fd, time.monotonic())
                continue
            if not (line := sys.stdin.readline()):
                return
            router.set(json.loads(line))
            print("ok", flush=True)


if __name__ == "__main__":
    main()

"""Hosts with an address each in 10.77.0.0/24, which leads nowhere else, and the links between them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tests.hosts import namespace
from tests.support.programs.forks import ROOT

NETWORK = "10.77.0.0/24"
# Of the process that makes the network: the test itself.
HERE = "client"


class Network:
    """Made in a process with one thread, which is the host HERE from then on and cannot leave it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = (HERE, *names)
        self._addresses = {name: f"10.77.0.{n}" for n, name in enumerate(self.names, start=1)}
        self._namespaces: dict[str, int] = {}
        self._links: dict[tuple[str, str], dict[str, Any]] = {}
        devices = {HERE: namespace.move_into_new(self._addresses[HERE])}
        for name in names:
            self._namespaces[name], devices[name] = namespace.new_for_host(self._addresses[name])
        self._router = subprocess.Popen(
            [sys.executable, "-m", "tests.hosts.router", *(f"{device}={self._addresses[name]}" for name, device in devices.items())],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=tuple(devices.values()),
        )  # fmt: skip
        for device in devices.values():
            os.close(device)
        self._tell()

    def address(self, name: str) -> str:
        return self._addresses[name]

    def on(self, name: str) -> AbstractContextManager[None]:
        """What this thread starts and opens meanwhile is on this host."""
        return namespace.entered(self._namespaces[name])

    def others(self, name: str) -> list[str]:
        """All hosts but this one and the test's."""
        return [one for one in self.names if one not in (name, HERE)]

    def change(self, directions: Iterable[tuple[str, str]], **how: object) -> None:
        """Each of these directions (from, to) is so: cut=True, delay_s=0.2, loss=0.05. None: as usual again."""
        for direction in directions:
            kept = {**self._links.get(direction, {}), **how}
            self._links[direction] = {name: value for name, value in kept.items() if value is not None}
        self._tell()

    def close(self) -> None:
        """No packet passes any more."""
        self._router.terminate()
        self._router.wait(20)
        for pipe in (self._router.stdin, self._router.stdout):
            if pipe:
                pipe.close()
        for descriptor in self._namespaces.values():
            os.close(descriptor)

    def _tell(self) -> None:
        assert self._router.stdin and self._router.stdout
        told = [{"from": self._addresses[one], "to": self._addresses[other], **how} for (one, other), how in self._links.items() if how]
        self._router.stdin.write(json.dumps(told) + "\n")
        self._router.stdin.flush()
        assert self._router.stdout.readline() == "ok\n", "the router has died"


def both(one: str, other: str) -> list[tuple[str, str]]:
    """The two directions between two hosts."""
    return [(one, other), (other, one)]

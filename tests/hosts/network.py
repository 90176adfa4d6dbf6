"""Hosts with one address each in the isolated network 10.77.0.0/24, and the links between them."""

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
# The host of the process that creates the network: the test itself.
TEST_HOST = "client"


class Network:
    """Must be created in a process with one thread; the process becomes the host TEST_HOST and cannot leave it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = (TEST_HOST, *names)
        self._addresses = {name: f"10.77.0.{n}" for n, name in enumerate(self.names, start=1)}
        self._namespaces: dict[str, int] = {}
        self._links: dict[tuple[str, str], dict[str, Any]] = {}
        devices = {TEST_HOST: namespace.move_into_new(self._addresses[TEST_HOST])}
        for name in names:
            self._namespaces[name], devices[name] = namespace.new_for_host(self._addresses[name])
        self._router = subprocess.Popen(
            [sys.executable, "-m", "tests.hosts.router", *(f"{device}={self._addresses[name]}" for name, device in devices.items())],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=tuple(devices.values()),
        )  # fmt: skip
        for device in devices.values():
            os.close(device)
        self._send_links()

    def address(self, name: str) -> str:
        return self._addresses[name]

    def on(self, name: str) -> AbstractContextManager[None]:
        """This thread starts processes and opens sockets on this host."""
        return namespace.entered(self._namespaces[name])

    def others(self, name: str) -> list[str]:
        """All hosts except this one and the test's."""
        return [host for host in self.names if host not in (name, TEST_HOST)]

    def change(self, directions: Iterable[tuple[str, str]], **rule: object) -> None:
        """Set the rule of these directions (from, to): cut=True, delay_s=0.2, loss=0.05. None removes a rule."""
        for direction in directions:
            kept = {**self._links.get(direction, {}), **rule}
            self._links[direction] = {name: value for name, value in kept.items() if value is not None}
        self._send_links()

    def close(self) -> None:
        """Stop the router; no packet passes any more."""
        self._router.terminate()
        self._router.wait(20)
        for pipe in (self._router.stdin, self._router.stdout):
            if pipe:
                pipe.close()
        for descriptor in self._namespaces.values():
            os.close(descriptor)

    def _send_links(self) -> None:
        assert self._router.stdin and self._router.stdout
        links = [
            {"from": self._addresses[host], "to": self._addresses[other], **rule} for (host, other), rule in self._links.items() if rule
        ]
        self._router.stdin.write(json.dumps(links) + "\n")
        self._router.stdin.flush()
        assert self._router.stdout.readline() == "ok\n", "the router has died"


def both_directions(host: str, other: str) -> list[tuple[str, str]]:
    """The two directions between two hosts."""
    return [(host, other), (other, host)]

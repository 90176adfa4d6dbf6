"""A DNS server for tests, queried over real UDP. It gives the answers that a test sets, which may differ from lookup to lookup."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from ssrfguard.resolvers import UdpResolver

A, AAAA = 1, 28


class NameServer:
    """Serves these names. Each lookup of a name gets the next of its answers, and the last one from then on; [] means no response.

    A lookup is a query for A; the AAAA query that goes with it gets the IPv6 addresses of the same answer.
    """

    def __init__(self, names: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._names = {name: list(answers) for name, answers in names.items()}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def resolver(self) -> UdpResolver:
        """A resolver that queries only this server."""
        port = self._socket.getsockname()[1]
        return UdpResolver(
            nameservers=("127.0.0.1",), nameserver_port=port, timeout=30, attempt_timeout=30, families=(socket.AF_INET6, socket.AF_INET)
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, asker = self._socket.recvfrom(4096)
            if not question:
                return
            answer = self._answer(question)
            if answer:
                self._socket.sendto(answer, asker)

    def _answer(self, question: bytes) -> bytes | None:
        name, end = _name_in(question)
        (kind,) = struct.unpack("!H", question[end : end + 2])
        answers = self._names.get(name, [["0"]])
        addresses = answers[0]
        if kind == A:
            self.asked.append(name)
            if len(answers) > 1:
                answers.pop(0)
        if not addresses:
            return None
        wanted = [ip_address(one) for one in addresses if one != "0"]
        found = [one.packed for one in wanted if (one.version == 4) == (kind == A)]
        records = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 0, len(one)) + one for one in found)
        head = question[:2] + struct.pack("!HHHHH", 0x8180 if wanted else 0x8183, 1, len(found), 0, 0)
        return head + question[12 : end + 4] + records


def _name_in(question: bytes) -> tuple[str, int]:
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    return ".".join(labels).lower(), at + 1

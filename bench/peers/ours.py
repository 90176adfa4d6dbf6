"""nowserving as one of the peers, by the same questions as the others."""

from __future__ import annotations

import time
from itertools import count

from bench.measure import load
from bench.measure.load import CHAT, OK, Line, Wanted
from bench.measure.stack import Caller, Stack
from bench.peers.peer import PROMPT, Peer, Terms, Work
from models.keys.keys import Limits


class Ours(Peer):
    """Jobs are submitted and counted when they have ended; every time it serves, it is a new key."""

    name = "nowserving"
    settings = "defaults; everything durable; limits and calls at a time set on the credential"
    upstream_key = ""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._numbers = count(1)
        self._caller: Caller | None = None
        self._handed_in = 0

    def serve(self, terms: Terms) -> None:
        self._stack.serve()
        self._stack.clear()
        self.upstream_key, self._handed_in = f"sk-peer-{next(self._numbers)}", 0
        self._caller = self._stack.caller(self.upstream_key, Limits(rpm=terms.rpm, tpm=terms.tpm, max_in_flight=terms.at_once))

    def hand_in(self, work: Work) -> None:
        load.submit(self._wanted(work))
        self._handed_in += work.jobs

    def wait_done(self, *, within_s: float) -> None:
        self._stack.wait_until_ended(self._known, self._handed_in, within_s=within_s)

    def ask(self) -> float:
        line = Line(self._stack.port)
        began = time.perf_counter()
        line.ask(next(self._wanted(Work(1), path=CHAT).requests()), expected=OK)
        took_s = time.perf_counter() - began
        line.socket.close()
        self._handed_in += 1
        return took_s

    def pids(self) -> dict[str, int]:
        return {name: pid for name, pid in self._stack.pids().items() if name != "upstream"}

    def halt(self) -> None:
        if self._caller is not None:
            self._stack.clear()
        self._stack.halt()

    def _wanted(self, work: Work, *, path: str = load.JOBS) -> Wanted:
        return Wanted(
            self._stack.port, self._known.token, jobs=work.jobs, users=work.users, prefix=work.prefix, path=path,
            connections=8 if path == load.JOBS else work.open_calls, prompt=PROMPT, max_tokens=work.max_tokens,
        )  # fmt: skip

    @property
    def _known(self) -> Caller:
        assert self._caller is not None
        return self._caller

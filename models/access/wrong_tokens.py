"""Brute-force limit: after MAX_A_MINUTE wrong tokens or passwords, an address must wait before its next token is checked."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable

from models.access import operators
from models.access.address_limit import AddressLimit
from models.platform.errors import TooManyWrongTokens, Unauthorised
from models.telemetry import metrics

log = logging.getLogger(__name__)

MAX_A_MINUTE = 10
PERIOD_S = 60.0
MAX_REMEMBERED = 20_000
THIS_MACHINE = "this machine"


class WrongTokens:
    """The limit within one process. address: of client_address.bucket_name; None: this machine, which is limited like any other.

    A token that was valid from the same address always passes, so guesses behind the same proxy do not lock out its owner.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = AddressLimit(period_s=PERIOD_S, clock=clock)
        self._lock = threading.Lock()
        self._right: set[bytes] = set()
        self._logged: set[str] = set()

    def expect_room(self, address: str | None, token: str) -> None:
        """Call it before the token is checked. Raises TooManyWrongTokens."""
        wait_s = self._limit.wait_s(address or THIS_MACHINE, limit=MAX_A_MINUTE)
        if wait_s and _digest(address, token) not in self._right:
            raise TooManyWrongTokens(retry_after_s=wait_s)

    def note_right(self, address: str | None, token: str) -> None:
        """Records a valid token of this address."""
        digest = _digest(address, token)
        if digest in self._right:
            return
        with self._lock:
            if len(self._right) >= MAX_REMEMBERED:
                self._right.clear()
            self._right.add(digest)

    def note_wrong(self, address: str | None, token: str, *, door: str) -> None:
        """Records a wrong token of this address. door: the interface that refused it. The first token over the limit is logged."""
        metrics.wrong_tokens.labels(door).inc()
        name = address or THIS_MACHINE
        with self._lock:
            self._right.discard(_digest(address, token))
            if self._limit.is_full(name):
                self._logged.discard(name)
            self._limit.take(name, limit=MAX_A_MINUTE)
            is_first = self._limit.wait_s(name, limit=MAX_A_MINUTE) > 0 and name not in self._logged
            if is_first:
                if len(self._logged) >= MAX_REMEMBERED:
                    self._logged.clear()
                self._logged.add(name)
        if is_first:
            log.warning("wrong tokens: this address is slowed", extra={"address": name, "door": door})


def authenticate_for_metrics(wrong: WrongTokens, address: str | None, token: str) -> None:
    """Raises Unauthorised for a token that may not read /metrics, and TooManyWrongTokens."""
    wrong.expect_room(address, token)
    if operators.may_read_metrics(token):
        wrong.note_right(address, token)
        return
    if token:
        wrong.note_wrong(address, token, door="metrics")
    raise Unauthorised(operators.UNKNOWN_TOKEN)


def _digest(address: str | None, token: str) -> bytes:
    return hashlib.sha256(f"{address or THIS_MACHINE} {token}".encode("utf-8", "surrogatepass")).digest()

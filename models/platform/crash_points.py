"""Crash points: named places where a test makes this process exit, freeze or raise. Off unless NOWSERVING_CRASH is set.

NOWSERVING_CRASH=<point>[:<how>[:<nth>]]. how: `exit` (default; like kill -9), `freeze` (SIGSTOP to itself), `raise`. nth: the passing
on which it happens, counted from 1.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import defaultdict

from models.config.settings import settings

_passings: dict[str, itertools.count[int]] = defaultdict(lambda: itertools.count(1))


class Crashed(BaseException):
    """Raised at a crash point; no code of this project catches it."""


def hit(point: str) -> None:
    """Exits, freezes or raises if NOWSERVING_CRASH names this point; otherwise does nothing."""
    setting = settings().crash
    if not setting or setting.split(":")[0] != point:
        return
    _, how, nth = (*setting.split(":"), "", "")[:3]
    if next(_passings[point]) != int(nth or 1):
        return
    if how == "freeze":
        # The signal goes to this thread: a signal to the process might take effect only some steps later.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif how == "raise":
        raise Crashed(point)
    else:
        os._exit(137)

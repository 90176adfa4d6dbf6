"""Named places where a test makes this process die, freeze or fail: NOWSERVING_CRASH=<point>[:<how>[:<nth>]]. Off unless set.

how: `exit` (default; as by kill -9), `freeze` (SIGSTOP to itself), `raise`. nth: on which passing, counted from 1.
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
    """Raised at a crash point; nothing of ours catches it."""


def hit(point: str) -> None:
    """Nothing, unless a test named this place."""
    wanted = settings().crash
    if not wanted or wanted.split(":")[0] != point:
        return
    _, how, nth = (*wanted.split(":"), "", "")[:3]
    if next(_passings[point]) != int(nth or 1):
        return
    if how == "freeze":
        # To this thread: of a signal to the process, it might see the effect only some steps later.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    elif how == "raise":
        raise Crashed(point)
    else:
        os._exit(137)

"""Questions to a server that may be frozen: nobody waits for the answer longer than said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotInTime
from typing import TypeVar

T = TypeVar("T")


def within(ask: Callable[[], T], *, s: float) -> T:
    """What it answers. Raises TimeoutError when it does not in time; its thread then ends whenever it can."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except Exception as error:
            # A border: whatever it was, the one who asked gets it.
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(s)
    except NotInTime:
        raise TimeoutError from None

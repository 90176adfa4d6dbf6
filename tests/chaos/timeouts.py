"""A timeout for calls to servers that may be frozen."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

T = TypeVar("T")


def call_with_timeout(function: Callable[[], T], *, timeout_s: float) -> T:
    """Return the result of `function`. Raises TimeoutError after timeout_s; its thread then ends on its own."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(function())
        except Exception as error:
            # A border: the caller gets every exception.
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(timeout_s)
    except FutureTimeout:
        raise TimeoutError from None

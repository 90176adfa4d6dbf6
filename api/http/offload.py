"""Native threads that parse large bodies, so that gevent's event loop serves other requests meanwhile.

The threads share the interpreter's lock, so there are only two: one for the largest bodies and one for bodies of medium size, which need
not wait for the largest. Without gevent (tests, commands) the work runs in the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gevent import monkey
from gevent.threadpool import ThreadPool

# Parsing a smaller body holds the event loop for 5 ms at most, as long as a switch between threads may take.
LARGE_BYTES = 128 * 1024
LARGEST_BYTES = 2 * 1024 * 1024

Result = TypeVar("Result")
_pools: dict[bool, ThreadPool] = {}


def run(size: int, work: Callable[[], Result]) -> Result:
    """Runs `work`. size: of the body that it parses, in bytes. `work` must use neither a request context nor the database."""
    if size < LARGE_BYTES or not monkey.is_module_patched("threading"):
        return work()
    result, error = _pool(size >= LARGEST_BYTES).apply(_catch, (work,))
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]  # gevent has no types


def _catch(work: Callable[[], Result]) -> tuple[Result | None, BaseException | None]:
    # gevent would print an exception of the thread with its message, which may quote a prompt.
    try:
        return work(), None
    except Exception as error:
        return None, error


def _pool(is_largest: bool) -> ThreadPool:
    # Created on first use: threads do not survive the fork of gunicorn's workers.
    if is_largest not in _pools:
        _pools[is_largest] = ThreadPool(1)
    return _pools[is_largest]

"""Native threads for the parsing of large bodies: gevent's event loop serves everybody else meanwhile.

The interpreter's lock is still shared, so that one body is parsed at a time, and one of medium size beside it: those need not wait for
the largest. Without gevent (tests, commands) work is done where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gevent import monkey
from gevent.threadpool import ThreadPool

# Below, the loop is held for 5 ms at most, which is what a switch between threads may take.
LARGE_BYTES = 128 * 1024
LARGEST_BYTES = 2 * 1024 * 1024

Result = TypeVar("Result")
_pools: dict[bool, ThreadPool] = {}


def run(size: int, work: Callable[[], Result]) -> Result:
    """What `work` returns or raises. size: of the body that it reads, in bytes. `work` uses no request context and no database."""
    if size < LARGE_BYTES or not monkey.is_module_patched("threading"):
        return work()
    made, error = _pool(size >= LARGEST_BYTES).apply(_outcome, (work,))
    if error is not None:
        raise error
    return made  # type: ignore[no-any-return]  # gevent has no types


def _outcome(work: Callable[[], Result]) -> tuple[Result | None, BaseException | None]:
    # An error that a pool's thread raised would be printed with its text, which may quote a prompt.
    try:
        return work(), None
    except Exception as error:
        return None, error


def _pool(is_largest: bool) -> ThreadPool:
    # Made on first use: threads do not survive the fork of gunicorn's workers.
    if is_largest not in _pools:
        _pools[is_largest] = ThreadPool(1)
    return _pools[is_largest]

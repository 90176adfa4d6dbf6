"""Ends a child process together with its parent (Linux: PR_SET_PDEATHSIG)."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1
# Looked up before any fork: in a child of a threaded process the loader may wait for ever for a lock that nobody holds any more.
LIBC = ctypes.CDLL(None, use_errno=True)
PRCTL, UNSHARE = getattr(LIBC, "prctl", None), getattr(LIBC, "unshare", None)


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """In a child before exec: signalled when the thread that started it is gone, so that kill -9 of `up` leaves nothing behind."""
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, how)

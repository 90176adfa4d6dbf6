"""Ends a child process together with its parent (Linux: PR_SET_PDEATHSIG)."""

from __future__ import annotations

import ctypes
import signal

PR_SET_PDEATHSIG = 1
# Looked up before any fork: in a child of a threaded process the loader can deadlock on a lock of a thread that no longer exists.
LIBC = ctypes.CDLL(None, use_errno=True)
PRCTL, UNSHARE = getattr(LIBC, "prctl", None), getattr(LIBC, "unshare", None)


def die_with_parent(how: signal.Signals = signal.SIGTERM) -> None:
    """Call it in a child before exec: the child gets this signal when the thread that started it ends, also by kill -9 of `up`."""
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, how)

"""Settings of the C library's allocator: large blocks go back to the system as soon as they are free."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Of malloc.h.
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
MMAP_FROM_BYTES = 128 * 1024
ARENAS = 2


def return_large_blocks() -> None:
    """Blocks of 128 KiB and more are mapped and unmapped one by one, and small ones come from two arenas. Call it before threads start.

    glibc raises its threshold for such blocks by itself to 32 MiB, after which the pieces of a body stay in its heaps, of which it makes
    up to eight for each core. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_FROM_BYTES)
        libc.mallopt(M_ARENA_MAX, ARENAS)


def trim() -> None:
    """What small blocks have left free in malloc's heaps goes back to the system: tens of MB after many large bodies."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

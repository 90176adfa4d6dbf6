"""Tunes the C library's allocator: freed large blocks return to the operating system at once."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Constants of malloc.h.
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
MMAP_FROM_BYTES = 128 * 1024
ARENAS = 2


def return_large_blocks() -> None:
    """Maps blocks of 128 KiB and more one by one, and takes smaller ones from two arenas. Call it before threads start.

    By default glibc raises this threshold to up to 32 MiB. The pieces of a body then stay in its heaps, of which it creates up to eight
    per core. Other C libraries are unchanged.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_FROM_BYTES)
        libc.mallopt(M_ARENA_MAX, ARENAS)


def trim() -> None:
    """Returns free memory of malloc's heaps to the operating system: tens of MB after many large bodies."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

"""An adjustable wall clock for child processes, preloaded as a C library.

libfaketime is no alternative: it always changes the monotonic clock too, and then every sleep of Python fails.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")
COMPILER = shutil.which("cc")


class Clock:
    """One clock for any number of processes that are started with its `env`. Needs a C compiler."""

    def __init__(self, folder: Path, name: str) -> None:
        assert COMPILER
        self._library, self._file = folder / "clock.so", folder / f"clock-{name}"
        if not self._library.exists():
            subprocess.run([COMPILER, "-O2", "-shared", "-fPIC", "-o", str(self._library), str(SOURCE)], check=True)
        self._file.write_bytes(struct.pack("q", 0))

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._file)}

    def set(self, offset_s: int) -> None:
        """Set the clock's offset from the true time."""
        with self._file.open("r+b") as file:  # in place: processes have it mapped
            file.write(struct.pack("q", offset_s))

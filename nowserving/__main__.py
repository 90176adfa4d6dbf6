"""Runs the command line from a clone or from an installed wheel.

The wheel puts all packages into this folder, so that it adds no other top-level name to site-packages. Modules import each other as
`models.…` or `api.…` all the same: this entry point puts the folder that holds them first on sys.path, for child processes too.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path


def main() -> None:
    """Runs `nowserving` with the arguments of the process."""
    here = Path(__file__).resolve().parent
    home = str(here if (here / "cli").is_dir() else here.parent)
    sys.path.insert(0, home)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
    importlib.import_module("cli.main").main()


if __name__ == "__main__":
    main()

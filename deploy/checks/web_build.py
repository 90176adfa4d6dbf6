"""The chat page: built from web/ into api/static when its sources have changed; with `check`, its sources are checked."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import subprocess
import sys
from pathlib import Path

from deploy.checks import node

ROOT = Path(__file__).resolve().parents[2]
WEB, BUILT = ROOT / "web", ROOT / "api" / "static"
STAMP = BUILT / ".built"
PACKED = (".js", ".css", ".svg")
CHECKS = (("node_modules/vue-tsc/bin/vue-tsc.js", "--noEmit"), ("node_modules/@biomejs/biome/bin/biome", "check", "."))
BUILD = ("node_modules/vite/bin/vite.js", "build", "--logLevel", "warn")
RUN_S = 300


class NotBuilt(Exception):
    """A step of the page's build or check did not succeed; its own words follow."""


def main() -> int:
    """0 when the page is built, or its sources are sound; otherwise what is wrong has been printed."""
    try:
        check() if sys.argv[1:] == ["check"] else build()
    except (node.NoNode, node.NotInstalled, NotBuilt) as error:
        print(f"page: {error}", file=sys.stderr)
        return 1
    return 0


def build() -> None:
    """api/static is what web/ says, its files also packed; nothing is done when that is so already. Raises NotBuilt, and those of node."""
    wanted = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    with (WEB / "package.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.is_file() and STAMP.read_text() == wanted:
            return
        print("page: building the chat page", file=sys.stderr)
        found = node.find()
        found.install(WEB)
        _run(found, *BUILD)
        for file in BUILT.rglob("*"):
            if file.suffix in PACKED:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        STAMP.write_text(wanted)


def check() -> None:
    """The sources are well typed and in the house's shape. Raises NotBuilt, and those of node."""
    found = node.find()
    found.install(WEB)
    for command in CHECKS:
        _run(found, *command)


def fingerprint() -> str:
    """Of all that the page is made of."""
    made = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(path for path in WEB.rglob("*") if path.is_file() and "node_modules" not in path.parts):
        made.update(str(file.relative_to(WEB)).encode() + b"\0" + file.read_bytes())
    return made.hexdigest()


def _run(found: node.Node, *command: str) -> None:
    try:
        run = subprocess.run(
            [found.program, *command], cwd=WEB, env=found.environment, capture_output=True, text=True, check=False, timeout=RUN_S
        )
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"{NotBuilt.__doc__} {command[0]} had not ended after {RUN_S} s.") from error
    if run.returncode:
        raise NotBuilt(f"{NotBuilt.__doc__}\n{(run.stdout + run.stderr)[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())

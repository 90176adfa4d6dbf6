"""Disks that are full: files are written whole or not, a start fails with one clear message and works once there is room."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import redis
import sqlalchemy.exc

from deploy.local import data_folder
from deploy.local.embedded_servers import Postgres, Valkey
from deploy.local.server_process import Server, ServerFailed
from deploy.local.service import Service, ServiceFailed, spawn_program
from deploy.local.stack import CannotStart, Stack
from deploy.local.supervisor import Supervisor
from models.config.settings import settings
from models.database import migrate
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import atomic_file
from tests.deploy.test_supervisor import ANY_PORTS, STAND_IN
from workers.results import spool
from workers.results.attempt_record import AttemptRecord

ROOT = Path(__file__).parents[3]
SMALL_KB = 256


class Disk:
    """A file system of its own in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"

    def fill(self) -> None:
        """No byte fits any more; new names still do."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                return

    def empty(self) -> None:
        self._filler.unlink()

    def resize(self, kb: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={kb}k", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_KB}k", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs root, to mount a small tmpfs")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


SECRETS: dict[str, Callable[[Path], object]] = {
    "secret_keys": data_folder.secret_keys,
    "postgres/password": lambda folder: Postgres(folder / "postgres").prepare(),
    "valkey/password": lambda folder: Valkey(folder / "valkey").prepare(),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_full_disk_leaves_no_empty_secret(disk: Disk, name: str) -> None:
    file = disk.folder / name
    file.parent.mkdir(exist_ok=True)
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        SECRETS[name](disk.folder)
    assert [] == [left for left in file.parent.iterdir() if left.is_file() and left.name != "filler"]
    disk.empty()
    SECRETS[name](disk.folder)

    assert len(file.read_text()) > 30
    assert 0o600 == stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("name", SECRETS)
def test_empty_secret_is_an_error_with_the_next_step(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.touch()

    with pytest.raises((ServerFailed, data_folder.Damaged), match=rf"{name} is empty.*remove .*then start again"):
        SECRETS[name](tmp_path)
    assert "" == file.read_text()


@pytest.mark.parametrize("is_empty", [True, False])
def test_a_database_without_its_password_gets_no_new_one(tmp_path: Path, *, is_empty: bool) -> None:
    server = Postgres(tmp_path / "postgres")
    server.cluster.mkdir(parents=True)
    (server.cluster / "PG_VERSION").write_text("18")
    if is_empty:
        (server.folder / "password").touch()

    with pytest.raises(ServerFailed, match=r"empty or missing.*put your copy of it back"):
        server.prepare()


def test_a_failed_write_keeps_the_old_content(disk: Disk) -> None:
    file = disk.folder / "kept"
    atomic_file.write(file, b"old")
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        atomic_file.write(file, bytes(8192))

    assert b"old" == file.read_bytes()
    assert {"kept", "filler"} == {left.name for left in disk.folder.iterdir()}


def test_a_start_on_a_full_disk_is_one_message_and_works_once_there_is_room(disk: Disk) -> None:
    stack = Stack(disk.folder / "data", env=ANY_PORTS, program=STAND_IN)
    disk.fill()
    with pytest.raises((CannotStart, ServiceFailed), match="No space left"):
        stack.start()
    disk.empty()
    with pytest.raises((CannotStart, ServiceFailed), match=r"(?s)postgres could not be started.*No space left"):
        stack.start()
    disk.resize(400_000)

    with stack:
        assert stack.child("postgres").is_ready()


def _lock(folder: Path) -> None:
    os.close(data_folder.lock(folder))


def _spool(folder: Path) -> None:
    whole = AttemptRecord(uuid4(), uuid4(), 1, 1, "m", AttemptResult(Outcome.SUCCEEDED), JobResult(Status.SUCCEEDED, response=b"{}"))
    kept = spool.save(whole)
    assert [kept] == list((folder / "spool").iterdir())
    kept.unlink()


def _log(folder: Path) -> None:
    """A part that writes a line when it starts, and ends when it cannot."""
    code = "print('started', flush=True); import time; time.sleep(600)"
    log = folder / "logs" / "part.log"
    part = Service("part", spawn_program([sys.executable, "-c", code], env={}), lambda: "started" in log.read_text(), grace_s=5)
    with Supervisor([part], logs=log.parent):
        pass


def _count(folder: Path) -> None:
    """A program counts something, in a process of its own. Where the temporary folder is full, Python takes another."""
    code = """
import os
from models.telemetry import metrics_folder
os.environ[metrics_folder.VARIABLE] = str(metrics_folder.create())
from models.telemetry import metrics
metrics.slots.set(3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)})


METRICS = "the metrics folder"
# What a first start writes, in order; each of these is what `nowserving up` or a part of it runs.
STEPS: dict[str, Callable[[Path], object]] = {
    "the folder's lock": _lock,
    "secret_keys": data_folder.secret_keys,
    "postgres/password": lambda folder: Postgres(folder / "postgres").prepare(),
    "valkey/password": lambda folder: Valkey(folder / "valkey").prepare(),
    "a part's log": _log,
    "connection.json": lambda folder: data_folder.write_connection(folder, settings()),
    METRICS: _count,
    "the spool": _spool,
}
CHEAP = frozenset(STEPS) - {METRICS, "a part's log"}
MADE = ("secret_keys", "postgres/password", "valkey/password", "connection.json")


@pytest.mark.parametrize("point", STEPS)
def test_a_start_that_finds_the_disk_full_at_any_point_works_once_there_is_room(
    disk: Disk, override: Callable[..., None], point: str
) -> None:
    folder = disk.folder / "data"
    override(data_dir=folder)
    disk.resize(4_096)
    names = [name for name in STEPS if name in (point, *CHEAP)]
    for name in names[: names.index(point)]:
        STEPS[name](folder)
    before = _contents(folder)
    disk.fill()
    with nullcontext() if point == METRICS else pytest.raises((OSError, ServiceFailed)):
        STEPS[point](folder)
    assert before.items() <= _contents(folder).items(), "what was made before is as it was"
    assert [] == [name for name in MADE if (file := folder / name).exists() and not file.read_text().strip()]
    disk.empty()
    for name in names:
        STEPS[name](folder)

    after = _contents(folder)
    assert {name: after[name] for name in before if name in MADE and name != "connection.json"} == {
        name: content for name, content in before.items() if name in MADE and name != "connection.json"
    }
    assert {0o600} == {stat.S_IMODE((folder / name).stat().st_mode) for name in MADE}
    assert all(len(after[name]) > 30 for name in MADE)


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in MADE if (folder / name).exists()}


def test_servers_that_find_the_disk_full_start_once_there_is_room_and_want_their_passwords(
    disk: Disk, override: Callable[..., None]
) -> None:
    """Points of a first start: initdb, the database's own start, its tables, and Valkey's start."""
    disk.resize(1_024)
    postgres, valkey = Postgres(disk.folder / "postgres", options=("-c", "fsync=off")), Valkey(disk.folder / "valkey")
    with pytest.raises((OSError, subprocess.CalledProcessError)):
        postgres.start()  # initdb needs 40 MB
    assert not postgres.cluster.exists()
    disk.resize(200_000)
    postgres.start()
    postgres.stop()
    try:
        disk.fill()
        with pytest.raises((OSError, ServerFailed)):
            postgres.start()
        disk.empty()
        postgres.start()
        override(database_url=postgres.url)
        disk.fill()
        with pytest.raises((sqlalchemy.exc.DBAPIError, psycopg.Error)):
            migrate.to_latest()
        with suppress(OSError, ServerFailed):
            valkey.start()
        disk.empty()
        _start_again(postgres, valkey)
        assert migrate.to_latest() is None
        assert migrate.head() == migrate.revision()
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host="127.0.0.1", port=postgres.port, user="postgres", password="", passfile="/dev/null").close()
        with redis.Redis(port=valkey.port) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    finally:
        valkey.stop()
        postgres.stop()


def _start_again(*servers: Server) -> None:
    """As `up` that is started again: what ran is stopped, and all of it starts."""
    for server in servers:
        server.stop()
        server.start()


def test_compose_secrets_that_are_empty_are_refused(tmp_path: Path) -> None:
    (tmp_path / "redis_password").touch()
    made = subprocess.run(
        ["sh", "deploy/secrets.sh", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ},
    )

    assert 1 == made.returncode
    assert "redis_password is empty" in made.stderr
    assert "" == (tmp_path / "redis_password").read_text()

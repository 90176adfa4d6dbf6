"""The supervisor and the stack, with fake programs and real PostgreSQL and Valkey."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local import service_log
from deploy.local.embedded_servers import Postgres, Valkey
from deploy.local.service import Service, ServiceFailed, spawn_program
from deploy.local.stack import CannotStart, FolderInUse, Stack
from deploy.local.supervisor import Supervisor
from tests.support.programs import fake_cli

STAND_IN = (sys.executable, fake_cli.__file__)
PARTS = ("postgres", "valkey", "api", "pacer", "worker", "flower")
# Excludes the servers of the other tests of this run.
ALONE = {"NOWSERVING_DATABASE_URL": "", "NOWSERVING_REDIS_URL": "", "NOWSERVING_SECRET_KEYS": ""}
ANY_PORTS = {"NOWSERVING_PORT": "0", "NOWSERVING_FLOWER_PORT": "0", "NOWSERVING_SHUTDOWN_GRACE_S": "5", **ALONE}


def test_dead_service_is_restarted(tmp_path: Path) -> None:
    with Supervisor([_service("one", "import time; time.sleep(600)")], logs=tmp_path) as supervisor:
        one = supervisor.child("one")
        before = one.pid
        one.kill()

        _until(lambda: one.pid not in (None, before))


def test_restart_backoff_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Supervisor([_service("one", "import time; time.sleep(0.3); raise SystemExit(7)")], logs=tmp_path):
        _until(lambda: len(caplog.records) >= 2)

    waits = [re.findall(r"exit status 7\); it restarts in (\S+) s", record.getMessage()) for record in caplog.records]
    assert [["0.2"], ["0.4"]] == waits[:2]


def test_large_log_is_rotated_while_service_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_log, "MAX_LOG_BYTES", 100_000)
    # Enough for one rotation, then too slow for a second one during the test.
    code = """
import itertools, time
for n in itertools.count():
    print(f"line {n} " + "x" * 10_000, flush=True)
    time.sleep(0.01 if n < 15 else 1)"""
    with Supervisor([_service("one", code)], logs=tmp_path) as supervisor:
        one = supervisor.child("one")
        pid = one.pid
        _until(lambda: _numbers(tmp_path / "one.log.1") and _numbers(tmp_path / "one.log")[:1] > [0])
        kept, going_on = _numbers(tmp_path / "one.log.1"), _numbers(tmp_path / "one.log")

        assert one.pid == pid
    assert kept[-1] < going_on[0]
    assert 0o600 == stat.S_IMODE((tmp_path / "one.log.1").stat().st_mode)


def test_services_stop_in_reverse_order(tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = f"""
import signal, sys, threading
def end(*_):
    open({str(order)!r}, "a").write(sys.argv[1] + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("set", flush=True)
threading.Event().wait()"""
    names = ["first", "second", "third"]
    parts = [_service(name, code, name, ready=_contains(tmp_path / f"{name}.log", "set")) for name in names]
    with Supervisor(parts, logs=tmp_path):
        pass

    assert ["third", "second", "first"] == order.read_text().split()


def test_service_that_ignores_stop_is_killed_after_grace(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); time.sleep(600)"
    supervisor = Supervisor(
        [_service("stubborn", code, ready=_contains(tmp_path / "stubborn.log", "stubborn"), grace_s=0.3)], logs=tmp_path
    )
    supervisor.start()
    pid = supervisor.child("stubborn").pid
    supervisor.stop()

    assert not _lives(pid)


def test_second_stop_request_kills_at_once(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('stubborn', flush=True); time.sleep(600)"
    supervisor = Supervisor(
        [_service("stubborn", code, ready=_contains(tmp_path / "stubborn.log", "stubborn"), grace_s=600)], logs=tmp_path
    )
    supervisor.start()
    supervisor.request_stop()
    supervisor.kill()
    supervisor.wait()

    assert -signal.SIGKILL == supervisor.child("stubborn").exit_code


def test_start_up_failure_names_service_and_log(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [_service("well", "import time; time.sleep(600)"), _service("ill", "raise SystemExit('no disk')", ready=_never)], logs=tmp_path
    )

    with pytest.raises(ServiceFailed, match=r"(?s)ill died during start-up \(exit status 1\).*no disk"):
        supervisor.start()
    assert not supervisor.child("well").is_running()


def test_missing_program_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"(?s)gone could not be started.*/nowhere/at/all"):
        Supervisor([Service("gone", spawn_program(["/nowhere/at/all"], env={}))], logs=tmp_path).start()


def test_ready_timeout_fails_start(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match="slow was not ready after"):
        Supervisor([_service("slow", "import time; time.sleep(600)", ready=_never, ready_within_s=0.3)], logs=tmp_path).start()


def test_log_lines_are_echoed_with_service_name(tmp_path: Path) -> None:
    lines: list[str] = []
    with Supervisor([_service("one", "import time; print('hello', flush=True); time.sleep(600)")], logs=tmp_path, echo=lines.append):
        _until(lambda: lines)

    assert ["one | hello"] == [line.strip() for line in lines]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), env=ANY_PORTS, program=STAND_IN) as running:
        pids = [child.pid for name in PARTS if (child := running.child(name))]
        yield running
    assert [] == [pid for pid in pids if _lives(pid)]


def test_stack_has_addresses_and_chosen_secrets(stack: Stack) -> None:
    at = stack.addresses

    assert at.docs == at.api.replace("/v1", "/docs")
    assert re.fullmatch(r"operator:\S{12,}", at.flower_login)
    assert "true" == stack.environment["NOWSERVING_OPEN_KEYS"]
    assert 1 == len(stack.settings.secrets())
    assert 0o600 == stat.S_IMODE((stack.data_dir / "secret_keys").stat().st_mode)


def test_postgres_restarts_on_its_port_with_data(stack: Stack) -> None:
    url = stack.addresses.database.replace("+psycopg", "")
    with psycopg.connect(url) as session:
        session.execute("CREATE TABLE kept AS SELECT 1 AS n")
    postgres = stack.child("postgres")
    postgres.kill()
    postgres.wait_ready()

    with psycopg.connect(url) as session:
        assert (1,) == session.execute("SELECT n FROM kept").fetchone()


def test_service_can_be_stopped_and_started(stack: Stack) -> None:
    worker = stack.child("worker")
    worker.stop()
    assert worker.pid is None

    worker.start()
    worker.wait_ready()


def test_given_servers_are_used(tmp_path: Path, postgres: Postgres, valkey: Valkey) -> None:
    given = {"NOWSERVING_DATABASE_URL": postgres.url, "NOWSERVING_REDIS_URL": valkey.url}
    with Stack(tmp_path / "data", env={**ANY_PORTS, **given}, program=STAND_IN) as stack:
        assert (postgres.url, valkey.url) == (stack.addresses.database, stack.addresses.redis)

    assert {"api.log", "flower.log", "migrate.log", "pacer.log", "worker.log"} == {
        log.name for log in (tmp_path / "data" / "logs").iterdir()
    }


def test_stack_can_be_restarted(tmp_path: Path) -> None:
    once_more = Stack(tmp_path / "data", env=ANY_PORTS, program=STAND_IN)
    for _ in range(2):
        with once_more:
            assert once_more.child("postgres").is_ready()


def test_second_stack_on_folder_is_refused(stack: Stack) -> None:
    with pytest.raises(FolderInUse, match=rf"process {os.getpid()}\) runs on {stack.data_dir}"):
        Stack(stack.data_dir, env=ANY_PORTS, program=STAND_IN).start()


def test_failed_migration_stops_start(tmp_path: Path) -> None:
    with pytest.raises(ServiceFailed, match=r"(?s)migrate died.*migrate fails as asked"):
        Stack(tmp_path / "data", env={**ANY_PORTS, "STAND_IN_FAILS": "migrate"}, program=STAND_IN).start()


def test_port_in_use_names_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        with pytest.raises(CannotStart, match=rf"port {port} is in use.*NOWSERVING_PORT"):
            Stack(tmp_path / "data", env={**ANY_PORTS, "NOWSERVING_PORT": port}, program=STAND_IN).start()


def test_wrong_setting_is_named_without_secret(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="NOWSERVING_SECRET_KEYS must be 32 random bytes") as caught:
        Stack(tmp_path / "data", env={**ANY_PORTS, "NOWSERVING_SECRET_KEYS": "hunter2"}, program=STAND_IN).start()
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A ready `nowserving up` process with fake programs on tmp_path/data; its worker has a child."""
    code = f"from deploy.local import stack; stack.PROGRAM = {STAND_IN!r}; stack.up()"
    env = {**os.environ, **ANY_PORTS, "NOWSERVING_DATA_DIR": str(tmp_path / "data"), "STAND_IN_CHILD": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    assert any(line == "ready\n" for line in process.stdout), "it never became ready"
    _grandchild(tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_stops_stack_with_status_0(up: subprocess.Popen[str], tmp_path: Path) -> None:
    children, grandchild = _children(up.pid), _grandchild(tmp_path)
    up.send_signal(signal.SIGINT)

    result, _ = up.communicate(timeout=20)
    assert (0, True) == (up.returncode, result.endswith("stopped\n"))
    assert [] == [pid for pid in children if _lives(pid)]
    _until(lambda: not _lives(grandchild))


def test_killed_supervisor_leaves_no_process_and_frees_folder(up: subprocess.Popen[str], tmp_path: Path) -> None:
    children, grandchild = _children(up.pid), _grandchild(tmp_path)
    up.kill()

    with Stack(tmp_path / "data", env=ANY_PORTS, program=STAND_IN):
        assert [] == [pid for pid in children if _lives(pid)]
        _until(lambda: not _lives(grandchild))


def test_failed_supervisor_stops_services_and_raises(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise BrokenPipeError("the terminal is closed")

    part = _service("one", "import time; time.sleep(0.3); print('late', flush=True); time.sleep(600)")
    supervisor = Supervisor([part], logs=tmp_path, echo=refuse)
    supervisor.start()

    with pytest.raises(ServiceFailed, match="the terminal is closed"):
        supervisor.wait()
    assert supervisor.child("one").pid is None


def _service(
    name: str, code: str, *arguments: str, ready: Callable[[], bool] = lambda: True, grace_s: float = 5, ready_within_s: float = 10
) -> Service:
    spawn = spawn_program([sys.executable, "-c", code, *arguments], env={})
    return Service(name, spawn, ready, grace_s=grace_s, ready_within_s=ready_within_s)


def _never() -> bool:
    return False


def _numbers(log: Path) -> list[int]:
    """Returns the numbers of the complete lines `line n …`."""
    return [int(number) for number in re.findall(r"^line (\d+) x+$", log.read_text(), re.MULTILINE)] if log.exists() else []


def _contains(log: Path, text: str) -> Callable[[], bool]:
    return lambda: log.exists() and text in log.read_text()


def _children(pid: int) -> list[int]:
    return [int(word) for children in Path(f"/proc/{pid}/task").glob("*/children") for word in children.read_text().split()]


def _grandchild(tmp_path: Path) -> int:
    """Returns the process that the fake worker started in its first run. The worker is ready before it prints the pid."""
    log = tmp_path / "data" / "logs" / "worker.log"
    _until(_contains(log, "child "))
    _until(lambda: re.search(r"child (\d+)\n", log.read_text()))
    return int(re.findall(r"child (\d+)\n", log.read_text())[0])


def _lives(pid: int | None) -> bool:
    """Returns whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition: Callable[[], object], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)

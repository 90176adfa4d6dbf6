"""The supervisor and the stack, with stand-ins for the programs of ours and real PostgreSQL and Valkey."""

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

from deploy.local import child_process
from deploy.local.embedded_servers import Postgres, Valkey
from deploy.local.service import Part, PartFailed, program
from deploy.local.stack import CannotStart, FolderInUse, Stack
from deploy.local.supervisor import Supervisor
from tests.support.programs import fake_cli

STAND_IN = (sys.executable, fake_cli.__file__)
PARTS = ("postgres", "valkey", "api", "pacer", "worker", "flower")
# Nothing of the servers that other tests of this run use.
ALONE = {"NOWSERVING_DATABASE_URL": "", "NOWSERVING_REDIS_URL": "", "NOWSERVING_SECRET_KEYS": ""}
ANY_PORTS = {"NOWSERVING_PORT": "0", "NOWSERVING_FLOWER_PORT": "0", "NOWSERVING_SHUTDOWN_GRACE_S": "5", **ALONE}


def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    with Supervisor([_part("one", "import time; time.sleep(600)")], logs=tmp_path) as supervisor:
        one = supervisor.part("one")
        before = one.pid
        one.kill()

        _until(lambda: one.pid not in (None, before))


def test_a_part_that_keeps_dying_is_given_more_and_more_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Supervisor([_part("one", "import time; time.sleep(0.3); raise SystemExit(7)")], logs=tmp_path):
        _until(lambda: len(caplog.records) >= 2)

    waits = [re.findall(r"exit status 7\); it is started again in (\S+) s", record.getMessage()) for record in caplog.records]
    assert [["0.2"], ["0.4"]] == waits[:2]


def test_a_log_that_grows_is_moved_aside_while_its_part_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "LOG_BYTES", 100_000)
    # Enough for one cut, then so slowly that there is no second one while this test looks.
    code = """
import itertools, time
for n in itertools.count():
    print(f"line {n} " + "x" * 10_000, flush=True)
    time.sleep(0.01 if n < 15 else 1)"""
    with Supervisor([_part("one", code)], logs=tmp_path) as supervisor:
        one = supervisor.part("one")
        pid = one.pid
        _until(lambda: _numbers(tmp_path / "one.log.1") and _numbers(tmp_path / "one.log")[:1] > [0])
        kept, going_on = _numbers(tmp_path / "one.log.1"), _numbers(tmp_path / "one.log")

        assert one.pid == pid
    assert kept[-1] < going_on[0]
    assert 0o600 == stat.S_IMODE((tmp_path / "one.log.1").stat().st_mode)


def test_parts_stop_in_reverse_order(tmp_path: Path) -> None:
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
    parts = [_part(name, code, name, ready=_says(tmp_path / f"{name}.log", "set")) for name in names]
    with Supervisor(parts, logs=tmp_path):
        pass

    assert ["third", "second", "first"] == order.read_text().split()


def test_a_part_that_does_not_listen_is_killed_after_its_grace(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    supervisor = Supervisor([_part("deaf", code, ready=_says(tmp_path / "deaf.log", "deaf"), grace_s=0.3)], logs=tmp_path)
    supervisor.start()
    pid = supervisor.part("deaf").pid
    supervisor.stop()

    assert not _lives(pid)


def test_second_stop_request_ends_the_grace_time(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    supervisor = Supervisor([_part("deaf", code, ready=_says(tmp_path / "deaf.log", "deaf"), grace_s=600)], logs=tmp_path)
    supervisor.start()
    supervisor.ask_to_stop()
    supervisor.kill()
    supervisor.wait()

    assert -signal.SIGKILL == supervisor.part("deaf").exit_code


def test_a_part_that_dies_during_start_up_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [_part("well", "import time; time.sleep(600)"), _part("ill", "raise SystemExit('no disk')", ready=_never)], logs=tmp_path
    )

    with pytest.raises(PartFailed, match=r"(?s)ill died during start-up \(exit status 1\).*no disk"):
        supervisor.start()
    assert not supervisor.part("well").is_running()


def test_a_program_that_does_not_exist_is_a_clear_message(tmp_path: Path) -> None:
    with pytest.raises(PartFailed, match=r"(?s)gone could not be started.*/nowhere/at/all"):
        Supervisor([Part("gone", program(["/nowhere/at/all"], env={}))], logs=tmp_path).start()


def test_a_part_that_is_never_ready_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    with pytest.raises(PartFailed, match="slow was not ready after"):
        Supervisor([_part("slow", "import time; time.sleep(600)", ready=_never, ready_within_s=0.3)], logs=tmp_path).start()


def test_every_line_of_a_log_can_be_shown_with_its_part(tmp_path: Path) -> None:
    lines: list[str] = []
    with Supervisor([_part("one", "import time; print('hello', flush=True); time.sleep(600)")], logs=tmp_path, echo=lines.append):
        _until(lambda: lines)

    assert ["one | hello"] == [line.strip() for line in lines]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), env=ANY_PORTS, program=STAND_IN) as running:
        pids = [child.pid for name in PARTS if (child := running.part(name))]
        yield running
    assert [] == [pid for pid in pids if _lives(pid)]


def test_stack_chooses_ports_and_secrets_that_are_not_set(stack: Stack) -> None:
    at = stack.addresses

    assert at.docs == at.api.replace("/v1", "/docs")
    assert re.fullmatch(r"operator:\S{12,}", at.flower_login)
    assert "true" == stack.environment["NOWSERVING_OPEN_KEYS"]
    assert 1 == len(stack.settings.secrets())
    assert 0o600 == stat.S_IMODE((stack.data_dir / "secret_keys").stat().st_mode)


def test_postgres_comes_back_on_its_port_with_its_data(stack: Stack) -> None:
    url = stack.addresses.database.replace("+psycopg", "")
    with psycopg.connect(url) as session:
        session.execute("CREATE TABLE kept AS SELECT 1 AS n")
    postgres = stack.part("postgres")
    postgres.kill()
    postgres.wait_ready()

    with psycopg.connect(url) as session:
        assert (1,) == session.execute("SELECT n FROM kept").fetchone()


def test_a_part_can_be_taken_away_and_brought_back(stack: Stack) -> None:
    worker = stack.part("worker")
    worker.stop()
    assert worker.pid is None

    worker.start()
    worker.wait_ready()


def test_servers_that_are_given_are_used_and_none_is_brought(tmp_path: Path, postgres: Postgres, valkey: Valkey) -> None:
    given = {"NOWSERVING_DATABASE_URL": postgres.url, "NOWSERVING_REDIS_URL": valkey.url}
    with Stack(tmp_path / "data", env={**ANY_PORTS, **given}, program=STAND_IN) as stack:
        assert (postgres.url, valkey.url) == (stack.addresses.database, stack.addresses.redis)

    assert {"api.log", "flower.log", "migrate.log", "pacer.log", "worker.log"} == {
        log.name for log in (tmp_path / "data" / "logs").iterdir()
    }


def test_a_stack_can_be_stopped_and_started_again(tmp_path: Path) -> None:
    once_more = Stack(tmp_path / "data", env=ANY_PORTS, program=STAND_IN)
    for _ in range(2):
        with once_more:
            assert once_more.part("postgres").is_ready()


def test_a_second_stack_on_the_same_folder_is_refused(stack: Stack) -> None:
    with pytest.raises(FolderInUse, match=rf"process {os.getpid()}\) runs on {stack.data_dir}"):
        Stack(stack.data_dir, env=ANY_PORTS, program=STAND_IN).start()


def test_a_failed_migration_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(PartFailed, match=r"(?s)migrate died.*migrate fails as asked"):
        Stack(tmp_path / "data", env={**ANY_PORTS, "STAND_IN_FAILS": "migrate"}, program=STAND_IN).start()


def test_a_port_in_use_names_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])

        with pytest.raises(CannotStart, match=rf"port {port} is in use.*NOWSERVING_PORT"):
            Stack(tmp_path / "data", env={**ANY_PORTS, "NOWSERVING_PORT": port}, program=STAND_IN).start()


def test_a_wrong_setting_is_named_and_no_secret_is_shown(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="NOWSERVING_SECRET_KEYS must be 32 random bytes") as caught:
        Stack(tmp_path / "data", env={**ANY_PORTS, "NOWSERVING_SECRET_KEYS": "hunter2"}, program=STAND_IN).start()
    assert "hunter2" not in str(caught.value)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """`nowserving up` as a process of its own, with stand-ins, on tmp_path/data; it is ready, and its worker has a child."""
    code = f"from deploy import stack; stack.PROGRAM = {STAND_IN!r}; stack.up()"
    env = {**os.environ, **ANY_PORTS, "NOWSERVING_DATA_DIR": str(tmp_path / "data"), "STAND_IN_CHILD": "1"}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    assert any(line == "ready\n" for line in process.stdout), "it never became ready"
    _grandchild(tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_ctrl_c_ends_the_whole_stack_with_status_0(up: subprocess.Popen[str], tmp_path: Path) -> None:
    children, grandchild = _children(up.pid), _grandchild(tmp_path)
    up.send_signal(signal.SIGINT)

    result, _ = up.communicate(timeout=20)
    assert (0, True) == (up.returncode, result.endswith("stopped\n"))
    assert [] == [pid for pid in children if _lives(pid)]
    _until(lambda: not _lives(grandchild))


def test_nothing_outlives_a_killed_supervisor_and_the_folder_can_be_used_again(up: subprocess.Popen[str], tmp_path: Path) -> None:
    children, grandchild = _children(up.pid), _grandchild(tmp_path)
    up.kill()

    with Stack(tmp_path / "data", env=ANY_PORTS, program=STAND_IN):
        assert [] == [pid for pid in children if _lives(pid)]
        _until(lambda: not _lives(grandchild))


def test_broken_supervisor_stops_all_services_and_reports_it(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise BrokenPipeError("nobody reads the terminal")

    part = _part("one", "import time; time.sleep(0.3); print('late', flush=True); time.sleep(600)")
    supervisor = Supervisor([part], logs=tmp_path, echo=refuse)
    supervisor.start()

    with pytest.raises(PartFailed, match="nobody reads the terminal"):
        supervisor.wait()
    assert supervisor.part("one").pid is None


def _part(
    name: str, code: str, *arguments: str, ready: Callable[[], bool] = lambda: True, grace_s: float = 5, ready_within_s: float = 10
) -> Part:
    spawn = program([sys.executable, "-c", code, *arguments], env={})
    return Part(name, spawn, ready, grace_s=grace_s, ready_within_s=ready_within_s)


def _never() -> bool:
    return False


def _numbers(log: Path) -> list[int]:
    """Of the whole lines that say `line n …`."""
    return [int(found) for found in re.findall(r"^line (\d+) x+$", log.read_text(), re.MULTILINE)] if log.exists() else []


def _says(log: Path, what: str) -> Callable[[], bool]:
    return lambda: log.exists() and what in log.read_text()


def _children(pid: int) -> list[int]:
    return [int(word) for children in Path(f"/proc/{pid}/task").glob("*/children") for word in children.read_text().split()]


def _grandchild(tmp_path: Path) -> int:
    """The process that the stand-in for the worker started in its first run. A worker counts as ready before it has said so."""
    log = tmp_path / "data" / "logs" / "worker.log"
    _until(_says(log, "child "))
    _until(lambda: re.search(r"child (\d+)\n", log.read_text()))
    return int(re.findall(r"child (\d+)\n", log.read_text())[0])


def _lives(pid: int | None) -> bool:
    """Whether it runs; a zombie that nobody collects does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(is_so: Callable[[], object], within_s: float = 15) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)

"""The prefork server: programs that it forks behave as those that have an interpreter of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.platform.fork_client import Forker, ForkerGone
from models.platform.preloads import PRELOADS
from tests.support.programs.process import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of programs for `python -m`."""
    programs = {
        "shows": "import json, os, sys; print(json.dumps([sys.argv, os.environ.get('COLOUR'), 'decimal' in sys.modules]), flush=True)",
        "waits": "import time; print('waits', flush=True); time.sleep(600)",
        "refuses": "import sys; sys.exit('no colour is set')",
        "draws": "import random, uuid_utils; print(uuid_utils.uuid4(), uuid_utils.uuid7(), random.random(), flush=True)",
        "breaks": "raise RuntimeError('broken')",
    }
    for name, code in programs.items():
        (tmp_path / f"{name}.py").write_text(code)
    return tmp_path


@pytest.fixture
def forker(folder: Path) -> Iterator[Forker]:
    environment = {**os.environ, "PYTHONPATH": f"{Path.cwd()}:{folder}", "SPT_NOENV": "1"}
    made = Forker.spawn(("decimal", "models.platform.ids", "no.such.module"), env=environment)
    yield made
    made.close()


def wait_begun(folder: Path) -> None:
    """The program `waits` runs."""
    log = folder / "log"
    until(lambda: log.exists() and "waits" in log.read_text(), what="begun")


def test_a_forked_program_has_its_arguments_environment_and_the_libraries(forker: Forker, folder: Path) -> None:
    process = forker.start(["shows", "--blue"], env={"COLOUR": "blue"}, log=folder / "log")

    assert 0 == process.wait(20)
    assert '[["' + str(folder / "shows.py") + '", "--blue"], "blue", true]\n' == (folder / "log").read_text()


def test_forked_programs_draw_ids_of_their_own(forker: Forker, folder: Path) -> None:
    drawn = []
    for n in range(3):
        forker.start(["draws"], env={}, log=folder / f"log-{n}").wait(20)
        drawn += (folder / f"log-{n}").read_text().split()

    assert 9 == len(set(drawn))


@pytest.mark.parametrize(("program", "words"), [("refuses", "no colour is set"), ("breaks", "RuntimeError: broken")])
def test_failing_forked_program_prints_its_error_and_exits_with_1(forker: Forker, folder: Path, program: str, words: str) -> None:
    assert 1 == forker.start([program], env={}, log=folder / "log").wait(20)
    assert words in (folder / "log").read_text()


def test_a_killed_program_keeps_its_pid_until_it_is_collected(forker: Forker, folder: Path) -> None:
    process = forker.start(["waits"], env={}, log=folder / "log")
    os.kill(process.pid, signal.SIGKILL)
    until(process.has_ended, what="ended")

    assert Path(f"/proc/{process.pid}").exists()
    assert -signal.SIGKILL == process.poll()
    assert not Path(f"/proc/{process.pid}").exists()


def test_programs_end_with_the_server_and_a_dead_server_is_an_error(forker: Forker, folder: Path) -> None:
    process = forker.start(["waits"], env={}, log=folder / "log", dies=signal.SIGTERM)
    wait_begun(folder)
    assert forker.process
    forker.process.kill()

    until(lambda: process.poll() is not None, what="ended")
    with pytest.raises(ForkerGone):
        forker.start(["waits"], env={}, log=folder / "log")


def test_a_forked_program_is_named_as_its_command(forker: Forker, folder: Path) -> None:
    process = forker.start(["waits", "--long"], env={}, log=folder / "log")
    wait_begun(folder)

    assert "python -m waits --long" in Path(f"/proc/{process.pid}/cmdline").read_text()
    process.kill()
    process.wait(20)


def test_preloaded_modules_read_no_setting_and_choose_no_counters(tmp_path: Path) -> None:
    """What differs between the programs (settings, PROMETHEUS_MULTIPROC_DIR) is read after the fork."""
    code = f"""
import sys
from models.config import settings
from models.platform import fork_server
fork_server.preload({PRELOADS!r})
print(settings.settings.cache_info().currsize, sorted({{'prometheus_client', 'workers.broker.celery_app', 'flower'}} & set(sys.modules)),
      sorted(set({PRELOADS!r}) - set(sys.modules)))"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})

    assert "0 [] []\n" == result.stdout
    assert not re.search("Error", result.stderr)

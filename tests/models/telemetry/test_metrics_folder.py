"""Folders of counts in the temporary directory go with their program, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from models.telemetry import metrics_folder

PROGRAM = """
import os, sys, time
from models.telemetry import metrics_folder
print(metrics_folder.create(), flush=True)
if sys.argv[1] == "forks" and os.fork() == 0:
    sys.exit()
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def started(kind: str = "plain") -> tuple[subprocess.Popen[str], Path]:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    return program, Path(program.stdout.readline().strip())


def ended(program: subprocess.Popen[str]) -> None:
    program.communicate("", timeout=30)


def test_it_goes_when_the_program_ends_and_not_when_a_fork_of_it_does(temporary: Path) -> None:
    program, folder = started("forks")
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert folder.is_dir()
    ended(program)

    assert [] == list(temporary.iterdir())


def test_start_removes_folders_of_killed_programs_only(temporary: Path) -> None:
    (killed, abandoned), (running, used) = started(), started()
    (temporary / "nowserving-metrics-notes").mkdir()
    killed.send_signal(signal.SIGKILL)
    killed.wait(30)
    assert abandoned.is_dir()
    mine = metrics_folder.create()

    assert {mine, used, temporary / "nowserving-metrics-notes"} == set(temporary.iterdir())
    ended(running)
    metrics_folder.remove(mine)

"""`nowserving up` as an operator runs it: the whole stack, a dead service, a second stack, and a clean stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.local.server_process import die_with_parent
from tests.support.programs.process import until
from tests.upstream.client import FakeUpstream

ROOT = Path(__file__).parents[2]
# Two stacks start at once, also on a busy machine.
START_S = 240


class Up:
    """One `nowserving up` process on its own folder."""

    def __init__(self, folder: Path, upstream: FakeUpstream) -> None:
        self.folder, self._log = folder, folder / "up.log"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("NOWSERVING_")}
        environment = {
            **plain,
            "OPENAI_BASE_URL": upstream.base_url,
            "NOWSERVING_PORT": "0",
            "NOWSERVING_FLOWER_PORT": "0",
            "NOWSERVING_DATA_DIR": str(folder / "data"),
            "NOWSERVING_SHUTDOWN_GRACE_S": "10",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "up"], cwd=ROOT, env=environment, stdout=log, stderr=log, preexec_fn=die_with_parent
            )

    def wait_ready(self) -> None:
        until(lambda: "Ctrl-C stops" in self.log_text() or self.process.poll() is not None, what="up", within_s=START_S)
        assert self.process.poll() is None, self.log_text()

    def log_text(self) -> str:
        return self._log.read_text()

    @property
    def api(self) -> str:
        match = re.search(r"http://127\.0\.0\.1:\d+/v1", self.log_text())
        assert match, self.log_text()
        return match.group()

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": "Bearer sk-up-test", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.api + path, data=data, headers=headers), timeout=70) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def ask(self, prompt: str) -> dict[str, Any]:
        """Returns the job with this prompt once it has ended."""
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": prompt}]}
        made = self.call("/jobs", {"endpoint": "/v1/chat/completions", "body": body})
        return self.call(f"/jobs/{made['id']}?wait=60")

    def parts(self) -> list[psutil.Process]:
        """Returns every process of this stack, found by its folder."""
        mine = str(self.folder / "data")
        return [one for one in psutil.process_iter() if one.pid != os.getpid() and mine in _environment(one)]


def _environment(process: psutil.Process) -> str:
    try:
        return process.environ().get("NOWSERVING_DATA_DIR", "") + " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.fixture(scope="module")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as started:
        yield started


@pytest.fixture(scope="module")
def stacks(upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, Up]]:
    made = (Up(tmp_path_factory.mktemp("one"), upstream), Up(tmp_path_factory.mktemp("two"), upstream))
    try:
        for up in made:
            up.wait_ready()
        yield made
    finally:
        for up in made:
            if up.process.poll() is None:
                up.process.send_signal(signal.SIGTERM)
        for up in made:
            up.process.wait(60)


def test_two_stacks_run_independently(stacks: tuple[Up, Up]) -> None:
    one, two = stacks

    assert "echo: one" == one.ask("one")["result"]["choices"][0]["message"]["content"]
    assert "echo: two" == two.ask("two")["result"]["choices"][0]["message"]["content"]
    assert 1 == len(one.call("/jobs")["data"])


def beside(up: Up, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command beside this stack that gets only its folder."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("NOWSERVING_")}
    environment = {**plain, "NOWSERVING_DATA_DIR": str(up.folder / "data")}
    argv = [sys.executable, "-m", "cli.main", *words]
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="only Linux has it")
@pytest.mark.parametrize("service", ["gunicorn", "workers.pacer", "workers.main", "celeryd", "forker", "bin/postgres", "valkey-server"])
def test_services_use_batch_scheduling(stacks: tuple[Up, Up], service: str) -> None:
    children = psutil.Process(stacks[0].process.pid).children(recursive=True)
    policies = {os.sched_getscheduler(child.pid) for child in children if service in " ".join(child.cmdline())}

    assert {os.SCHED_BATCH} == policies


def test_commands_find_running_stack(stacks: tuple[Up, Up]) -> None:
    up = stacks[0]
    made = beside(up, "pools", "create", "team")
    facts = up.folder / "data" / "connection.json"

    assert 0 == made.returncode, made.stderr
    assert "team" in beside(up, "pools", "list").stdout
    assert "team" not in beside(stacks[1], "pools", "list").stdout
    assert 0o600 == facts.stat().st_mode & 0o777


def test_dead_worker_is_restarted(stacks: tuple[Up, Up]) -> None:
    up = stacks[0]
    for process in up.parts():
        if "workers.main" in " ".join(process.cmdline()):
            process.kill()

    assert "succeeded" == up.ask("after the worker died")["status"]


def test_stopped_stack_leaves_no_process(stacks: tuple[Up, Up]) -> None:
    up = stacks[1]
    up.process.send_signal(signal.SIGTERM)
    status = up.process.wait(60)
    deadline = time.monotonic() + 10
    while up.parts() and time.monotonic() < deadline:
        time.sleep(0.1)

    assert 0 == status
    assert [] == up.parts()
    assert not (up.folder / "data" / "connection.json").exists()


def test_killed_stack_leaves_no_process(stacks: tuple[Up, Up]) -> None:
    up = stacks[0]
    assert up.parts()
    up.process.kill()

    until(lambda: not up.parts(), what=f"gone: {[one.pid for one in up.parts()]}")

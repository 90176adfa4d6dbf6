"""`nowserving top` shows waiting jobs, reasons and times, over HTTP."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import nowserving
from cli.top import span
from models.database import db
from models.jobs import workers
from models.keys import parking
from models.keys.keys import Limits
from tests.api.server.test_api_server import Api, serving
from tests.support.programs.process import until
from tests.support.programs.processes import empty_tables
from tests.support.queue_tools import credential_of, known, query, start, store_limits, submit

TOKEN = "ops-token-of-top-0123456789"


@pytest.fixture(scope="module")
def api(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    empty_tables()
    with serving(tmp_path_factory.mktemp("top") / "api.log", NOWSERVING_OPS_TOKEN=TOKEN) as started:
        yield started


def top(api: Api, *words: str, token: str | None = TOKEN) -> Result:
    environment = {"NOWSERVING_URL": f"http://127.0.0.1:{api.port}", "NOWSERVING_OPS_TOKEN": token, "COLUMNS": "160"}
    return CliRunner().invoke(nowserving, ["top", *words], env=environment)


def test_top_shows_waiting_jobs_reasons_and_times(api: Api) -> None:
    who = known("sk-scene")
    with db.begin() as session:
        store_limits(session, credential_of(session, who), Limits(rpm=10))
    runs = submit(who, model="gpt-4o-mini")
    start(who, runs)
    for _ in range(3):
        submit(who, model="gpt-4o-mini", flow="[bold]anna")
    query("UPDATE lane SET queued = 3, blocked_by = 'rpm', rpm = 10")
    with db.begin() as session:
        workers.record_heartbeat(session, "worker0@here", slots=64, jobs=[runs])
        parking.park(session, credential_of(session, known("sk-parked")), reason="401 from the upstream", error=None)
    result = top(api, "--once").output

    assert re.search(r"waiting 3 +running 1 of 64 slots", result)
    assert re.search(r"gpt-4o-mini +3 +1 .*9 of 10 rpm +rpm", result)
    assert "[bold]anna" in result
    assert "401 from the upstream" in result


def test_top_shows_idle_stack(api: Api) -> None:
    empty_tables()
    result = top(api, "--once").output

    assert "no jobs are waiting" in result
    assert "no worker has reported" in result


@pytest.mark.parametrize(("token", "words"), [("wrong", "token"), (None, "NOWSERVING_OPS_TOKEN")])
def test_top_without_valid_token_explains_fix(api: Api, token: str | None, words: str) -> None:
    ended = top(api, "--once", token=token)

    assert 1 == ended.exit_code
    assert words in ended.output
    assert "Traceback" not in ended.output


def test_top_reports_wrong_url_in_one_line(api: Api) -> None:
    ended = top(api, "--once", "--url", "http://127.0.0.1:9")

    assert 1 == ended.exit_code
    assert "cannot be used" in ended.output


def test_top_runs_until_ctrl_c_and_restores_terminal(api: Api, tmp_path: Path) -> None:
    screen, terminal = pty.openpty()
    environment = {**os.environ, "NOWSERVING_URL": f"http://127.0.0.1:{api.port}", "NOWSERVING_OPS_TOKEN": TOKEN, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "top", "--every", "0.5"], env=environment, stdin=terminal, stdout=terminal, stderr=terminal,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell starts background processes with SIGINT ignored
    )  # fmt: skip
    os.close(terminal)
    os.set_blocking(screen, False)
    result = bytearray()

    def frames() -> int:
        with suppress(OSError):
            result.extend(os.read(screen, 65_536))
        return result.count(b"slots")

    until(lambda: frames() >= 2, what="two pictures")
    process.send_signal(signal.SIGINT)
    assert 0 == process.wait(20)
    frames()
    os.close(screen)

    assert result.rstrip().endswith(b"\x1b[?25h") or b"\x1b[?1049l" in result
    assert b"Traceback" not in result


@pytest.mark.parametrize(("seconds", "result"), [(None, "-"), (0, "0s"), (59.6, "1min 0s"), (7_500, "2h 5min"), (90_000, "1d 1h")])
def test_durations_have_two_units(seconds: float | None, result: str) -> None:
    assert result == span(seconds)

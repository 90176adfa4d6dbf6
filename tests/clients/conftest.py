"""A stack for the client programs, started once: API, pacer, worker, and a fake OpenAI."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from deploy.local import probe
from deploy.local.server_process import die_with_parent, free_port, last_lines
from tests.clients.raw import Raw
from tests.support.programs.process import until
from tests.support.programs.processes import Stack, running
from tests.upstream.client import FakeUpstream
from tests.upstream.journal import Call

MODEL = "gpt-6-astra-mini"
SETTINGS = {"retry_base_s": 0.05, "retry_most_s": 0.1, "abandoned_after_s": 8}
# An API with a short grace time and a short queue.
NARROW = {"NOWSERVING_STATUS_GRACE_S": "0.3", "NOWSERVING_MAX_QUEUED_PER_KEY": "2"}


@dataclass(frozen=True)
class Api:
    """A gunicorn on this port."""

    port: int
    log: Path


@dataclass
class System:
    """A running stack.

    narrow: a second API of the same stack, with the settings of NARROW.
    """

    stack: Stack
    api: Api
    narrow: Api

    @property
    def upstream(self) -> FakeUpstream:
        return self.stack.upstream

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.api.port}/v1"

    def calls(self, words: str) -> list[Call]:
        """The upstream's calls whose text contains these words."""
        return [call for call in self.upstream.calls() if words in call.text]

    def block(self, key: str) -> None:
        """Block the lane of this new key until the upstream releases its held call: a new key has one call in flight."""
        held = self.upstream.waiting()
        with Raw(self.api.port, "/v1/jobs", {"endpoint": "/v1/chat/completions", "body": chat(f"[[fake:hold]] {key}")}, key) as response:
            assert 202 == response.head().status, response.whole()
        self.upstream.wait_for_held(held + 1)

    def logs(self) -> str:
        return "\n".join([self.stack.logs(), *(f"== {api.log.name}\n{last_lines(api.log)}" for api in (self.api, self.narrow))])

    def jobs(self, key: str) -> list[str]:
        """The statuses of this key's jobs, newest first."""
        with Raw(self.api.port, "/v1/jobs", key=key, method="GET") as response:
            return [job["status"] for job in response.json["data"]]

    def wait_jobs(self, key: str, *statuses: str) -> None:
        """Wait until this key's jobs have these statuses, newest first."""
        until(lambda: list(statuses) == self.jobs(key), what=f"the jobs {statuses}, but {self.jobs(key)}", within_s=30)


def chat(say: str, **more: Any) -> dict[str, Any]:
    """The body of a chat call."""
    return {"model": MODEL, "messages": [{"role": "user", "content": say}], **more}


@pytest.fixture(scope="package")
def system(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("clients")
    with running(folder, **SETTINGS) as stack:
        stack.pacer()
        stack.worker(threads=32)
        # The wait of a stream's head has its own test, tests/api/openai/test_stream_head.py. Here an early failure is an
        # event in the stream. With open keys on loopback, pages of other origins may only call if NOWSERVING_CORS_ORIGINS
        # is set.
        env = stack.environment() | {"NOWSERVING_STREAM_HEAD_S": "0", "NOWSERVING_CORS_ORIGINS": "*"}
        with serving(folder / "api.log", **env) as api, serving(folder / "narrow.log", **env, **NARROW) as narrow:
            yield System(stack, api, narrow)


@contextmanager
def serving(log: Path, *, port: int = 0, **env: str) -> Iterator[Api]:
    port = port or free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "api"], env={**env, "NOWSERVING_PORT": str(port)}, stdout=out, stderr=out,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        until(lambda: probe.http_ok("/healthz", port=port), what=f"the API: {last_lines(log)}", within_s=120)
        yield Api(port, log)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(autouse=True)
def release_held_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Release all held calls of the upstream after each test."""
    yield
    if system := request.node.funcargs.get("system"):
        system.upstream.release()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of all services to the report of a failed test."""
    report = yield
    if report.failed and (system := item.funcargs.get("system")):
        report.sections.append(("logs", system.logs()))
    return report


@pytest.fixture
def key() -> str:
    """A new key."""
    return fresh_key()


def fresh_key() -> str:
    return f"sk-{uuid4().hex}"

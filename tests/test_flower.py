"""Flower: every job by its id from the moment of submit, behind a password, and never a key or a prompt."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from deploy.server import free_port
from models import db, job, line
from models.view import public_id
from tests.processes import Stack, ask, caller, running, until, wait_ended
from workers import wake

LOGIN = "operator:correct-horse"
SECRET, PROMPT = "sk-canary-0123456789abcdef", "the canary sings in the dark"


class Flower:
    """Its HTTP interface, as an operator's script would use it."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def get(self, path: str, *, login: str | None = LOGIN) -> str:
        headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
        with urllib.request.urlopen(urllib.request.Request(self._base + path, headers=headers), timeout=10) as answer:
            return str(answer.read().decode())

    def task(self, job_id: UUID) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.get(f"/api/task/info/{public_id(job_id)}"))
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return {}
        return found

    def wait_state(self, job_id: UUID, state: str) -> dict[str, Any]:
        return until(lambda: found if (found := self.task(job_id)).get("state") == state else None, what=f"{state} in Flower")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("flower"), flower_port=free_port(), flower_basic_auth=LOGIN) as started:
        started.pacer()
        yield started


@pytest.fixture(scope="module")
def flower(stack: Stack) -> Flower:
    stack._start("flower", ["workers.flower"])
    made = Flower(int(str(stack.settings["flower_port"])))

    def answers() -> bool:
        try:
            return bool(made.get("/healthcheck"))
        except (OSError, urllib.error.URLError):
            return False

    until(answers, what="Flower up")
    return made


def test_a_waiting_job_is_shown_by_its_id(stack: Stack, flower: Flower) -> None:
    who = caller(SECRET)
    job_id = _announced(who, flower)

    assert "nowserving.job" == flower.task(job_id)["name"]
    assert "PENDING" == flower.task(job_id)["state"]


def test_a_cancelled_job_is_shown_as_revoked(stack: Stack, flower: Flower) -> None:
    who = caller(SECRET)
    job_id = _announced(who, flower)
    with db.begin() as session:
        job.cancel(session, job_id, who.id)
    wake.line(line.lane_of(who.pool_id, "m"), cancelled=job_id)

    assert flower.wait_state(job_id, "REVOKED")


def test_a_job_that_ran_is_shown_with_its_worker_and_without_its_secrets(stack: Stack, flower: Flower) -> None:
    who = caller(SECRET)
    job_id = _announced(who, flower)
    stack.worker(threads=2)
    wait_ended([job_id], stack=stack)
    shown = json.dumps(flower.wait_state(job_id, "SUCCESS"))
    paths = (f"/task/{public_id(job_id)}", "/tasks", "/workers", "/api/tasks?limit=50")
    pages = shown + "".join(flower.get(path) for path in paths)

    assert public_id(job_id) in pages
    assert SECRET not in pages
    assert "canary" not in pages


@pytest.mark.parametrize("path", ["/", "/tasks", "/workers", "/api/tasks", "/api/workers"])
def test_nothing_is_shown_without_the_password(flower: Flower, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        flower.get(path, login=None)

    assert 401 == refused.value.code


def test_the_password_is_on_no_command_line(stack: Stack, flower: Flower) -> None:
    pid = next(process.pid for process in stack.processes if process.name == "flower")

    assert b"correct-horse" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def _announced(who: Any, flower: Flower) -> UUID:
    """A job of this caller that Flower has heard of. An announcement may be lost while Flower is still connecting: it is said again."""
    job_id = ask(who, PROMPT)

    def heard() -> bool:
        wake.line(line.lane_of(who.pool_id, "m"), queued=job_id)
        return bool(flower.task(job_id))

    until(heard, what="announced", every_s=0.3)
    return job_id

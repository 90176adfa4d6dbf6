"""Flower: every job by its id from the moment of submit, behind a password, and never a key or a prompt."""

from __future__ import annotations

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from deploy.local.server_process import free_port
from models.database import db
from models.jobs import cancellation
from models.keys import keys
from models.platform.wire import public_id
from models.queue import lanes
from tests.support.browser import Visit, picture
from tests.support.programs.live_jobs import ask, caller, row, wait_ended, wait_status
from tests.support.programs.live_jobs import cancel as _cancel
from tests.support.programs.process import until
from tests.support.programs.processes import Stack, pretended_slots, running
from workers.channels import notify

LOGIN = "operator:correct-horse"
SECRET, PROMPT = "sk-canary-0123456789abcdef", "the canary sings in the dark"
LONG = f"{PROMPT} [[fake:hold]]"


class Flower:
    """A client of Flower's HTTP interface, as an operator's script uses it."""

    def __init__(self, port: int, *, prefix: str = "") -> None:
        self.base = f"http://127.0.0.1:{port}{prefix}"

    def get(self, path: str, *, login: str | None = LOGIN) -> str:
        return self.send("GET", path, login=login)

    def post(self, path: str, *, login: str | None = LOGIN) -> str:
        return self.send("POST", path, login=login, body=b"")

    def send(self, method: str, path: str, *, login: str | None, body: bytes | None = None) -> str:
        headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()} if login else {}
        asked = urllib.request.Request(self.base + path, body, headers, method=method)
        with urllib.request.urlopen(asked, timeout=10) as answer:
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
    """Flower with its defaults: read-only."""
    return _up(stack, Flower(int(str(stack.settings["flower_port"]))))


@pytest.fixture(scope="module")
def levers(stack: Stack) -> Flower:
    """Flower that may cancel jobs, behind the path prefix of a proxy."""
    port = free_port()
    return _up(stack, Flower(port, prefix="/tools/flower"), flower_port=port, flower_control=True, flower_url_prefix="/tools/flower/")


@pytest.fixture(scope="module")
def worker(stack: Stack) -> str:
    """The name of a worker that takes jobs."""
    name = stack.worker(threads=4).name
    with db.begin() as session:
        return str(session.execute(text("SELECT name FROM worker WHERE name LIKE :name"), {"name": f"{name}@%"}).scalar_one())


def _up(stack: Stack, made: Flower, **settings: object) -> Flower:
    stack._start("flower", ["workers.flower"], **settings)

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

    assert "chat" == flower.task(job_id)["name"]
    assert "PENDING" == flower.task(job_id)["state"]


def test_a_cancelled_job_is_shown_as_revoked(stack: Stack, flower: Flower) -> None:
    who = caller(SECRET)
    job_id = _announced(who, flower)
    with db.begin() as session:
        cancellation.cancel(session, job_id, who.id)
    notify.lane_changed(lanes.id_of(who.pool_id, "m"), cancelled=job_id)

    assert flower.wait_state(job_id, "REVOKED")


def test_waiting_jobs_are_cancelled_durably_where_that_is_allowed(stack: Stack, flower: Flower, levers: Flower) -> None:
    job_id = _announced(caller(SECRET), levers)
    result = levers.post(f"/api/task/revoke/{public_id(job_id)}")

    with db.begin() as session:
        logged = session.execute(text("SELECT operator, action FROM audit WHERE target = :name"), {"name": f"job:{job_id}"}).one()

    assert "is cancelled" in result
    assert ("flower:operator", "cancel") == (logged.operator, logged.action)
    assert "cancelled" == row(job_id).status
    assert levers.wait_state(job_id, "REVOKED")
    assert "ended already" in levers.post(f"/api/task/revoke/{public_id(job_id)}")


def test_admitted_jobs_are_cancelled_where_that_is_allowed(stack: Stack, levers: Flower) -> None:
    with pretended_slots(100):
        job_id = ask(caller("sk-admitted-only"), PROMPT)
        wait_status(job_id, "admitted")
    levers.post(f"/api/task/revoke/{public_id(job_id)}")

    assert "cancelled" == row(job_id).status


def test_flower_cannot_cancel_by_default(stack: Stack, flower: Flower) -> None:
    job_id = _announced(caller(SECRET), flower)
    with pytest.raises(urllib.error.HTTPError) as refused:
        flower.post(f"/api/task/revoke/{public_id(job_id)}")

    assert 403 == refused.value.code
    assert "queued" == row(job_id).status


@pytest.mark.parametrize(
    "path",
    ["/api/task/apply/nowserving.job", "/api/task/async-apply/nowserving.job", "/api/task/send-task/nowserving.job",
     "/api/task/rate-limit/nowserving.job", "/api/worker/shutdown/any", "/api/worker/pool/grow/any",
     "/api/worker/queue/cancel-consumer/any"],
)  # fmt: skip
def test_flower_task_submission_is_closed_even_with_control(levers: Flower, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        levers.post(path)

    assert 403 == refused.value.code


@pytest.mark.parametrize("name", ["job_00000000000000000000000000000000", "evt_1", "x"])
def test_other_tasks_cannot_be_cancelled(levers: Flower, name: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        levers.post(f"/api/task/revoke/{name}")

    assert 404 == refused.value.code


def test_operators_page_stops_running_jobs(stack: Stack, levers: Flower, worker: str, visit: Visit) -> None:
    job_id = ask(caller(SECRET), LONG)
    wait_status(job_id, "running")
    levers.wait_state(job_id, "STARTED")
    page = visit(f"{levers.base}/task/{public_id(job_id)}", login=tuple(LOGIN.split(":")), forgives=("401",))
    page.get_by_role("button", name="Terminate").click()
    page.get_by_text("runs and is being stopped").wait_for()

    assert "cancelled" == wait_status(job_id, "cancelled").status


def test_the_page_of_a_worker_shows_its_lanes_and_no_levers(
    stack: Stack, levers: Flower, worker: str, visit: Visit, tmp_path: Path
) -> None:
    with db.begin() as session:
        keys.create_pool(session, "team-a")
        who, token = keys.issue(session, name="team", pool="team-a")
        keys.add_credential(session, pool_id=who.pool_id, upstream_key=SECRET)
    job_id = ask(who, LONG, model="gpt-4o-mini")
    wait_status(job_id, "running")
    assert "chat [team-a]" == levers.wait_state(job_id, "STARTED")["name"]

    page = visit(f"{levers.base}/worker/{worker}", login=tuple(LOGIN.split(":")))
    page.get_by_role("tab", name="Other").click()
    page.get_by_text("lane gpt-4o-mini [team-a]").wait_for()
    picture(page, tmp_path / "worker.png")
    shown = page.content()
    _cancel(job_id)

    assert "lane gpt-4o-mini [team-a]" in shown
    assert "1 running here" in shown
    assert "Shut Down" not in shown
    assert token not in shown
    assert "canary" not in shown


def test_the_list_of_tasks_names_them_so_that_people_understand(
    stack: Stack, flower: Flower, worker: str, visit: Visit, tmp_path: Path
) -> None:
    who = caller(SECRET)
    done = [ask(who, PROMPT), ask(who, PROMPT)]
    wait_ended(done, stack=stack)
    for job_id in done:
        flower.wait_state(job_id, "SUCCESS")
    page = visit(f"{flower.base}/tasks", login=tuple(LOGIN.split(":")))
    page.get_by_text(public_id(done[0])).first.wait_for()
    picture(page, tmp_path / "tasks.png")

    assert page.get_by_role("cell", name="chat", exact=True).count()
    assert "nowserving.job" not in page.locator("#tasks-table tbody").inner_text()
    assert "canary" not in page.content()


def test_a_job_that_ran_is_shown_with_its_worker_and_without_its_secrets(stack: Stack, flower: Flower, worker: str) -> None:
    who = caller(SECRET)
    job_id = _announced(who, flower)
    wait_ended([job_id], stack=stack)
    shown = json.dumps(flower.wait_state(job_id, "SUCCESS"))
    paths = (f"/task/{public_id(job_id)}", "/tasks", "/workers", f"/worker/{worker}", "/api/tasks?limit=50", "/metrics")
    pages = shown + "".join(flower.get(path) for path in paths)

    assert public_id(job_id) in pages
    assert SECRET not in pages
    assert "canary" not in pages
    assert all(secret not in pages for secret in os.environ["NOWSERVING_SECRET_KEYS"].split(","))


@pytest.mark.parametrize("path", ["/", "/tasks", "/workers", "/api/tasks", "/api/workers", "/metrics", "/healthcheck", "/logout"])
def test_nothing_is_shown_without_the_password(flower: Flower, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        flower.get(path, login=None)

    assert 401 == refused.value.code


def test_the_password_is_on_no_command_line(stack: Stack, flower: Flower) -> None:
    pid = next(process.pid for process in stack.processes if process.name == "flower")

    assert b"correct-horse" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def _announced(who: Any, flower: Flower) -> UUID:
    """Submits a job and waits until Flower lists it. An event may be lost while Flower still connects: it is published again."""
    job_id = ask(who, PROMPT)

    def is_listed() -> bool:
        notify.jobs_enqueued({lanes.id_of(who.pool_id, "m"): [job_id]})
        return bool(flower.task(job_id))

    until(is_listed, what="announced", every_s=0.3)
    return job_id

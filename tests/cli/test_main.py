"""The commands of operators and callers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result
from werkzeug.serving import make_server

from api.waiting.registry import waiter_registry
from cli.http_client import Client
from cli.main import nowserving
from models.database import db
from models.keys import limits
from models.platform import wire
from models.queue import submission
from tests.support.http_tools import Caller, end
from tests.support.queue_tools import known, row, submit
from workers import main as workers_main

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def address() -> Iterator[str]:
    caller = Caller()
    server = make_server("127.0.0.1", 0, caller.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def say(*words: str, ok: bool = True, typed: str | None = None, **env: str) -> Result:
    result = CliRunner().invoke(nowserving, words, input=typed, env=env)
    assert ok == (result.exit_code == 0), result.output
    return result


def read(*words: str, **more: str) -> dict[str, object]:
    return dict(json.loads(say(*words, "--json", **more).stdout))


def test_operator_creates_pool_credential_and_key() -> None:
    say("pools", "create", "team")
    credential = read("pools", "add-credential", "team", typed="sk-upstream\n")
    made = read("keys", "create", "ann", "--pool", "team")

    assert str(made["key"]).startswith("ns-")
    assert 200 == Caller(str(made["key"])).get("/v1/jobs").status_code
    listed = json.loads(say("pools", "list", "--json").stdout)
    assert [("team", [credential["id"]])] == [(row["name"], row["credentials"]) for row in listed]
    shown = say("keys", "list").output + say("pools", "list").output
    assert "ann" in shown
    assert not [secret for secret in ("sk-upstream", str(made["key"])) if secret in shown]


def test_revoked_key_is_refused() -> None:
    say("pools", "create", "team")
    made = read("keys", "create", "ann", "--pool", "team")
    say("keys", "revoke", str(made["id"]))

    assert 401 == Caller(str(made["key"])).get("/v1/jobs").status_code
    assert "already revoked" in say("keys", "revoke", str(made["id"]), ok=False).output


def test_limits_are_set_for_credential_and_key() -> None:
    say("pools", "create", "team")
    credential = read("pools", "add-credential", "team", typed="sk-upstream")
    made = read("keys", "create", "ann", "--pool", "team")
    say("pools", "limits", str(credential["id"]), "--rpm", "60")
    say("keys", "limits", str(made["id"]), "--model", "m", "--tpm", "1000", "--max-in-flight", "3")

    with db.begin() as session:
        usual, own = (limits.state_of(session, int(str(credential["id"])), model).limits for model in ("other", "m"))
    assert (60, None, 1000, 3) == (usual.rpm, usual.tpm, own.tpm, own.max_in_flight)


@pytest.mark.parametrize(
    "words",
    ["keys create x --pool none", "keys limits 999999", "keys revoke 999999", "pools add-credential none", "pools limits 999999"],
)
def test_error_is_printed_in_one_line(words: str) -> None:
    result = say(*words.split(), ok=False, typed="sk-x\n")

    assert 1 == result.exit_code
    assert 1 == len([line for line in result.output.splitlines() if line.startswith("Error: ")])
    assert "Traceback" not in result.output


def test_credential_is_changed_and_retired() -> None:
    say("pools", "create", "team")
    number = str(read("pools", "add-credential", "team", typed="sk-upstream\n")["id"])
    changed = read("pools", "change-credential", number, "--weight", "2", "--new-key", typed="sk-better\n")

    assert (2.0, None) == (changed["weight"], changed["base_url"])
    assert read("pools", "retire-credential", number)["retired"]
    acts = json.loads(say("audit", "--json").stdout)
    assert ["retire", "change"] == [one["action"] for one in acts[:2]]
    assert acts[1]["after"]["new_key"]
    assert "sk-better" not in json.dumps(acts)


def test_job_of_any_caller_is_prioritised_stopped_and_retried() -> None:
    caller = known()
    first, job_id = submit(caller, flow="ann"), wire.public_id(submit(caller, flow="ann"))

    assert 2 == read("priority", job_id, "high")["position"]
    assert "cancelled" == read("stop", job_id, "--reason", "asked to")["status"]
    again = read("retry", job_id)
    assert ("queued", 2) == (again["status"], again["position"])
    assert job_id != again["id"]
    assert "cancelled" == read("stop", job_id)["status"], "twice is as good as once"
    assert "can be tried again" in say("retry", str(again["id"]), ok=False).output
    assert "queued" == row(first).status


def test_upstream_key_is_refused_as_argument() -> None:
    assert 2 == say("pools", "add-credential", "team", "sk-upstream", ok=False).exit_code


def test_caller_submits_lists_and_cancels(address: str) -> None:
    here = {"NOWSERVING_URL": address, "NOWSERVING_KEY": "sk-one"}
    job = read("submit", "hello", "--user", "ann", "--priority", "high", **here)

    assert ("queued", "ann", "high") == (job["status"], job["user"], job["priority"])
    assert str(job["id"]) in say("jobs", "--status", "queued", "--json", **here).stdout
    assert "cancelled" in say("cancel", str(job["id"]), **here).output


def test_caller_waits_for_answer(address: str) -> None:
    here = {"NOWSERVING_URL": address, "OPENAI_API_KEY": "sk-one"}
    job = read("submit", "hello", "--model", "m", **here)
    end(Caller(), str(job["id"]))

    assert "hello\n" == say("wait", str(job["id"]), **here).stdout


def test_client_sleeps_without_free_waiter(address: str, override: Callable[..., None]) -> None:
    override(max_waiting_per_process=1)
    caller, pauses = Caller(), list[float]()
    name = caller.submit()

    client = Client(address, caller.token, sleep=pauses.append)
    with waiter_registry.wait_for(submission.new_job_id(), 1):
        assert "queued" == client.wait(name, wait_s=30)["status"]
    end(caller, name)

    assert "succeeded" == client.wait(name, wait_s=30)["status"]
    assert [5.0] == pauses


def test_image_can_be_requested(address: str) -> None:
    job = read("submit", "a cat", "--image", NOWSERVING_URL=address, NOWSERVING_KEY="sk-one")

    assert "/v1/images/generations" == job["endpoint"]


def test_server_error_is_printed(address: str) -> None:
    result = say("cancel", "job_x", ok=False, NOWSERVING_URL=address, NOWSERVING_KEY="sk-one")

    assert "Error: No such job. (404)\n" == result.stderr


def test_unreachable_server_is_named() -> None:
    result = say("jobs", ok=False, NOWSERVING_URL="http://127.0.0.1:9", NOWSERVING_KEY="sk-one")

    assert "http://127.0.0.1:9" in result.stderr and "Traceback" not in result.output


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *words], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


def test_api_refuses_incomplete_settings() -> None:
    result = run("api", NOWSERVING_REDIS_URL="", NOWSERVING_SECRET_KEYS="")

    assert 2 == result.returncode
    assert "Error: set NOWSERVING_REDIS_URL, NOWSERVING_SECRET_KEYS" in result.stderr


def test_invalid_setting_is_named_without_value() -> None:
    result = run("api", NOWSERVING_SECRET_KEYS="c2hvcnQ=")

    assert 2 == result.returncode
    assert "32 random bytes" in result.stderr
    assert "c2hvcnQ=" not in result.stderr and "Traceback" not in result.stderr


def test_migrate_is_idempotent() -> None:
    assert "up to date" in run("migrate").stdout


def test_api_and_command_line_import_no_heavy_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    code = """
import sys, time
began = time.perf_counter()
import {module}
print(round(time.perf_counter() - began, 2), *sorted({heavy} & set(sys.modules)))
"""
    heavy = {"celery", "kombu", "openai", "httpx2", "flower"}
    # The command line becomes the part that was asked for: what it loads before is loaded twice.
    for module, never in (("api.app", heavy), ("cli.main", heavy | {"flask", "redis", "sqlalchemy", "alembic"})):
        result = code.format(module=module, heavy=never)
        shown = subprocess.run([sys.executable, "-c", result], capture_output=True, text=True, check=True).stdout.split()
        with capsys.disabled():
            print(f" [{module} imported in {shown[0]} s]", end="")
        assert [] == shown[1:]


def test_budget_is_granted_corrected_and_shown() -> None:
    say("pools", "create", "team")
    number = str(read("keys", "create", "ann", "--pool", "team")["id"])
    say("keys", "grant", number, "20", "--note", "November")
    say("keys", "grant", number, "0.50")
    shown = read("keys", "correct", number, "-3.25", "--note", "a refund")

    assert ("17.25", "20.50", "-3.25", True) == tuple(shown[one] for one in ("balance_usd", "granted_usd", "corrected_usd", "has_budget"))
    assert shown == read("keys", "balance", number)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("grant {key} -5", "more than 0"), ("grant {key} 0", "more than 0"), ("grant {key} ten", "not an amount"),
        ("grant {key} NaN", "at most"), ("grant {key} 1e300", "at most"), ("grant {key} 0.0000001", "six digits"),
        ("grant 999999 5", "no key 999999"), ("correct 999999 5 --note x", "no key 999999"), ("balance 999999", "no key 999999"),
        ("grant x 5", "not a valid integer"), ("correct {key} 5", "Missing option '--note'"),
        ("correct {key} 0 --note x", "changes nothing"),
    ],
)  # fmt: skip
def test_invalid_amount_or_key_changes_nothing(words: str, says: str) -> None:
    say("pools", "create", "team")
    number = read("keys", "create", "ann", "--pool", "team")["id"]

    assert says in say("keys", *words.format(key=number).split(), ok=False).output
    assert "0.00" == read("keys", "balance", str(number))["balance_usd"]


def test_worker_without_threads_does_not_start(override: Callable[..., None]) -> None:
    override(webhook_threads=0)
    refused = CliRunner().invoke(workers_main.main, ["--processes", "0"])

    assert 2 == refused.exit_code
    assert "leave no process to run: set one of them" in refused.output

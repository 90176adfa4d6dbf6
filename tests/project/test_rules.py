"""Rules for the product's code, each of which once was an outage somewhere."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from workers.broker.celery_app import app
from workers.broker.queues import JOB_QUEUE, WEBHOOK_QUEUE

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = sorted(file for folder in ("api", "cli", "deploy", "models", "workers") for file in (ROOT / folder).rglob("*.py"))
SERVING = [file for file in PRODUCT if "deploy" not in file.parts and "migrations" not in file.parts]


def calls(files: list[Path]) -> Iterator[tuple[str, ast.Call]]:
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", node


def named(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


READS = {"os.environ", "os.environb", "os.getenv"}
# Flower reads its own settings from there, all but one variable. settings.py gives a forked process its whole
# environment.
PASSES_IT_ON = {ROOT / "workers" / "flower" / "__main__.py", ROOT / "models" / "config" / "settings.py"}


def reads_of_the_environment(file: Path) -> list[str]:
    """Reads of the environment. Passing it to a child process and writing a variable for a library are allowed."""
    if file in PASSES_IT_ON:
        return []
    tree = ast.parse(file.read_text(encoding="utf-8"))
    dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
    passed_on = {id(value) for node in dicts for name, value in zip(node.keys, node.values, strict=True) if name is None}
    written = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)}
    read = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and ast.unparse(node) in READS]
    return [f"{file.relative_to(ROOT)}:{node.lineno}" for node in read if id(node) not in passed_on | written]


# No message waits in Celery


def test_no_celery_message_has_a_delay() -> None:
    delays = {"countdown", "eta", "expires", "retry_backoff", "autoretry_for", "max_retries"}
    sends = {"apply_async", "send_task", "signature", "s", "si", "task", "subtask", "retry"}

    assert [] == [where for where, call in calls(PRODUCT) if named(call) in sends and delays & {each.arg for each in call.keywords}]


def test_no_task_retries_itself() -> None:
    retries = re.compile(r"\b(?:self|run)\.retry\(|raise .*\bRetry\(|bind=True")

    assert [] == [file.name for file in PRODUCT if retries.search(file.read_text(encoding="utf-8"))]


def test_delayed_celery_message_is_refused() -> None:
    task = app.signature("nowserving.job", args=("a", "b"), queue=JOB_QUEUE)
    for waits in ({"countdown": 5}, {"eta": "2030-01-01T00:00:00+00:00"}, {"expires": 9}, {"retries": 1}):
        for send in (partial(app.send_task, "nowserving.job", ("a", "b"), queue=JOB_QUEUE), task.apply_async):
            with pytest.raises(RuntimeError, match="Celery messages have no delay"):
                send(**waits)


# Every queue has a consumer


def test_every_queue_has_a_consumer() -> None:
    queues = [each.value for _, call in calls(PRODUCT) for each in call.keywords if each.arg == "queue"]
    named_in_code = {each.value for each in queues if isinstance(each, ast.Constant)}
    consumed = {queue.name for queue in app.conf.task_queues}

    assert {JOB_QUEUE, WEBHOOK_QUEUE} == consumed
    assert named_in_code <= consumed
    assert JOB_QUEUE == app.conf.task_default_queue
    assert not app.conf.task_create_missing_queues


# Celery only transports messages


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("task_acks_late", False), ("task_reject_on_worker_lost", False), ("worker_prefetch_multiplier", 1), ("task_ignore_result", True),
        ("task_serializer", "json"), ("accept_content", ["json"]), ("event_serializer", "json"), ("task_publish_retry", False),
        ("worker_cancel_long_running_tasks_on_connection_loss", False), ("beat_schedule", {}), ("task_annotations", None),
    ],
)  # fmt: skip
def test_celery_settings_lose_no_job(setting: str, value: object) -> None:
    assert value == getattr(app.conf, setting)


def test_celery_keeps_no_results() -> None:
    assert not app.conf.result_backend
    assert "DisabledBackend" == type(app.backend).__name__


# Settings and imports


@pytest.mark.parametrize("file", SERVING, ids=lambda file: str(file.relative_to(ROOT)))
def test_environment_is_read_in_one_place(file: Path) -> None:
    assert [] == reads_of_the_environment(file)


def test_product_imports_no_tests() -> None:
    wrong = re.compile(r"^\s*(?:from|import)\s+(?:tests|bench)\b", re.MULTILINE)

    assert [] == [str(file.relative_to(ROOT)) for file in PRODUCT if wrong.search(file.read_text(encoding="utf-8"))]


def test_no_error_is_ignored_silently() -> None:
    silent = re.compile(r"except(?: Exception| BaseException)?(?: as \w+)?:\s*(?:#.*)?\n\s+pass\b")

    assert [] == [str(file.relative_to(ROOT)) for file in PRODUCT if silent.search(file.read_text(encoding="utf-8"))]


def test_transactions_contain_no_network_call() -> None:
    """Checks names only: functions that call Redis, Celery or the upstream must not be called inside `with db.begin()`."""
    network = {"post", "send_task", "publish", "admit_many", "peek_many", "charge_again"}
    assert network <= {named(call) for _, call in calls(SERVING)}, "a renamed function would escape this rule"
    wrong = []
    for file in SERVING:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.With) and any("begin()" in ast.unparse(item.context_expr) for item in node.items):
                inside = {named(call) for call in ast.walk(node) if isinstance(call, ast.Call)}
                wrong += [f"{file.relative_to(ROOT)}:{node.lineno} {name}" for name in sorted(inside & network)]

    assert [] == wrong

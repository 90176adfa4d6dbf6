"""The end of an attempt is stored, at once or later: a paid answer is never dropped."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import REGISTRY

from models.config.settings import settings
from models.database import db
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.keys.keys import Key
from models.platform import crypto
from models.platform.errors import Unavailable
from tests.support.queue_tools import event_types, heads, known, outcomes, query, reap, row, start, submit
from tests.support.queue_tools import finish as finish_job
from workers.results import finish, replay, spool
from workers.results.attempt_record import AttemptRecord

pytestmark = pytest.mark.usefixtures("database")
PNG = b"\x89PNG\r\n\x1a\n picture"
BODY = json.dumps({"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}).encode()
NOWHERE = "postgresql+psycopg://unused@127.0.0.1:1/none"


@pytest.fixture
def caller() -> Key:
    return known()


@pytest.fixture(autouse=True)
def folder(override: Callable[..., None], tmp_path: Path) -> Path:
    override(data_dir=tmp_path)
    return tmp_path / "spool"


@pytest.fixture
def postgres_is(override: Callable[..., None]) -> Callable[[str], None]:
    url = settings().database_url

    def change(how: str) -> None:
        override(database_url=url if how == "back" else NOWHERE)
        db.engine.cache_clear()

    return change


def ended(caller: Key, job_id: UUID, dispatch_id: UUID, body: bytes = BODY, **other: Any) -> AttemptRecord:
    good = AttemptResult(Outcome.SUCCEEDED, 200, "req_1")
    result = JobResult(Status.SUCCEEDED, http_status=200, response=body)
    return replace(AttemptRecord(job_id, dispatch_id, caller.id, row(job_id).lane_id, "gpt-4o", good, result), **other)


@pytest.fixture
def good(caller: Key) -> AttemptRecord:
    one = submit(caller, model="gpt-4o")
    return ended(caller, one, start(caller, one))


def used() -> list[tuple[Any, ...]]:
    return [tuple(one) for one in query("SELECT input_tokens, output_tokens, images, cost_microusd FROM usage")]


def test_an_answer_its_usage_and_its_price_are_stored_together(good: AttemptRecord) -> None:
    finish.write(good)

    assert (Status.SUCCEEDED, BODY) == (row(good.job_id).status, bytes(row(good.job_id).response))
    assert [(7, 5, 0, 68)] == used()


def test_twice_is_the_same_as_once(good: AttemptRecord) -> None:
    finish.commit(good)
    finish.commit(good)

    assert (1, ["queued", "started", "succeeded"]) == (len(used()), event_types(good.job_id))


def test_a_job_goes_back_in_line_when_there_is_no_result(good: AttemptRecord) -> None:
    finish.write(replace(good, result=None, finding=AttemptResult(Outcome.FAILED, 500), counts=True))

    assert (Status.QUEUED, 1, [good.job_id], []) == (row(good.job_id).status, row(good.job_id).failures, heads(), used())


def test_usage_of_a_discarded_answer_is_recorded(caller: Key, good: AttemptRecord) -> None:
    reap()
    again = start(caller, good.job_id)
    finish.write(good)

    assert Status.RUNNING == row(good.job_id).status
    assert ([(7, 5, 0, 68)], ["succeeded", "running"]) == (used(), outcomes(good.job_id))
    assert finish_job(good.job_id, again)


def test_the_usage_of_an_answer_that_came_after_the_cancellation_is_recorded(good: AttemptRecord) -> None:
    query("UPDATE job SET cancel_requested = true")
    reap()
    finish.write(good)

    assert (Status.CANCELLED, 1) == (row(good.job_id).status, len(used()))


# Usage that the upstream does not say


SILENT = json.dumps({"id": "chatcmpl-1", "choices": [{"message": {"content": "one two three four"}}]}).encode()


def silent(good: AttemptRecord, asked_tokens: int | Callable[[], int] | None, body: bytes = SILENT) -> AttemptRecord:
    """The attempt record of an answer without usage."""
    result = JobResult(Status.SUCCEEDED, http_status=200, response=body)
    return replace(good, result=result, asked_tokens=asked_tokens)


def charged(good: AttemptRecord) -> list[tuple[str, int, str | None]]:
    return [tuple(one) for one in query("SELECT kind, amount_microusd, note FROM ledger WHERE job_id = :id ORDER BY id", id=good.job_id)]


def marked() -> list[bool]:
    return [one.estimated for one in query("SELECT estimated FROM usage")]


@pytest.mark.parametrize("is_turn", [False, True])
def test_usage_that_the_upstream_does_not_say_is_estimated_and_charged(good: AttemptRecord, is_turn: bool) -> None:
    finish.write(replace(silent(good, lambda: 100), is_turn=is_turn))

    assert ([(100, 4, 0, 290)], [True]) == (used(), marked())
    assert [("charge", -290, "estimated")] == charged(good)


def test_reported_usage_is_charged_without_an_estimate(good: AttemptRecord) -> None:
    def never() -> int:
        raise AssertionError

    finish.write(replace(good, asked_tokens=never))

    assert ([(7, 5, 0, 68)], [False], [("charge", -68, None)]) == (used(), marked(), charged(good))


def test_unknown_usage_is_corrected_by_a_marked_estimate(good: AttemptRecord) -> None:
    query("UPDATE job SET reserved_microusd = 1000")
    reap()
    finish.write(silent(good, lambda: 100))

    assert [("unknown", -1_000, None), ("correction", 710, "estimated")] == charged(good)


def test_a_call_that_costs_nothing_is_not_estimated(good: AttemptRecord) -> None:
    finish.write(silent(good, None, b'{"results": []}'))

    assert ([(0, 0, 0)], [False]) == ([one[:3] for one in used()], marked())


def test_an_estimate_outlives_its_worker(good: AttemptRecord, folder: Path) -> None:
    spool.save(silent(good, lambda: 100))
    replay.replay_spool()

    assert [(100, 4, 0, 290)] == used()


def test_an_answer_that_could_not_be_read_is_charged_once_as_an_estimate(good: AttemptRecord) -> None:
    error = {"message": "no JSON", "type": "server_error", "param": None, "code": "upstream_invalid_response"}
    kept = JobResult(Status.FAILED, http_status=200, response=b"one two three four", error=error)
    bad = replace(silent(good, lambda: 100), finding=AttemptResult(Outcome.UNKNOWN, 200), result=kept)
    finish.write(bad)
    finish.write(bad)

    assert (Status.FAILED, [(100, 4, 0, 290)], [True]) == (row(good.job_id).status, used(), marked())
    assert [("charge", -290, "estimated")] == charged(good)


# Pictures


def picture(*contents: bytes) -> bytes:
    return json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(each).decode()} for each in contents]}).encode()


def test_pictures_are_stored_in_order_with_their_type(caller: Key, good: AttemptRecord) -> None:
    finish.write(ended(caller, good.job_id, good.dispatch_id, picture(PNG, b"\xff\xd8\xff jpeg", b"<script>")))

    kinds = query("SELECT n, content_type, content FROM artifact ORDER BY n")
    assert [(0, "image/png"), (1, "image/jpeg"), (2, "application/octet-stream")] == [(one.n, one.content_type) for one in kinds]
    assert (PNG, 3) == (bytes(kinds[0].content), used()[0][2])


def test_images_of_a_discarded_late_answer_are_not_stored(caller: Key, good: AttemptRecord) -> None:
    reap()
    start(caller, good.job_id)
    finish.write(ended(caller, good.job_id, good.dispatch_id, picture(PNG)))

    assert [] == list(query("SELECT id FROM artifact"))


@pytest.mark.parametrize(
    "data", [None, {}, "x", [None], ["x"], [{}], [{"b64_json": None}], [{"b64_json": "no base64!"}], [{"url": "http://x"}]]
)
def test_data_that_is_no_picture_stores_none_and_keeps_the_answer(caller: Key, good: AttemptRecord, data: object) -> None:
    body = json.dumps({"created": 1, "data": data}).encode()
    finish.write(ended(caller, good.job_id, good.dispatch_id, body))

    assert ([], body) == (list(query("SELECT id FROM artifact")), bytes(row(good.job_id).response))


# Postgres away


def test_an_answer_is_kept_on_disk_while_postgres_is_away(good: AttemptRecord, folder: Path, postgres_is: Callable[[str], None]) -> None:
    postgres_is("away")
    with pytest.raises(Unavailable):
        finish.commit(good)
    spool.save(good)
    assert 0 == replay.replay_spool()
    assert [f"{good.dispatch_id}.ending"] == [file.name for file in folder.iterdir()]

    postgres_is("back")
    assert 1 == replay.replay_spool()
    assert (Status.SUCCEEDED, BODY, []) == (row(good.job_id).status, bytes(row(good.job_id).response), list(folder.iterdir()))


def test_spool_is_encrypted(good: AttemptRecord) -> None:
    file = spool.save(good)

    assert b"chatcmpl" not in file.read_bytes()
    assert 0o700 == file.parent.stat().st_mode & 0o777


@pytest.mark.parametrize(
    "change",
    [
        {"result": None, "delay_s": 2.5, "counts": True, "why": "lost"},
        {"result": JobResult(Status.FAILED, error={"message": "é\n", "type": None, "param": None, "code": "x"})},
        {"result": JobResult(Status.CANCELLED), "finding": AttemptResult(Outcome.CANCELLED)},
        {"result": JobResult(Status.SUCCEEDED, response=bytes(range(256)))},
        {"result": JobResult(Status.FAILED, http_status=200, response=b"\xff<html>", response_type="text/html")},
        {"result": JobResult(Status.SUCCEEDED, response=b"{}", transcript=b"data: {}\n\n")},
        {},
    ],
)
def test_spooled_answer_is_restored_unchanged(good: AttemptRecord, change: dict[str, Any]) -> None:
    one = replace(good, **change)

    assert one == spool.decode(spool.encode(one))


def test_answer_spooled_twice_is_stored_once(good: AttemptRecord) -> None:
    finish.commit(good)
    spool.save(good)

    assert (1, 1) == (replay.replay_spool(), len(used()))


def test_unreadable_spool_file_stays_and_delays_no_other(good: AttemptRecord, folder: Path) -> None:
    spool.save(good)
    bad = folder / "00000000-0000-0000-0000-000000000000.ending"
    bad.write_bytes(b"not sealed by us")

    assert 1 == replay.replay_spool()
    assert [bad] == list(folder.iterdir())


@pytest.fixture
def refused(caller: Key) -> AttemptRecord:
    """An attempt record that Postgres refuses: its text has a NUL."""
    one = submit(caller, model="gpt-4o")
    error = {"message": "\0", "type": None, "param": None, "code": "x"}
    return ended(caller, one, start(caller, one), result=JobResult(Status.FAILED, error=error))


def test_an_answer_that_cannot_be_stored_is_put_aside_and_the_others_go_on(
    good: AttemptRecord, refused: AttemptRecord, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool.save(refused)
    file = spool.save(good).with_name(f"{refused.dispatch_id}.ending")

    assert (1, 0, 0) == tuple(replay.replay_spool(now=now) for now in (0.0, 7.0, 14.0))
    assert (Status.SUCCEEDED, [file]) == (row(good.job_id).status, list(folder.iterdir()))
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [(file.name, 60.0)] == [(record.__dict__["file"], record.__dict__["again_s"]) for record in errors], "logged repeatedly"
    assert (1, 0) == tuple(REGISTRY.get_sample_value("nowserving_spooled_answers", {"state": state}) for state in ("refused", "waiting"))


def test_an_answer_that_was_put_aside_is_stored_once_it_can_be(good: AttemptRecord, folder: Path, override: Callable[..., None]) -> None:
    file = spool.save(good)
    sealed = file.read_bytes()
    file.write_bytes(b"of another key")
    assert 0 == replay.replay_spool(now=100.0)
    file.write_bytes(sealed)

    assert (0, 1) == (replay.replay_spool(now=159.0), replay.replay_spool(now=160.0))
    assert 0 == REGISTRY.get_sample_value("nowserving_spooled_answers", {"state": "refused"})


def test_spooled_answer_of_another_version_delays_no_other(good: AttemptRecord, folder: Path) -> None:
    other = folder / f"{UUID(int=1)}.ending"
    spool.save(good)
    other.write_bytes(crypto.seal(json.dumps({"version": 9}).encode(), bound_to=other.stem))

    assert 1 == replay.replay_spool(now=0.0)
    assert [other] == list(folder.iterdir())


def test_a_file_moved_to_another_name_is_not_believed(good: AttemptRecord, folder: Path) -> None:
    file = spool.save(good)
    file.rename(folder / "00000000-0000-0000-0000-000000000000.ending")

    assert 0 == replay.replay_spool()


def test_an_answer_that_neither_postgres_nor_the_disk_takes_is_tried_again(
    good: AttemptRecord, folder: Path, postgres_is: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "TRY_S", 0.05)
    folder.touch()  # no folder can be made there
    postgres_is("away")
    writing = threading.Thread(target=finish.write, args=(good,))
    writing.start()
    writing.join(0.5)
    assert writing.is_alive()
    postgres_is("back")
    writing.join(20)

    assert not writing.is_alive()
    assert "succeeded" == row(good.job_id).status


def test_a_half_written_file_is_not_read(good: AttemptRecord, folder: Path) -> None:
    spool.save(good).rename(folder / f"{good.dispatch_id}.part")

    assert 0 == replay.replay_spool()

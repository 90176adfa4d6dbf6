"""A delivery's way: picked when due and when there is room, claimed once, retried on schedule, and the end of an endpoint that is dead."""

from __future__ import annotations

import base64
import json
import random
from collections import Counter

import pytest

from models.content import artifacts, image_placeholders
from models.database import db
from models.jobs import webhook_payload
from models.jobs.states import JobResult, Status
from models.jobs.webhook_payload import MAX_RESULT_BYTES
from models.keys.keys import Key
from models.webhooks import deliveries as delivery
from models.webhooks import dispatch
from models.webhooks.attempts import FAILING_ATTEMPTS, MAX_FAILED_IN_ROW, SendResult
from models.webhooks.retry_schedule import JITTER, RETRIES, SCHEDULE_S, delay_s
from tests.support.queue_tools import clean_up, finish, known, query, start, submit
from tests.support.webhook_tools import ARRIVED, REFUSED, claim, claim_one, deliveries, endpoint, make_due, pick, put_right, settle

GONE = SendResult(has_arrived=False, duration_ms=5, http_status=410, is_gone=True)


@pytest.fixture
def caller(database: None) -> Key:
    return known()


def happen(caller: Key, *, url: str | None = None, answer: bytes = b'{"id": "answer"}') -> None:
    """A job has succeeded."""
    job_id = submit(caller, webhook_url=url)
    finish(job_id, start(caller, job_id), JobResult(Status.SUCCEEDED, http_status=200, response=answer))


def receivers(picked: list[object]) -> Counter[str]:
    ids = [one.id for one in picked]  # type: ignore[attr-defined]
    return Counter(row.receiver for row in deliveries() if row.id in ids)


def test_the_schedule_is_that_of_standard_webhooks_with_a_little_chance() -> None:
    rng = random.Random(1)

    delays = [delay_s(left, rng=rng) for left in range(RETRIES, 0, -1)]

    assert all(planned * (1 - JITTER) <= delay <= planned * (1 + JITTER) for planned, delay in zip(SCHEDULE_S, delays, strict=True))
    assert len(set(delays)) == RETRIES and delays != list(SCHEDULE_S)
    assert 72 * 3600 < sum(SCHEDULE_S) < 80 * 3600


def test_a_receiver_that_asks_for_more_time_gets_it_within_reason() -> None:
    rng = random.Random(1)

    assert 77 == delay_s(RETRIES, rng=rng, retry_after_s=77)
    assert 86_400 == delay_s(RETRIES, rng=rng, retry_after_s=1e9)
    assert 4 < delay_s(RETRIES, rng=rng, retry_after_s=1) < 6


def test_a_delivery_is_picked_once_and_claimed_once(caller: Key) -> None:
    endpoint(caller)
    happen(caller)

    (picked,) = pick()

    assert [] == pick()
    assert claim(picked) is not None
    assert claim(picked) is None


def test_delivered_webhook_is_final(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    settled = settle(claim_one(), ARRIVED)

    assert settled is not None and "delivered" == settled.status
    make_due()
    assert [] == pick()


def test_failed_delivery_waits_with_the_same_id_and_bytes(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    first = claim_one()
    settle(first, REFUSED, retry_in_s=5)

    assert [] == pick()
    make_due()
    second = claim_one()
    assert (first.id, first.payload) == (second.id, second.payload)
    assert [(1, RETRIES), (2, RETRIES - 1)] == [(one.attempts, one.retries_left) for one in (first, second)]


def test_after_its_last_retry_a_delivery_has_failed(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    statuses = []
    for _ in range(1 + RETRIES):
        make_due()
        settled = settle(claim_one(), REFUSED, retry_in_s=5)
        assert settled is not None
        statuses.append(settled.status)

    assert ["pending"] * RETRIES + ["failed"] == statuses
    make_due()
    assert [] == pick()
    (row,) = deliveries()
    assert (500, b"no", "HTTP 500", 12) == (row.http_status, bytes(row.answer), row.error, row.duration_ms)


def test_a_receiver_has_no_more_on_the_way_than_it_may(caller: Key) -> None:
    endpoint(caller)
    for _ in range(7):
        happen(caller)

    first = pick(per_receiver=3)
    assert 3 == len(first)
    assert [] == pick(per_receiver=3)
    claimed = claim(first[0])
    assert [] == pick(per_receiver=3)
    assert claimed is not None
    settle(claimed)
    assert 1 == len(pick(per_receiver=3))


def test_hanging_receiver_with_1000_deliveries_delays_no_other(caller: Key) -> None:
    hanging = endpoint(caller, kinds=["job.failed"])
    query(
        "INSERT INTO delivery (key_id, endpoint_id, receiver, host, event_id, event_type, payload, retries_left, next_at)"
        " SELECT :key_id, :id, :receiver, 'example.com', gen_random_uuid(), 'job.failed', 'x', 9, now() - interval '1 h'"
        " FROM generate_series(1, 1000)",
        key_id=caller.id, id=hanging.id, receiver=f"whe_{hanging.id.hex}",
    )  # fmt: skip
    assert 4 == len(pick())
    quick = endpoint(caller, "https://quick.example.com/")
    happen(caller, url="https://third.example.com/")

    assert {f"whe_{quick.id.hex}": 1, f"key_{caller.id}@third.example.com": 1} == receivers(pick())
    assert 996 == len(query("SELECT FROM delivery WHERE status = 'pending'"))


def test_many_receivers_at_one_host_share_its_slots(caller: Key) -> None:
    for n in range(5):
        endpoint(caller, f"https://shared.example.com/{n}")
    other = endpoint(caller, "https://other.example.com/")
    happen(caller)

    picked = receivers(pick(per_host=3))

    assert 4 == sum(picked.values())
    assert 1 == picked[f"whe_{other.id.hex}"]
    assert [] == pick(per_host=3)


def test_a_receiver_that_fails_all_the_time_gets_one_at_a_time_until_one_arrives(caller: Key) -> None:
    endpoint(caller)
    for _ in range(FAILING_ATTEMPTS + 4):
        happen(caller)
    failing = []
    for one in [claim(each) for each in pick(per_receiver=FAILING_ATTEMPTS)]:
        assert one is not None
        failing.append(getattr(settle(one, REFUSED, retry_in_s=5), "is_failing", None))

    assert [False] * (FAILING_ATTEMPTS - 1) + [True] == failing
    probe = claim_one()
    assert [] == pick()
    settle(probe, ARRIVED)
    assert 3 == len(pick())


def test_one_that_fails_now_and_then_keeps_its_slots(caller: Key) -> None:
    endpoint(caller)
    for n in range(3 * FAILING_ATTEMPTS):
        happen(caller)
        settle(claim_one(), ARRIVED if n % FAILING_ATTEMPTS == 0 else REFUSED, retry_in_s=5)
    for _ in range(4):
        happen(caller)

    assert 4 == len(pick())


def test_a_receiver_that_asks_for_a_pause_is_left_alone_altogether(caller: Key) -> None:
    endpoint(caller)
    for _ in range(2):
        happen(caller)
    first, second = [claim(one) for one in pick()]
    assert first and second
    settle(first, REFUSED, retry_in_s=5, pause_s=60)
    happen(caller)
    make_due()

    assert [] == pick()
    query("UPDATE receiver SET paused_until = now()")
    settle(second, ARRIVED)
    assert 2 == len(pick())


def test_two_that_pick_at_once_do_not_take_more_together_than_one_may(caller: Key) -> None:
    one, two = (endpoint(caller, f"https://shared.example.com/{n}") for n in range(2))
    for _ in range(4):
        happen(caller)
    limits = {"per_receiver": 4, "per_host": 4, "limit": 100}

    with db.begin() as first, db.begin() as second:
        taken = len(dispatch.take_due(first, receivers=[f"whe_{one.id.hex}"], **limits))
        beside = len(dispatch.take_due(second, receivers=[f"whe_{two.id.hex}"], **limits))

    assert (4, 0) == (taken, beside)


def test_wakeup_checks_only_the_named_receivers(caller: Key) -> None:
    row, _ = endpoint(caller, "https://one.example.com/"), endpoint(caller, "https://two.example.com/")
    happen(caller)

    assert {f"whe_{row.id.hex}": 1} == receivers(pick([f"whe_{row.id.hex}", "whe_unknown"]))


def test_no_more_is_picked_than_was_asked_for_and_the_longest_waiting_first(caller: Key) -> None:
    endpoint(caller, "https://one.example.com/")
    happen(caller)
    late = endpoint(caller, "https://two.example.com/", kinds=["job.succeeded"])
    happen(caller)

    assert f"whe_{late.id.hex}" not in receivers(pick(limit=2))
    assert [] == pick(limit=0)


def test_unclaimed_delivery_is_dispatched_again_with_a_new_ticket(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    (picked,) = pick()
    assert 0 == put_right()
    query("UPDATE delivery SET held_until = now() - interval '1 s'")

    assert 1 == put_right()
    assert claim(picked) is None
    assert 1 == claim_one().attempts


def test_delivery_of_a_lost_sender_counts_as_an_attempt(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    lost = claim_one()
    query("UPDATE delivery SET held_until = now() - interval '1 s'")

    assert 1 == put_right()
    again = claim_one()
    assert (lost.id, 2, RETRIES - 1) == (again.id, again.attempts, again.retries_left)
    assert settle(lost, REFUSED) is None
    assert settle(lost, ARRIVED) is None


def test_late_good_news_spares_the_receiver_a_second_copy(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    late = claim_one()
    query("UPDATE delivery SET held_until = now() - interval '1 s'")
    put_right()

    settled = settle(late, ARRIVED)

    assert settled is not None and "delivered" == settled.status
    assert [] == pick()


def test_an_endpoint_that_is_gone_is_disabled_at_once(caller: Key) -> None:
    row = endpoint(caller)
    for _ in range(2):
        happen(caller)
    first, second = [claim(one) for one in pick()]
    assert first and second

    assert "it answered 410 Gone" == getattr(settle(first, GONE, retry_in_s=5), "disabled", None)
    assert getattr(settle(second, GONE, retry_in_s=5), "disabled", "") is None
    assert ["it answered 410 Gone"] == [one.disabled_reason for one in query("SELECT * FROM webhook_endpoint")]
    assert 2 == put_right()
    assert {"the endpoint is disabled: it answered 410 Gone"} == {one.error for one in deliveries()}
    assert {row.id} == {one.endpoint_id for one in deliveries()}


def test_an_endpoint_is_disabled_when_so_many_in_a_row_were_given_up(caller: Key) -> None:
    endpoint(caller)
    reasons = []
    for _ in range(MAX_FAILED_IN_ROW):
        happen(caller)
        query("UPDATE delivery SET retries_left = 0")
        reasons.append(getattr(settle(claim_one(), REFUSED), "disabled", None))

    assert [None] * (MAX_FAILED_IN_ROW - 1) + [f"{MAX_FAILED_IN_ROW} deliveries in a row were given up"] == reasons


def test_one_that_arrives_in_between_saves_the_endpoint(caller: Key) -> None:
    endpoint(caller)
    for n in range(2 * MAX_FAILED_IN_ROW):
        happen(caller)
        query("UPDATE delivery SET retries_left = 0")
        settled = settle(claim_one(), ARRIVED if n == MAX_FAILED_IN_ROW - 1 else REFUSED)
        if n < 2 * MAX_FAILED_IN_ROW - 1:
            assert settled is not None and settled.disabled is None


def test_an_endpoint_where_nothing_arrived_for_five_days_is_disabled(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    settle(claim_one(), REFUSED, retry_in_s=5)
    query("UPDATE receiver SET failing_since = failing_since - interval '4 d 23 h'")
    make_due()
    assert getattr(settle(claim_one(), REFUSED, retry_in_s=5), "disabled", "") is None
    query("UPDATE receiver SET failing_since = failing_since - interval '1 h'")
    make_due()

    assert "nothing has arrived for 5 days" == getattr(settle(claim_one(), REFUSED, retry_in_s=5), "disabled", None)


def test_a_jobs_own_url_is_never_disabled(caller: Key) -> None:
    happen(caller, url="https://example.com/")

    settled = settle(claim_one(), GONE, retry_in_s=5)

    assert settled is not None and (None, "pending") == (settled.disabled, settled.status)


def test_an_endpoint_that_was_switched_off_is_sent_nothing_more(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    (picked,) = pick()
    query("UPDATE webhook_endpoint SET disabled_at = now()")

    assert claim(picked) is None
    assert row.id == deliveries()[0].endpoint_id


def test_payload_with_the_whole_job_is_the_same_at_each_attempt(caller: Key) -> None:
    endpoint(caller, include_result=True)
    happen(caller)
    first = claim_one()
    settle(first, REFUSED, retry_in_s=5)
    query('UPDATE job SET metadata = \'{"changed": "since"}\'')
    make_due()

    result = json.loads(first.payload)
    assert first.payload == claim_one().payload
    assert ("job.succeeded", "job", "succeeded", {"id": "answer"}) == (
        result["type"],
        result["data"]["object"],
        result["data"]["status"],
        result["data"]["result"],
    )


def test_a_result_that_is_too_large_to_push_is_left_out(caller: Key) -> None:
    endpoint(caller, include_result=True)
    happen(caller, answer=b'{"id": "' + b"x" * MAX_RESULT_BYTES + b'"}')

    result = json.loads(claim_one().payload)

    assert (None, "succeeded") == (result["data"]["result"], result["data"]["status"])


@pytest.mark.parametrize(("picture_bytes", "is_sent"), [(1_000, True), (MAX_RESULT_BYTES, False)])
def test_pictures_count_as_long_as_they_are_in_the_answer(caller: Key, picture_bytes: int, is_sent: bool) -> None:
    endpoint(caller, include_result=True)
    answer = {"created": 1, "data": [{"b64_json": base64.b64encode(bytes(picture_bytes)).decode()}]}
    made = image_placeholders.extract_images(json.dumps(answer).encode())
    job_id = submit(caller)
    finish(job_id, start(caller, job_id), JobResult(Status.SUCCEEDED, http_status=200, response=made.response))
    with db.begin() as session:
        artifacts.store(session, job_id, made.pictures)

    assert (answer if is_sent else None) == json.loads(claim_one().payload)["data"]["result"]


def test_event_of_a_removed_job_is_still_delivered(caller: Key) -> None:
    endpoint(caller, include_result=True)
    happen(caller)
    (one,) = deliveries()
    query("DELETE FROM job")

    assert {"id": f"job_{one.job_id.hex}"} == json.loads(claim_one().payload)["data"]


def test_a_claim_that_broke_off_left_nothing_behind(caller: Key) -> None:
    endpoint(caller, include_result=True)
    happen(caller)
    (picked,) = pick()

    with pytest.raises(RuntimeError), db.begin() as session:
        assert delivery.claim(session, picked.id, picked.ticket, lease_s=30, render=webhook_payload.render)
        raise RuntimeError("before the commit")

    assert [("rung", 0, None)] == [(one.status, one.attempts, one.payload) for one in deliveries()]
    assert claim(picked) is not None


def test_retention_removes_old_deliveries_and_keeps_open_ones(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    settle(claim_one(), ARRIVED)
    happen(caller)
    query("UPDATE delivery SET id = overlay(id::text PLACING '0187c8b0-0000' FROM 1 FOR 13)::uuid")
    happen(caller)
    _, new = pick()
    one = claim(new)
    assert one is not None
    settle(one, ARRIVED)
    clean_up()

    assert ["rung", "delivered"] == [one.status for one in deliveries()]


def test_deleted_endpoints_go_when_their_log_has_gone(caller: Key) -> None:
    endpoint(caller)
    happen(caller)
    query("UPDATE webhook_endpoint SET deleted_at = now() - interval '31 d'")
    clean_up()
    assert 1 == len(query("SELECT FROM webhook_endpoint"))
    query("DELETE FROM delivery")
    clean_up()

    assert [] == query("SELECT FROM webhook_endpoint")


def test_idle_receivers_lose_their_health_and_endpoints_keep_it(caller: Key) -> None:
    endpoint(caller)
    happen(caller, url="https://example.com/own")
    for one in [claim(each) for each in pick()]:
        assert one is not None
        settle(one, REFUSED, retry_in_s=5)
    clean_up()
    assert 2 == len(query("SELECT FROM receiver"))
    query("UPDATE delivery SET status = 'failed'")
    clean_up()

    assert ["whe_"] == [one.name[:4] for one in query("SELECT name FROM receiver")]

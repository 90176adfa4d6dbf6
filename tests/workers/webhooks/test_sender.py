"""The webhook sender: official libraries accept its signatures, the status decides, and each attempt is stored before the next."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import openai
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from models.database import db
from models.keys.keys import Key
from models.webhooks import endpoints, signing
from models.webhooks.attempts import FAILING_ATTEMPTS
from models.webhooks.retry_schedule import RETRIES, SCHEDULE_S
from tests.support.queue_tools import finish, known, query, start, submit
from tests.support.servers.webhook_receiver import Got, Receiver
from tests.support.webhook_tools import claim, deliveries, endpoint, endpoint_and_secret, make_due, pick, put_right
from workers.webhooks.sender import Sender, sign


@pytest.fixture
def caller(database: None) -> Key:
    return known()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    with Receiver(tmp_path_factory.mktemp("receiver")) as started:
        yield started


@pytest.fixture
def receiver(server: Receiver, override: Callable[..., None], tmp_path: Path, redis_client: object) -> Receiver:
    """The receiver, without recorded requests."""
    (server.folder / "received.jsonl").write_text("")
    override(**server.settings())
    return server


@pytest.fixture
def sender() -> Sender:
    return Sender(stop=threading.Event(), rng=random.Random(1))


def happen(caller: Key, count: int = 1, *, url: str | None = None) -> None:
    """Lets this number of jobs succeed."""
    for _ in range(count):
        job_id = submit(caller, webhook_url=url)
        finish(job_id, start(caller, job_id))


def send(sender: Sender) -> None:
    """Picks all due deliveries and sends them."""
    for delivery in pick():
        sender.serve(delivery.id, delivery.ticket)


def unwrap(got: Got, secret: str) -> object:
    return openai.OpenAI(api_key="none").webhooks.unwrap(got.body, got.headers, secret=secret)


def test_the_published_test_vector_of_the_sdk() -> None:
    payload = (
        b'{"id": "evt_685c059ae3a481909bdc86819b066fb6", "object": "event", "created_at": 1750861210, '
        b'"type": "response.completed", "data": {"id": "resp_123"}}'
    )
    secret = "whsec_RdvaYFYUXuIFuEbvZHwMfYFhUf7aMYjYcmM24+Aj40c="

    signed = sign([secret], message_id="wh_685c059ae39c8190af8c71ed1022a24d", at=datetime.fromtimestamp(1750861210, UTC), payload=payload)

    assert "v1,gUAg4R2hWouRZqRQG4uJypNS8YK885G838+EHb4nKBY=" == signed


def test_official_libraries_verify_our_webhooks(caller: Key, receiver: Receiver, sender: Sender) -> None:
    _, secret = endpoint_and_secret(caller, receiver.url())
    happen(caller)
    send(sender)

    (got,) = receiver.got()
    event = unwrap(got, secret)
    assert json.loads(got.body) == Webhook(secret).verify(got.body, got.headers)
    assert ("job.succeeded", f"job_{deliveries()[0].job_id.hex}") == (event.type, event.data.id)  # type: ignore[attr-defined]
    assert ["delivered"] == [one.status for one in deliveries()]


def test_the_headers_are_those_of_standard_webhooks(caller: Key, receiver: Receiver, sender: Sender) -> None:
    endpoint(caller, receiver.url())
    happen(caller)
    before = int(datetime.now(UTC).timestamp())
    send(sender)

    headers = receiver.got()[0].headers
    assert f"wh_{deliveries()[0].id.hex}" == headers["webhook-id"]
    assert before <= int(headers["webhook-timestamp"]) <= datetime.now(UTC).timestamp()
    assert "application/json" == headers["content-type"]
    assert headers["user-agent"].startswith("nowserving/")
    assert "authorization" not in headers


def test_the_whole_job_is_accepted_too(caller: Key, receiver: Receiver, sender: Sender) -> None:
    _, secret = endpoint_and_secret(caller, receiver.url(), include_result=True)
    happen(caller)
    send(sender)

    assert {"id": "answer"} == unwrap(receiver.got()[0], secret).data.result  # type: ignore[attr-defined]


def test_a_changed_body_or_another_secret_is_found_out(caller: Key, receiver: Receiver, sender: Sender) -> None:
    _, secret = endpoint_and_secret(caller, receiver.url())
    other = endpoint_and_secret(caller, receiver.url("/other"))[1]
    happen(caller)
    send(sender)
    (got,) = receiver.got("/hook")

    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(got.body.replace("succeeded", "failed"), got.headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrap(got, other)


def test_during_a_rotation_both_secrets_verify(caller: Key, receiver: Receiver, sender: Sender) -> None:
    row, old = endpoint_and_secret(caller, receiver.url())
    with db.begin() as session:
        _, new = endpoints.rotate_secret(session, caller.id, row.id, keep_old=True)
    happen(caller)
    send(sender)

    (got,) = receiver.got()
    for secret in (old, new):
        assert unwrap(got, secret)
    assert 2 == len(got.headers["webhook-signature"].split(" "))


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_every_2xx_is_success(caller: Key, receiver: Receiver, sender: Sender, status: int) -> None:
    endpoint(caller, receiver.url(status=status))
    happen(caller)
    send(sender)

    assert [("delivered", status)] == [(one.status, one.http_status) for one in deliveries()]


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 410, 429, 500, 503])
def test_everything_else_is_not_and_is_tried_again_on_schedule(caller: Key, receiver: Receiver, sender: Sender, status: int) -> None:
    endpoint(caller, receiver.url(status=status))
    happen(caller)
    send(sender)

    (row,) = query("SELECT *, extract(epoch FROM next_at - sent_at)::float8 AS after_s FROM delivery")
    assert ("pending", status, 1, RETRIES - 1, b"done") == (row.status, row.http_status, row.attempts, row.retries_left, bytes(row.answer))
    assert str(status) in row.error
    assert 4 < row.after_s < 10
    assert 1 == len(receiver.got())


def test_the_retries_have_the_same_id_and_body_and_a_timestamp_of_their_own(caller: Key, receiver: Receiver, sender: Sender) -> None:
    _, secret = endpoint_and_secret(caller, receiver.url(status=500))
    happen(caller)
    for _ in range(1 + RETRIES):
        make_due()
        send(sender)
    make_due()
    send(sender)

    got = receiver.got()
    assert 1 + RETRIES == len(got)
    assert 1 == len({(one.id, one.body) for one in got})
    assert len({one.headers["webhook-timestamp"] for one in got}) <= len(got)
    assert all(unwrap(one, secret) for one in got)
    assert ["failed"] == [one.status for one in deliveries()]


def test_each_retry_follows_the_schedule(caller: Key, receiver: Receiver, sender: Sender) -> None:
    endpoint(caller, receiver.url(status=500))
    happen(caller)
    waits = []
    for _ in SCHEDULE_S:
        make_due()
        send(sender)
        waits.append(query("SELECT extract(epoch FROM next_at - sent_at)::float8 AS s FROM delivery")[0].s)

    assert [pytest.approx(planned, rel=0.11, abs=1.5) for planned in SCHEDULE_S] == waits


@pytest.mark.parametrize("status", [429, 503])
def test_a_receiver_that_asks_for_time_gets_it_for_all_its_deliveries(caller: Key, receiver: Receiver, sender: Sender, status: int) -> None:
    endpoint(caller, receiver.url(status=status, after=600))
    happen(caller, 2)
    first, second = pick()
    sender.serve(first.id, first.ticket)

    (row,) = query("SELECT extract(epoch FROM next_at - sent_at)::float8 AS s FROM delivery WHERE id = :id", id=first.id)
    (health,) = query("SELECT extract(epoch FROM paused_until - now())::float8 AS s FROM receiver")
    assert 599 < row.s < 610
    assert 590 < health.s <= 600
    assert "rung" == query("SELECT status FROM delivery WHERE id = :id", id=second.id)[0].status
    happen(caller)
    assert [] == pick()


def test_retry_after_of_another_failure_delays_only_that_delivery(caller: Key, receiver: Receiver, sender: Sender) -> None:
    endpoint(caller, receiver.url(status=500, after=600))
    happen(caller)
    send(sender)

    assert 599 < query("SELECT extract(epoch FROM next_at - sent_at)::float8 AS s FROM delivery")[0].s < 610
    assert [None] == [one.paused_until for one in query("SELECT * FROM receiver")]


def test_gone_disables_the_endpoint_and_the_operator_reads_it(
    caller: Key, receiver: Receiver, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    row = endpoint(caller, receiver.url(status=410))
    happen(caller)
    send(sender)

    (result,) = [record for record in caplog.records if record.getMessage() == "webhook endpoint disabled"]
    assert (f"whe_{row.id.hex}", "it answered 410 Gone", caller.id) == (result.receiver, result.reason, result.key)  # type: ignore[attr-defined]
    with db.begin() as session:
        assert endpoints.get(session, caller.id, row.id).disabled_at is not None


def test_no_answer_in_time_is_a_failure(caller: Key, receiver: Receiver, sender: Sender, override: Callable[..., None]) -> None:
    override(webhook_timeout_s=0.2)
    endpoint(caller, receiver.url(hang=1))
    happen(caller)
    send(sender)

    (row,) = deliveries()
    assert ("pending", None, "no answer within 0.2 s") == (row.status, row.http_status, row.error)
    assert row.duration_ms >= 200


def test_where_we_do_not_connect_the_caller_learns_no_address(
    caller: Key, receiver: Receiver, sender: Sender, override: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    endpoint(caller, f"http://localhost:{receiver.port}/")
    happen(caller)
    override(webhook_allow_networks="192.0.2.0/24")
    send(sender)

    assert ["its address is not one that webhooks may be sent to"] == [one.error for one in deliveries()]
    assert any("127.0.0.1" in getattr(record, "why", "") or "::1" in getattr(record, "why", "") for record in caplog.records)
    assert [] == receiver.got()


def test_one_message_sends_further_due_deliveries_of_the_receiver(caller: Key, receiver: Receiver, sender: Sender) -> None:
    endpoint(caller, receiver.url())
    happen(caller, 6)
    (picked,) = pick(limit=1)
    sender.serve(picked.id, picked.ticket)

    assert 6 == len({one.id for one in receiver.got()})
    assert {"delivered"} == {one.status for one in deliveries()}


def test_one_that_fails_all_the_time_is_not_asked_for_ever(caller: Key, receiver: Receiver, sender: Sender) -> None:
    endpoint(caller, receiver.url(status=500))
    happen(caller, FAILING_ATTEMPTS + 3)
    (picked,) = pick(limit=1)
    sender.serve(picked.id, picked.ticket)

    assert FAILING_ATTEMPTS == len({one.id for one in receiver.got()}) == len(receiver.got())
    send(sender)
    assert FAILING_ATTEMPTS + 1 == len(receiver.got())


def test_stopping_sender_claims_no_further_delivery(caller: Key, receiver: Receiver) -> None:
    stop = threading.Event()
    stop.set()
    endpoint(caller, receiver.url())
    happen(caller, 3)
    (picked,) = pick(limit=1)
    Sender(stop=stop).serve(picked.id, picked.ticket)

    assert 1 == len(receiver.got())
    assert ["delivered", "pending", "pending"] == sorted(one.status for one in deliveries())


def test_repeated_or_void_broker_message_sends_nothing(caller: Key, receiver: Receiver, sender: Sender) -> None:
    endpoint(caller, receiver.url())
    happen(caller)
    (picked,) = pick()
    sender.serve(picked.id, uuid4())
    sender.serve(picked.id, picked.ticket)
    sender.serve(picked.id, picked.ticket)
    sender.serve(uuid4(), uuid4())

    assert 1 == len(receiver.got())


def test_a_jobs_own_url_is_signed_with_the_keys_secret(caller: Key, receiver: Receiver, sender: Sender) -> None:
    happen(caller, url=receiver.url("/mine", status=200))
    send(sender)

    with db.begin() as session:
        secret = signing.default_secret(session, caller.id)
    assert unwrap(receiver.got("/mine")[0], secret)


def test_deliveries_of_a_lost_sender_are_retried(caller: Key, receiver: Receiver, sender: Sender) -> None:
    endpoint(caller, receiver.url())
    happen(caller)
    lost = claim(pick()[0], lease_s=-1)
    assert lost is not None
    put_right()
    send(sender)

    (got,) = receiver.got()
    assert (f"wh_{lost.id.hex}", lost.payload.decode()) == (got.id, got.body)

"""Endpoints of a key: made, changed, switched off; and the secrets that sign for them."""

from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from models.database import db
from models.keys.keys import Key
from models.platform.errors import Invalid, NotFound, WrongState
from models.webhooks import delivery_log, endpoints, sample_event, signing
from models.webhooks.delivery_log import DeliveryScope
from tests.support.queue_tools import finish, known, query, start, submit
from tests.support.webhook_tools import (
    ARRIVED,
    ENDED,
    REFUSED,
    claim_one,
    deliveries,
    endpoint,
    endpoint_and_secret,
    pick,
    put_right,
    settle,
)

URL = "https://example.com/hook"


@pytest.fixture
def caller(database: None) -> Key:
    return known()


def happen(caller: Key) -> None:
    """A job has succeeded."""
    job_id = submit(caller)
    finish(job_id, start(caller, job_id))


def test_an_endpoint_is_shown_as_the_sdk_wants_it_and_without_its_secret(caller: Key) -> None:
    row, plain = endpoint_and_secret(caller, include_result=True)

    shown = endpoints.to_json(row)

    assert "signing_secret" not in shown
    assert plain == endpoints.to_json(row, plain_secret=plain)["signing_secret"]
    assert ("webhook_endpoint", "mine", URL, ENDED, ["result"]) == tuple(
        shown[name] for name in ("object", "name", "url", "event_types", "include")
    )
    assert shown["signing_secret_hint"].startswith("whsec_…") and shown["signing_secret_hint"][7:] in plain
    assert isinstance(shown["created_at"], int) and shown["created_at"] == shown["updated_at"]


def test_a_secret_is_stored_sealed(caller: Key) -> None:
    _, plain = endpoint_and_secret(caller)

    (stored,) = query("SELECT secret FROM webhook_endpoint")
    assert plain.startswith("whsec_") and len(plain) > 40
    assert plain.encode() not in bytes(stored.secret)


def test_another_keys_endpoint_looks_like_a_missing_one(caller: Key) -> None:
    row, other = endpoint(caller), known("sk-other")
    for act in (
        lambda session, number: endpoints.get(session, other.id, number),
        lambda session, number: endpoints.update(session, other.id, number, name="x"),
        lambda session, number: endpoints.delete(session, other.id, number),
        lambda session, number: endpoints.rotate_secret(session, other.id, number, keep_old=True),
        lambda session, number: sample_event.send_test(session, other.id, number, "job.failed"),
        lambda session, number: delivery_log.list_deliveries(session, other.id, DeliveryScope(endpoint_id=number), limit=1),
    ):
        for number in (row.id, uuid4()):
            with pytest.raises(NotFound, match=r"^No such webhook endpoint\.$"), db.begin() as session:
                act(session, number)


@pytest.mark.parametrize("result", ["", "whe_", "whe_zz", "evt_" + "0" * 32, "whe_" + "٣" * 32, "whe_" + "0" * 33])
def test_a_malformed_id_is_not_found(result: str) -> None:
    with pytest.raises(NotFound):
        endpoints.parse_id(result)


def test_endpoints_come_newest_first_page_by_page(caller: Key) -> None:
    rows = [endpoint(caller) for _ in range(3)]

    with db.begin() as session:
        first = endpoints.list_endpoints(session, caller.id, limit=1)
        rest = endpoints.list_endpoints(session, caller.id, limit=5, after=first[0].id)

    assert [rows[2].id, rows[1].id] == [row.id for row in first]
    assert [rows[1].id, rows[0].id] == [row.id for row in rest]


def test_a_key_has_only_so_many(caller: Key) -> None:
    for _ in range(endpoints.MAX_ENDPOINTS):
        endpoint(caller)

    with pytest.raises(Invalid, match="as many as it may"):
        endpoint(caller)


@pytest.mark.parametrize("kinds", [[], ["job.nonsense"], ["job.failed", "response.completed"]])
def test_an_event_that_never_happens_is_refused(caller: Key, kinds: list[str]) -> None:
    with pytest.raises(Invalid, match=r"job\.succeeded"):
        endpoint(caller, kinds=kinds)


def test_form_changes_only_the_requested_fields(caller: Key) -> None:
    row = endpoint(caller)

    with db.begin() as session:
        changed = endpoints.update(session, caller.id, row.id, event_types=["job.failed"])
        same = endpoints.update(session, caller.id, row.id, event_types=["job.failed"])

    assert (row.name, row.url, ["job.failed"]) == (changed.name, changed.url, changed.event_types)
    assert row.updated_at < changed.updated_at == same.updated_at


def test_waiting_deliveries_use_the_new_url(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    with db.begin() as session:
        endpoints.update(session, caller.id, row.id, url="https://new.example.com/x")

    assert "https://new.example.com/x" == claim_one().url


def test_deleting_an_endpoint_drops_its_waiting_deliveries(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    with db.begin() as session:
        endpoints.delete(session, caller.id, row.id)

    assert 1 == put_right()
    assert [] == pick()
    assert ["failed"] == [one.status for one in deliveries()]
    with pytest.raises(NotFound), db.begin() as session:
        endpoints.get(session, caller.id, row.id)


def test_after_a_rotation_both_secrets_sign_if_that_was_asked_for(caller: Key) -> None:
    row, old = endpoint_and_secret(caller)
    happen(caller)
    with db.begin() as session:
        changed, new = endpoints.rotate_secret(session, caller.id, row.id, keep_old=True)

    assert new != old and signing.hint(new) == changed.hint
    assert [new, old] == claim_one().secrets


def test_the_old_secret_signs_for_a_day_and_no_longer(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    with db.begin() as session:
        _, new = endpoints.rotate_secret(session, caller.id, row.id, keep_old=True)
    (stored,) = query("SELECT extract(epoch FROM old_secret_until - now()) / 3600 AS hours FROM webhook_endpoint")
    query("UPDATE webhook_endpoint SET old_secret_until = old_secret_until - interval '24 h 1 s'")

    assert 24 == pytest.approx(float(stored.hours), abs=0.1)
    assert [new] == claim_one().secrets


def test_a_leaked_secret_can_be_dropped_at_once(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    with db.begin() as session:
        endpoints.rotate_secret(session, caller.id, row.id, keep_old=True)
        _, last = endpoints.rotate_secret(session, caller.id, row.id, keep_old=False)

    assert [last] == claim_one().secrets


def test_a_key_has_one_secret_for_the_urls_of_its_jobs(caller: Key) -> None:
    with db.begin() as session:
        first, again = signing.default_secret(session, caller.id), signing.default_secret(session, caller.id)
        other = signing.default_secret(session, known("sk-other").id)
        rotated = signing.rotate_default_secret(session, caller.id, keep_old=True)
    job_id = submit(caller, webhook_url=URL)
    finish(job_id, start(caller, job_id))

    assert first == again != other
    assert [rotated, first] == claim_one().secrets


def test_a_key_that_never_asked_for_its_secret_has_one_when_its_job_ends(caller: Key) -> None:
    job_id = submit(caller, webhook_url=URL)
    finish(job_id, start(caller, job_id))

    used = claim_one().secrets

    with db.begin() as session:
        assert [signing.default_secret(session, caller.id)] == used


@pytest.mark.parametrize("is_off", [False, True])
def test_sample_is_sent_once_and_does_not_change_health(caller: Key, is_off: bool) -> None:
    row = endpoint(caller, kinds=["job.failed"])
    with db.begin() as session:
        endpoints.update(session, caller.id, row.id, is_enabled=not is_off)
        made = sample_event.send_test(session, caller.id, row.id, "job.expired")
    put_right()
    one = claim_one()
    settle(one, REFUSED)

    with db.begin() as session:
        found = delivery_log.find(session, caller.id, made.id)
    assert ("job.expired", "failed", True, 1, 500) == (found.event_type, found.status, found.is_over, found.attempts, found.http_status)
    assert b'"data":{"id":"job_00000000000000000000000000000000"}' in one.payload
    assert f"whe_{row.id.hex}" == made.receiver
    assert [] == query("SELECT * FROM receiver")


@pytest.mark.parametrize("change", [{"is_enabled": True}, {"url": "https://elsewhere.example.com/"}])
def test_a_disabled_endpoint_starts_again_in_good_health(caller: Key, change: dict[str, object]) -> None:
    row = endpoint(caller)
    happen(caller)
    settle(claim_one(), REFUSED, retry_in_s=5)
    with db.begin() as session:
        assert endpoints.disable(session, row.id, reason="why not")
        assert not endpoints.disable(session, row.id, reason="twice")
        off = endpoints.to_json(endpoints.get(session, caller.id, row.id))
        on = endpoints.to_json(endpoints.update(session, caller.id, row.id, **change))  # type: ignore[arg-type]

    assert (False, "why not") == (off["enabled"], off["disabled_reason"])
    assert (True, None, None) == (on["enabled"], on["disabled_at"], on["disabled_reason"])
    assert [] == query("SELECT * FROM receiver")


def test_a_change_of_name_does_not_switch_an_endpoint_on(caller: Key) -> None:
    row = endpoint(caller)
    with db.begin() as session:
        endpoints.disable(session, row.id, reason="why not")
        changed = endpoints.update(session, caller.id, row.id, name="other")

    assert "why not" == changed.disabled_reason


def test_other_endpoints_get_the_disabled_event(caller: Key) -> None:
    row, watcher = endpoint(caller), endpoint(caller, kinds=["webhook_endpoint.disabled"])
    with db.begin() as session:
        endpoints.disable(session, row.id, reason="why not")

    (one,) = deliveries()
    assert (watcher.id, "webhook_endpoint.disabled") == (one.endpoint_id, one.event_type)
    assert f'"data":{{"id":"whe_{row.id.hex}"}}'.encode() in bytes(one.payload)


def test_delivered_event_can_be_resent_with_its_id(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    first = claim_one()
    settle(first, ARRIVED)
    with db.begin() as session:
        again = delivery_log.redeliver(session, caller.id, DeliveryScope(endpoint_id=row.id), first.id)
    second = claim_one()

    assert (first.id, first.payload) == (second.id, second.payload)
    assert ("pending", f"whe_{row.id.hex}", 9) == (again.status, again.receiver, again.retries_left)


def test_failed_deliveries_since_a_time_can_be_resent(caller: Key) -> None:
    row = endpoint(caller)
    for _ in range(3):
        happen(caller)
    old, new, arrived = deliveries()
    query("UPDATE delivery SET status = CASE WHEN id = :id THEN 'delivered' ELSE 'failed' END", id=arrived.id)
    query("UPDATE delivery SET event_at = event_at - interval '2 h' WHERE id = :id", id=old.id)

    with db.begin() as session:
        done = delivery_log.redeliver_since(session, caller.id, row.id, since=new.event_at)

    assert 1 == done
    assert ["failed", "pending", "delivered"] == [one.status for one in deliveries()]


def test_nothing_is_delivered_again_to_an_endpoint_that_is_off_nor_while_it_is_being_sent(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    one = claim_one()
    again: Callable[..., object] = delivery_log.redeliver
    with pytest.raises(WrongState, match="being sent"), db.begin() as session:
        again(session, caller.id, DeliveryScope(endpoint_id=row.id), one.id)
    with db.begin() as session:
        endpoints.disable(session, row.id, reason="why not")
    with pytest.raises(WrongState, match="disabled"), db.begin() as session:
        again(session, caller.id, DeliveryScope(endpoint_id=row.id), one.id)


def test_anothers_delivery_cannot_be_sent_again(caller: Key) -> None:
    mine, theirs = endpoint(caller), endpoint(known("sk-other"))
    happen(known("sk-other"))
    (one,) = deliveries()

    with pytest.raises(NotFound), db.begin() as session:
        delivery_log.redeliver(session, caller.id, DeliveryScope(endpoint_id=mine.id), one.id)
    with pytest.raises(NotFound), db.begin() as session:
        delivery_log.redeliver(session, caller.id, DeliveryScope(endpoint_id=theirs.id), one.id)


def test_the_log_shows_each_delivery_newest_first(caller: Key) -> None:
    row = endpoint(caller)
    happen(caller)
    settle(claim_one(), ARRIVED)
    happen(caller)

    with db.begin() as session:
        page = [
            delivery_log.to_json(one)
            for one in delivery_log.list_deliveries(session, caller.id, DeliveryScope(endpoint_id=row.id), limit=1)
        ]

    assert [("pending", 0, None), ("delivered", 1, 200)] == [(one["status"], one["attempts"], one["response_code"]) for one in page]
    assert ("ok", 12, None) == tuple(page[1][name] for name in ("response_body", "duration_ms", "error"))
    assert page[1]["id"].startswith("wh_") and page[1]["event_id"].startswith("evt_")

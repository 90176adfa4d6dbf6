"""Webhook endpoints: where a key's events go, which of them, and under which secret. The object of the OpenAI API, and a little more."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from uuid_utils.compat import uuid7

from models.database.db import Transaction
from models.platform import ids
from models.platform.errors import Invalid, NotFound
from models.webhooks import outbox, signing, url_policy
from models.webhooks.outbox import EventType

JsonObject = dict[str, Any]
PREFIX = "whe_"
# Each event is written down once for every endpoint, in the statement that ends a job.
MAX_ENDPOINTS = 32
SAMPLE_JOB = "job_" + "0" * 32


def parse_id(said: str) -> UUID:
    """The id behind `whe_…`. Raises NotFound."""
    return ids.parse_id(PREFIX, said, otherwise="No such webhook endpoint.")


def create(
    session: Transaction, key_id: int, *, name: str, url: str, event_types: Sequence[str], include_result: bool = False
) -> tuple[Any, str]:
    """A new endpoint's row, and its secret, which is shown this once.

    include_result: the whole job is sent instead of its id. Raises Invalid for a URL that may not be called, for an event type that
    does not exist, and when the key has ENDPOINTS_MOST already.
    """
    cleaned, kinds, plain, number = _clean(url), _kinds(event_types), signing.new_secret(), uuid7()
    if session.execute(_COUNT, {"key_id": key_id}).scalar_one() >= MAX_ENDPOINTS:
        raise Invalid(f"This key has {MAX_ENDPOINTS} webhook endpoints, as many as it may. Delete one first.")
    row = session.execute(
        _CREATE,
        {"id": number, "key_id": key_id, "name": name, "url": cleaned, "event_types": kinds, "include_result": include_result,
         "secret": signing.seal(plain, owner=ids.format_id(PREFIX, number)), "hint": signing.hint(plain)},
    ).one()  # fmt: skip
    return row, plain


def get(session: Transaction, key_id: int, endpoint_id: UUID) -> Any:
    """The endpoint's row. Raises NotFound when this key has no such endpoint."""
    return _one(session.execute(_GET, {"id": endpoint_id, "key_id": key_id}).one_or_none())


def list_endpoints(session: Transaction, key_id: int, *, limit: int, after: UUID | None = None) -> Sequence[Any]:
    """Up to limit + 1 rows of this key's endpoints, newest first, older than `after`."""
    return session.execute(_PAGE, {"key_id": key_id, "after": after, "most": limit + 1}).all()


def update(
    session: Transaction,
    key_id: int,
    endpoint_id: UUID,
    *,
    name: str | None = None,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
    include_result: bool | None = None,
    is_enabled: bool | None = None,
) -> Any:
    """The endpoint's row with these changes; None: as it was. What waits goes to the new URL.

    A disabled endpoint is enabled by `is_enabled` and by another URL, and starts in good health. Raises NotFound, and Invalid as `create`.
    """
    before = get(session, key_id, endpoint_id)
    cleaned = before.url if url is None else _clean(url)
    wanted = {
        "id": endpoint_id,
        "name": before.name if name is None else name,
        "url": cleaned,
        "event_types": before.event_types if event_types is None else _kinds(event_types),
        "include_result": before.include_result if include_result is None else include_result,
        "enable": bool(is_enabled) or (is_enabled is None and cleaned != before.url),
        "disable": is_enabled is False,
    }
    row = _one(session.execute(_UPDATE, wanted).one_or_none())
    if wanted["enable"]:
        session.execute(_WELL, {"name": ids.format_id(PREFIX, endpoint_id)})
    return row


def delete(session: Transaction, key_id: int, endpoint_id: UUID) -> None:
    """The endpoint is called no more, and what waits for it is dropped (delivery.give_up). Raises NotFound."""
    _one(session.execute(_DELETE, {"id": endpoint_id, "key_id": key_id}).one_or_none())


def rotate_secret(session: Transaction, key_id: int, endpoint_id: UUID, *, keep_old: bool) -> tuple[Any, str]:
    """The endpoint's row and its new secret, shown this once; with keep_old, the old one signs too for 24 hours. Raises NotFound."""
    plain = signing.new_secret()
    wanted = {
        "id": endpoint_id,
        "key_id": key_id,
        "secret": signing.seal(plain, owner=ids.format_id(PREFIX, endpoint_id)),
        "hint": signing.hint(plain),
        "keep": keep_old,
        "hours": signing.OVERLAP_HOURS,
    }
    return _one(session.execute(_ROTATE, wanted).one_or_none()), plain


def send_test(session: Transaction, key_id: int, endpoint_id: UUID, event_type: str) -> Any:
    """A sample of this event is on its way, once; works for a disabled endpoint too. Row: id (of the delivery), receiver.

    The sender has to be told after the commit (wake.receivers); delivery_log.find then says what came of it. Raises NotFound, Invalid.
    """
    row = get(session, key_id, endpoint_id)
    (kind,) = _kinds([event_type])
    number = uuid4()
    data = {"id": ids.format_id(PREFIX, endpoint_id) if kind == EventType.ENDPOINT_DISABLED else SAMPLE_JOB}
    payload = outbox.event_payload(number, EventType(kind), at=outbox.now_s(session), data=data)
    wanted = {"key_id": key_id, "endpoint_id": endpoint_id, "receiver": ids.format_id(PREFIX, endpoint_id), "host": row.host}
    return session.execute(_TEST, {**wanted, "event_id": number, "type": kind, "payload": payload}).one()


def disable(session: Transaction, endpoint_id: UUID, *, reason: str) -> bool:
    """The endpoint is called no more until it is enabled again; its key's other endpoints are told. False when it was so already."""
    row = session.execute(_DISABLE, {"id": endpoint_id, "reason": reason}).one_or_none()
    if row is not None:
        outbox.insert_deliveries(session, row.key_id, EventType.ENDPOINT_DISABLED, {"id": ids.format_id(PREFIX, endpoint_id)})
    return row is not None


def to_json(row: Any, *, plain_secret: str | None = None) -> JsonObject:
    """The endpoint as a caller sees it; its secret only where it has just been made."""
    secret = {} if plain_secret is None else {"signing_secret": plain_secret}
    return {
        "id": ids.format_id(PREFIX, row.id),
        "object": "webhook_endpoint",
        "name": row.name,
        "url": row.url,
        "event_types": list(row.event_types),
        "include": ["result"] if row.include_result else [],
        **secret,
        "signing_secret_hint": row.hint,
        "enabled": row.disabled_at is None,
        "disabled_at": _epoch(row.disabled_at),
        "disabled_reason": row.disabled_reason,
        "created_at": _epoch(row.created_at),
        "updated_at": _epoch(row.updated_at),
    }


def _clean(url: str) -> str:
    try:
        return url_policy.normalize(url)
    except url_policy.NotAllowed as error:
        raise Invalid(f"`url` {error}.", param="url") from None


def _kinds(event_types: Sequence[str]) -> list[str]:
    unknown = [each for each in event_types if each not in set(EventType)]
    if unknown or not event_types:
        raise Invalid(f"`event_types` must name at least one of: {', '.join(EventType)}.", param="event_types")
    return list(dict.fromkeys(event_types))


def _one(row: Any | None) -> Any:
    if row is None:
        raise NotFound("No such webhook endpoint.")
    return row


def _epoch(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


_COLUMNS = "id, key_id, name, url, host, event_types, include_result, hint, disabled_at, disabled_reason, created_at, updated_at"
_HERE = "id = :id AND key_id = :key_id AND deleted_at IS NULL"
_COUNT = text("SELECT count(*) FROM webhook_endpoint WHERE key_id = :key_id AND deleted_at IS NULL")
_CREATE = text(f"""
    INSERT INTO webhook_endpoint (id, key_id, name, url, host, event_types, include_result, secret, hint)
    VALUES (:id, :key_id, :name, :url, split_part(:url, '/', 3), :event_types, :include_result, :secret, :hint) RETURNING {_COLUMNS}
""")
_GET = text(f"SELECT {_COLUMNS} FROM webhook_endpoint WHERE {_HERE}")
_PAGE = text(f"""
    SELECT {_COLUMNS} FROM webhook_endpoint
    WHERE key_id = :key_id AND deleted_at IS NULL AND (CAST(:after AS uuid) IS NULL OR id < :after) ORDER BY id DESC LIMIT :most
""")
_UPDATE = text(f"""
    UPDATE webhook_endpoint SET
        name = :name, url = :url, host = split_part(:url, '/', 3), event_types = :event_types, include_result = :include_result,
        disabled_at = CASE WHEN :disable THEN coalesce(disabled_at, now()) WHEN NOT :enable THEN disabled_at END,
        disabled_reason = CASE WHEN :disable THEN coalesce(disabled_reason, 'by its owner') WHEN NOT :enable THEN disabled_reason END,
        updated_at = CASE WHEN (name, url, event_types, include_result) IS DISTINCT FROM
                               (:name, :url, CAST(:event_types AS text[]), :include_result) OR :enable OR :disable
                          THEN now() ELSE updated_at END
    WHERE id = :id AND deleted_at IS NULL RETURNING {_COLUMNS}
""")
_WELL = text("DELETE FROM receiver WHERE name = :name")
_DELETE = text(f"UPDATE webhook_endpoint SET deleted_at = now() WHERE {_HERE} RETURNING id")
_ROTATE = text(f"""
    UPDATE webhook_endpoint SET
        secret = :secret, hint = :hint, updated_at = now(),
        old_secret = CASE WHEN :keep THEN secret END, old_secret_until = CASE WHEN :keep THEN now() + make_interval(hours => :hours) END
    WHERE {_HERE} RETURNING {_COLUMNS}
""")
_TEST = text("""
    INSERT INTO delivery (key_id, endpoint_id, receiver, host, event_id, event_type, payload, is_test, retries_left)
    VALUES (:key_id, :endpoint_id, :receiver, :host, :event_id, :type, :payload, true, 0) RETURNING id, receiver
""")
_DISABLE = text("""
    UPDATE webhook_endpoint SET disabled_at = now(), disabled_reason = :reason
    WHERE id = :id AND disabled_at IS NULL AND deleted_at IS NULL RETURNING key_id
""")

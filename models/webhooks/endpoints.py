"""Webhook endpoints of a key: URL, subscribed event types and signing secret. The OpenAI API's object with a few more fields."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from uuid_utils.compat import uuid7

from models.database.db import Transaction
from models.platform import ids
from models.platform.errors import Invalid, NotFound
from models.webhooks import outbox, signing, url_policy
from models.webhooks.outbox import EventType

JsonObject = dict[str, Any]
PREFIX = "whe_"
# The statement that ends a job inserts one delivery per endpoint, so the number of endpoints bounds its cost.
MAX_ENDPOINTS = 32


def parse_id(public_id: str) -> UUID:
    """Returns the UUID of `whe_…`. Raises NotFound."""
    return ids.parse_id(PREFIX, public_id, otherwise="No such webhook endpoint.")


_COLUMNS = "id, key_id, name, url, host, event_types, include_result, hint, disabled_at, disabled_reason, created_at, updated_at"
_OWNED = "id = :id AND key_id = :key_id AND deleted_at IS NULL"
_COUNT = text("SELECT count(*) FROM webhook_endpoint WHERE key_id = :key_id AND deleted_at IS NULL")
_CREATE = text(f"""
    INSERT INTO webhook_endpoint (id, key_id, name, url, host, event_types, include_result, secret, hint)
    VALUES (:id, :key_id, :name, :url, split_part(:url, '/', 3), :event_types, :include_result, :secret, :hint) RETURNING {_COLUMNS}
""")


def create(
    session: Transaction, key_id: int, *, name: str, url: str, event_types: Sequence[str], include_result: bool = False
) -> tuple[Any, str]:
    """Creates an endpoint; returns its row and its secret, which is shown only now.

    include_result: events contain the whole job instead of its id. Raises Invalid for a URL that the policy forbids, for an unknown
    event type, and if the key has MAX_ENDPOINTS. That limit is soft: concurrent requests count before they insert, and may exceed it.
    """
    normalized, kinds, secret, endpoint_id = _normalize(url), known_event_types(event_types), signing.new_secret(), uuid7()
    if session.execute(_COUNT, {"key_id": key_id}).scalar_one() >= MAX_ENDPOINTS:
        raise Invalid(f"This key has {MAX_ENDPOINTS} webhook endpoints, as many as it may. Delete one first.")
    row = session.execute(
        _CREATE,
        {"id": endpoint_id, "key_id": key_id, "name": name, "url": normalized, "event_types": kinds, "include_result": include_result,
         "secret": signing.seal(secret, owner=ids.format_id(PREFIX, endpoint_id)), "hint": signing.hint(secret)},
    ).one()  # fmt: skip
    return row, secret


_GET = text(f"SELECT {_COLUMNS} FROM webhook_endpoint WHERE {_OWNED}")


def get(session: Transaction, key_id: int, endpoint_id: UUID) -> Any:
    """Returns the endpoint's row. Raises NotFound if this key has no such endpoint."""
    return _expect_row(session.execute(_GET, {"id": endpoint_id, "key_id": key_id}).one_or_none())


_PAGE = text(f"""
    SELECT {_COLUMNS} FROM webhook_endpoint
    WHERE key_id = :key_id AND deleted_at IS NULL AND (CAST(:after AS uuid) IS NULL OR id < :after) ORDER BY id DESC LIMIT :limit
""")


def list_endpoints(session: Transaction, key_id: int, *, limit: int, after: UUID | None = None) -> Sequence[Any]:
    """Returns up to limit + 1 rows of this key's endpoints, newest first, older than `after`."""
    return session.execute(_PAGE, {"key_id": key_id, "after": after, "limit": limit + 1}).all()


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
_RESET_HEALTH = text("DELETE FROM receiver WHERE name = :name")


def update(
    session: Transaction, key_id: int, endpoint_id: UUID, *, name: str | None = None, url: str | None = None,
    event_types: Sequence[str] | None = None, include_result: bool | None = None, is_enabled: bool | None = None,
) -> Any:  # fmt: skip
    """Changes an endpoint and returns its row. None leaves a field as it is. Pending deliveries go to the new URL.

    `is_enabled` or another URL enables a disabled endpoint and resets its failures. Raises NotFound, and Invalid as `create` does.
    """
    before = get(session, key_id, endpoint_id)
    normalized = before.url if url is None else _normalize(url)
    params = {
        "id": endpoint_id,
        "name": before.name if name is None else name,
        "url": normalized,
        "event_types": before.event_types if event_types is None else known_event_types(event_types),
        "include_result": before.include_result if include_result is None else include_result,
        "enable": bool(is_enabled) or (is_enabled is None and normalized != before.url),
        "disable": is_enabled is False,
    }
    row = _expect_row(session.execute(_UPDATE, params).one_or_none())
    if params["enable"]:
        session.execute(_RESET_HEALTH, {"name": ids.format_id(PREFIX, endpoint_id)})
    return row


_DELETE = text(f"UPDATE webhook_endpoint SET deleted_at = now() WHERE {_OWNED} RETURNING id")


def delete(session: Transaction, key_id: int, endpoint_id: UUID) -> None:
    """Deletes an endpoint; dispatch.recover fails its pending deliveries. Raises NotFound."""
    _expect_row(session.execute(_DELETE, {"id": endpoint_id, "key_id": key_id}).one_or_none())


_ROTATE = text(f"""
    UPDATE webhook_endpoint SET
        secret = :secret, hint = :hint, updated_at = now(),
        old_secret = CASE WHEN :keep THEN secret END, old_secret_until = CASE WHEN :keep THEN now() + make_interval(hours => :hours) END
    WHERE {_OWNED} RETURNING {_COLUMNS}
""")


def rotate_secret(session: Transaction, key_id: int, endpoint_id: UUID, *, keep_old: bool) -> tuple[Any, str]:
    """Replaces the secret; returns the row and the new secret, shown only now. With keep_old the old one signs too, for 24 hours.

    Raises NotFound.
    """
    secret = signing.new_secret()
    sealed = signing.seal(secret, owner=ids.format_id(PREFIX, endpoint_id))
    params = {"secret": sealed, "hint": signing.hint(secret), "keep": keep_old, "hours": signing.OVERLAP_HOURS}
    row = session.execute(_ROTATE, {**params, "id": endpoint_id, "key_id": key_id}).one_or_none()
    return _expect_row(row), secret


_DISABLE = text("""
    UPDATE webhook_endpoint SET disabled_at = now(), disabled_reason = :reason
    WHERE id = :id AND disabled_at IS NULL AND deleted_at IS NULL RETURNING key_id
""")


def disable(session: Transaction, endpoint_id: UUID, *, reason: str) -> bool:
    """Disables an endpoint and notifies the key's other endpoints. Returns False if it was disabled already."""
    row = session.execute(_DISABLE, {"id": endpoint_id, "reason": reason}).one_or_none()
    if row is not None:
        outbox.insert_deliveries(session, row.key_id, EventType.ENDPOINT_DISABLED, {"id": ids.format_id(PREFIX, endpoint_id)})
    return row is not None


def to_json(row: Any, *, plain_secret: str | None = None) -> JsonObject:
    """Returns the endpoint as JSON for its owner. plain_secret: shown only right after it was generated."""
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


def _normalize(url: str) -> str:
    try:
        return url_policy.normalize(url)
    except url_policy.NotAllowed as error:
        raise Invalid(f"`url` {error}.", param="url") from None


def known_event_types(event_types: Sequence[str]) -> list[str]:
    """Returns the event types without duplicates. Raises Invalid if there are none, or for an unknown one."""
    unknown = [event_type for event_type in event_types if event_type not in set(EventType)]
    if unknown or not event_types:
        raise Invalid(f"`event_types` must name at least one of: {', '.join(EventType)}.", param="event_types")
    return list(dict.fromkeys(event_types))


def _expect_row(row: Any | None) -> Any:
    if row is None:
        raise NotFound("No such webhook endpoint.")
    return row


def _epoch(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())

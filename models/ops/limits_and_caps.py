"""Operator changes of limits, weights and addresses of credentials, and of caps of keys and flows. Each change is in the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import text

from models.access import audit_log
from models.access.audit_log import Act
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS
from models.database.db import Transaction
from models.keys import credential_address, keys, model_lists
from models.ops import legacy_caps, pause
from models.ops.pause import Target
from models.platform import crypto
from models.platform.errors import Invalid, NotFound
from models.queue.caps import NAMES as CAPS

LIMITS = ("rpm", "tpm", "ipm", "rpd", "max_in_flight")
CLASSES = ("", CHAT, IMAGES, EDITS, EMBEDDINGS, MODERATIONS)
MAX_VALUE = 2**31 - 1


_FIND_LIMITS = text("SELECT * FROM meter WHERE credential_id = :credential_id AND model = :model FOR UPDATE")
_SET_LIMITS = text("""
    INSERT INTO meter (credential_id, model, rpm, tpm, ipm, rpd, max_in_flight)
    VALUES (:credential_id, :model, :rpm, :tpm, :ipm, :rpd, :max_in_flight)
    ON CONFLICT (credential_id, model) DO UPDATE
    SET rpm = excluded.rpm, tpm = excluded.tpm, ipm = excluded.ipm, rpd = excluded.rpd, max_in_flight = excluded.max_in_flight
""")


def set_limits(session: Transaction, act: Act, credential_id: int, changes: Mapping[str, int | None], *, model: str) -> dict[str, Any]:
    """Changes these limits of a credential and model; the others stay. None: no limit, learned from the upstream. Raises NotFound."""
    _expect_valid(changes, LIMITS)
    _locked_row(session, "credential", credential_id)
    params = {"credential_id": credential_id, "model": model}
    row = session.execute(_FIND_LIMITS, params).one_or_none()
    before = {name: getattr(row, name, None) for name in LIMITS}
    after = {**before, **changes}
    session.execute(_SET_LIMITS, {**params, **after})
    audit_log.write(
        session, act, "limits", f"credential:{credential_id}", before={"model": model, **before}, after={"model": model, **after}
    )
    return {"id": str(credential_id), "object": "credential", "model": model, **after}


_THIS_CAP = "scope = :scope AND owner_id = :owner_id AND flow = :flow AND endpoint = :endpoint"
_FIND_CAPS = text(f"SELECT * FROM cap WHERE {_THIS_CAP} FOR UPDATE")
_SET_CAPS = text("""
    INSERT INTO cap (scope, owner_id, flow, endpoint, key_id, max_queued, max_in_flight, rpm)
    VALUES (:scope, :owner_id, :flow, :endpoint, :key_id, :max_queued, :max_in_flight, :rpm)
    ON CONFLICT (scope, owner_id, flow, endpoint) DO UPDATE
    SET max_queued = excluded.max_queued, max_in_flight = excluded.max_in_flight, rpm = excluded.rpm
""")
_DROP_EMPTY = text(f"""
    DELETE FROM cap WHERE {_THIS_CAP} AND coalesce(max_queued, max_in_flight, rpm) IS NULL AND coalesce(paused_at, draining_at) IS NULL
""")


def set_caps(session: Transaction, act: Act, on: Target, changes: Mapping[str, int | None], *, endpoint: str) -> dict[str, Any]:
    """Changes these caps of a key or flow; the others stay. None: no cap. endpoint: for requests of this endpoint; empty: for all.

    Raises NotFound, and Invalid for another kind of target or an unknown endpoint.
    """
    if on.kind not in ("key", "flow"):
        raise Invalid("Only keys and flows have caps; credentials have limits.")
    if endpoint not in CLASSES:
        raise Invalid(f"`endpoint` is one of {', '.join(CLASSES[1:])}.", param="endpoint")
    _expect_valid(changes, CAPS)
    on = pause.resolve(session, on)
    legacy_caps.split_legacy_caps(session, lane_id=on.number, user=on.flow)
    pause.target_state(session, on, lock=True)
    params = {**on.cap_columns, "endpoint": endpoint}
    row = session.execute(_FIND_CAPS, params).one_or_none()
    before = {name: getattr(row, name, None) for name in CAPS}
    after = {**before, **changes}
    session.execute(_SET_CAPS, {**params, **after})
    session.execute(_DROP_EMPTY, params)
    audit_log.write(session, act, "caps", str(on), before={"endpoint": endpoint, **before}, after={"endpoint": endpoint, **after})
    return {"id": on.name, "object": on.kind, "endpoint": endpoint or None, **after}


_CHANGE_CREDENTIAL = text("""
    UPDATE credential SET weight = coalesce(:weight, weight), secret = coalesce(:secret, secret),
           base_url = CASE WHEN CAST(:base_url AS text) IS NULL THEN base_url ELSE nullif(:base_url, '') END,
           api_version = CASE WHEN CAST(:api_version AS text) IS NULL THEN api_version ELSE nullif(:api_version, '') END
    WHERE id = :id RETURNING weight, kind, base_url, api_version
""")


def change_credential(
    session: Transaction,
    act: Act,
    credential_id: int,
    *,
    weight: float | None = None,
    base_url: str | None = None,
    upstream_key: str | None = None,
    api_version: str | None = None,
) -> dict[str, Any]:
    """Changes the given fields; running calls keep the old ones. Empty: base_url is OPENAI_BASE_URL, api_version none.

    Raises NotFound, Invalid.
    """
    before = _locked_row(session, "credential", credential_id)
    if upstream_key:
        keys.check_upstream_key(upstream_key)
    checked = credential_address.normalize(
        before.kind,
        base_url=before.base_url if base_url is None else base_url,
        api_version=before.api_version if api_version is None else api_version,
    )
    base_url, api_version = None if base_url is None else checked[0] or "", None if api_version is None else checked[1] or ""
    sealed = crypto.seal(upstream_key.encode(), bound_to=f"credential:{credential_id}") if upstream_key else None
    params = {"id": credential_id, "weight": weight, "base_url": base_url, "secret": sealed, "api_version": api_version}
    after = session.execute(_CHANGE_CREDENTIAL, params).one()
    if sealed is not None or base_url is not None:
        model_lists.delete_copies(session, credential_id)
    audit_log.write(
        session, act, "change", f"credential:{credential_id}",
        before={"weight": before.weight, "base_url": before.base_url, "api_version": before.api_version},
        after={"weight": after.weight, "base_url": after.base_url, "api_version": after.api_version, "new_key": sealed is not None},
    )  # fmt: skip
    return {"id": str(credential_id), "object": "credential", **after._asdict()}


def retire_credential(session: Transaction, act: Act, credential_id: int) -> dict[str, Any]:
    """Retires a credential: it gets no more jobs, running calls end, its history stays. Resume reverses it. Raises NotFound."""
    _locked_row(session, "credential", credential_id)
    session.execute(text("UPDATE credential SET retired_at = now() WHERE id = :id"), {"id": credential_id})
    audit_log.write(session, act, "retire", f"credential:{credential_id}", before=None, after=None)
    return {"id": str(credential_id), "object": "credential", "retired": True}


def _locked_row(session: Transaction, table: str, number: int) -> Any:
    row = session.execute(text(f"SELECT * FROM {table} WHERE id = :id FOR UPDATE"), {"id": number}).one_or_none()
    if row is None:
        raise NotFound(f"There is no {table} {number}.")
    return row


def _expect_valid(changes: Mapping[str, int | None], names: tuple[str, ...]) -> None:
    for name, value in changes.items():
        if name not in names or (value is not None and not 1 <= value <= MAX_VALUE):
            raise Invalid(f"`{name}` is a whole number from 1 to {MAX_VALUE}, or null; known are {', '.join(names)}.", param=name)

"""Cached model lists of the upstreams: one copy per credential and account, refreshed by workers, read by every API process.

The API requests a refresh; one worker claims it, calls the upstream and stores the result. A failed refresh keeps the last good copy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from sqlalchemy import text

from models.config.settings import settings
from models.database.db import Transaction

# After this time another worker may claim the refresh of a worker that died; longer than a refresh may take.
CLAIM_S = 20
# The limit of copies per credential, because a caller can name any number of accounts.
MAX_ACCOUNTS = 16
# OpenRouter's list, the longest known, has 0.6 MB.
MAX_LIST_BYTES = 4 * 1024 * 1024


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


class _Model(msgspec.Struct):
    id: str


_LIST, _MODEL = msgspec.json.Decoder(_List), msgspec.json.Decoder(_Model)


def account_name(headers: Mapping[str, str]) -> str:
    """The account that these headers select, by which copies are distinguished; empty without headers."""
    return json.dumps(dict(sorted(headers.items()))) if headers else ""


def parse_entries(body: bytes) -> Iterator[tuple[str, bytes]]:
    """The id of each model in a list, and the upstream's own bytes for it. Raises ValueError for what is no list of models."""
    try:
        raws = _LIST.decode(body).data
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError("no list of models") from error
    for raw in raws:
        with suppress(msgspec.MsgspecError, RecursionError):
            yield _MODEL.decode(raw).id, bytes(raw)


_STANDING = text("""
    SELECT credential.id AS credential_id, coalesce(credential.paused_at, pool.paused_at) IS NOT NULL AS is_paused,
           copy.body IS NOT NULL AND copy.is_current AS has_body,
           CASE WHEN copy.body IS NOT NULL AND copy.is_current THEN extract(epoch FROM now() - copy.fetched_at)::float8 END AS age_s,
           extract(epoch FROM now() - copy.tried_at)::float8 AS tried_s, copy.refusal, copy.wanted_at IS NOT NULL AS is_wanted
    FROM credential JOIN pool ON pool.id = credential.pool_id
    LEFT JOIN LATERAL (
        SELECT model_list.*, source IS NOT DISTINCT FROM coalesce(credential.base_url, :default) AS is_current FROM model_list
        WHERE credential_id = credential.id AND account = :account
    ) AS copy ON true
    WHERE credential.pool_id = :pool_id AND credential.retired_at IS NULL ORDER BY credential.id
""")


def states_of(session: Transaction, pool_id: int, *, account: str) -> Sequence[Any]:
    """How the copies of the pool's credentials stand, in the order of the credentials.

    Rows: credential_id, is_paused, has_body, age_s (None without a body), tried_s (since the last refresh ended; None: never), refusal
    ({status, error} of the last refresh), is_wanted. A copy from another base URL than today's counts as none.
    """
    return session.execute(_STANDING, {"pool_id": pool_id, "account": account, "default": settings().openai_base_url}).all()


_BODIES = text("""
    SELECT body FROM model_list WHERE credential_id = ANY(:ids) AND account = :account AND body IS NOT NULL ORDER BY credential_id
""")


def bodies_of(session: Transaction, credential_ids: Sequence[int], *, account: str) -> list[bytes]:
    """The copies of these credentials, in the order of the credentials."""
    rows = session.execute(_BODIES, {"ids": list(credential_ids), "account": account})
    return [bytes(row.body) for row in rows]


_WANT = text("""
    INSERT INTO model_list AS copy (credential_id, account, wanted_at)
    SELECT id, :account, now() FROM unnest(CAST(:ids AS bigint[])) AS id ORDER BY id
    ON CONFLICT (credential_id, account) DO UPDATE SET wanted_at = now(), asked_at = now() WHERE copy.wanted_at IS NULL
""")
_DROP_SURPLUS = text("""
    DELETE FROM model_list WHERE (credential_id, account) IN (
        SELECT credential_id, account FROM (
            SELECT credential_id, account,
                   row_number() OVER (PARTITION BY credential_id ORDER BY asked_at DESC, account = :account DESC) AS n
            FROM model_list WHERE credential_id = ANY(:ids) AND account <> ''
        ) AS numbered WHERE n > :max
    )
""")


def request_refresh(session: Transaction, credential_ids: Sequence[int], *, account: str) -> None:
    """Requests a refresh of these copies. Beyond MAX_ACCOUNTS accounts of a credential, the least recently used copies are dropped."""
    params = {"ids": sorted(credential_ids), "account": account}
    session.execute(_WANT, params)
    if account:
        session.execute(_DROP_SURPLUS, {**params, "max": MAX_ACCOUNTS})


_CLAIM = text("""
    UPDATE model_list SET claimed_until = now() + make_interval(secs => :claim_s) FROM credential
    WHERE credential.id = model_list.credential_id AND (model_list.credential_id, model_list.account) = (
        SELECT credential_id, account FROM model_list
        WHERE wanted_at IS NOT NULL AND (claimed_until IS NULL OR claimed_until < now())
        -- One at a time for each credential: a caller that names many accounts takes no more than one of a worker's threads.
        AND NOT EXISTS (
            SELECT FROM model_list AS other WHERE other.credential_id = model_list.credential_id AND other.claimed_until >= now()
        )
        ORDER BY wanted_at LIMIT 1 FOR UPDATE SKIP LOCKED
    )
    RETURNING model_list.credential_id, model_list.account, credential.base_url, credential.secret, credential.kind AS credential_kind,
              credential.api_version, coalesce(credential.base_url, :default) AS source
""")


def claim_refresh(session: Transaction) -> Any | None:
    """Claims the oldest requested refresh for CLAIM_S, of a credential that no worker refreshes now; None: there is none.

    Row: credential_id, account, base_url, secret, credential_kind, api_version, source.
    """
    return session.execute(_CLAIM, {"claim_s": CLAIM_S, "default": settings().openai_base_url}).one_or_none()


_DONE = "tried_at = now(), wanted_at = NULL, claimed_until = NULL"
_STORE = text(f"""
    UPDATE model_list SET body = :body, source = :source, fetched_at = now(), refusal = NULL, {_DONE}
    WHERE credential_id = :credential_id AND account = :account
""")


def store_list(session: Transaction, row: Any, *, body: bytes) -> None:
    """Stores the refreshed list. row: of `claim_refresh`."""
    session.execute(_STORE, {"credential_id": row.credential_id, "account": row.account, "source": row.source, "body": body})


_REFUSE = text(f"""
    UPDATE model_list SET refusal = CAST(:refusal AS jsonb), {_DONE} WHERE credential_id = :credential_id AND account = :account
""")


def store_failure(session: Transaction, row: Any, *, status: int, error: Mapping[str, object]) -> None:
    """Stores the failure of a refresh; the copy stays as it was. row: of `claim_refresh`."""
    refusal = json.dumps({"status": status, "error": error})
    session.execute(_REFUSE, {"credential_id": row.credential_id, "account": row.account, "refusal": refusal})


def delete_copies(session: Transaction, credential_id: int) -> None:
    """Deletes the copies of a credential whose key or address was changed."""
    session.execute(text("DELETE FROM model_list WHERE credential_id = :id"), {"id": credential_id})

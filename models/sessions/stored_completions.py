"""Stored answers: the answers of requests with `"store": true`, indexed by the upstream's id and by metadata.

The answer itself stays in its job. A row here holds the id and the caller's metadata; the transaction that ends the job inserts it, only
for requests that asked for it. `endpoint` separates the kinds of answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.content.endpoints import CHAT
from models.database.db import Transaction
from models.platform.errors import NotFound
from models.sessions import deletion

JsonObject = dict[str, Any]
MAX_ID_CHARS = 256
NOT_STORED = "No answer is stored under this id. Send the request with `store: true`, and read it with the same key."
MAX_MODEL_CHARS = 256
# As OpenAI limits metadata.
MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512


def metadata_to_store(endpoint: str, request: bytes) -> dict[str, str] | None:
    """Returns the metadata to store with the answer of this request, or None if the request does not store.

    Metadata other than up to 16 pairs of short strings that Postgres can store is dropped: only the upstream validates it.
    """
    # A substring search first: prompts can be large, and few requests store.
    if endpoint != CHAT or b'"store"' not in request:
        return None
    try:
        body = json.loads(request)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.get("store") is not True:
        return None
    metadata = body.get("metadata")
    return metadata if _is_metadata(metadata) else {}


_INSERT = text("""
    INSERT INTO stored_answer (job_id, key_id, endpoint, id, models, metadata)
    VALUES (:job_id, :key_id, :endpoint, :id, CAST(:models AS text[]), CAST(:metadata AS jsonb)) ON CONFLICT (job_id) DO NOTHING
""")


def insert(
    session: Transaction,
    *,
    job_id: UUID,
    key_id: int,
    endpoint: str,
    model: str,
    answer: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
) -> None:
    """Indexes the answer of this job. Does nothing if its id is missing or unfit for a path. model: of the request."""
    answer_id, answer_model = (answer or {}).get("id"), (answer or {}).get("model")
    if not isinstance(answer_id, str) or not is_answer_id(answer_id):
        return
    models = [model]
    if isinstance(answer_model, str) and _is_storable(answer_model) and len(answer_model) <= MAX_MODEL_CHARS:
        models.append(answer_model)
    params = {"job_id": job_id, "key_id": key_id, "endpoint": endpoint, "id": answer_id, "models": models}
    session.execute(_INSERT, {**params, "metadata": json.dumps(metadata)})


def is_answer_id(value: str) -> bool:
    """Whether an answer can be stored under this id: 1 to 256 visible ASCII characters without a slash."""
    return 1 <= len(value) <= MAX_ID_CHARS and all("!" <= char <= "~" and char != "/" for char in value)


# response IS NULL: the job was emptied with its session.
_ROWS = """
    SELECT stored.id AS answer_id, stored.metadata AS answer_metadata, job.id, job.response, job.response_type, job.request, job.wants_urls,
           (SELECT upstream_request_id FROM attempt WHERE job_id = job.id AND outcome = 'succeeded' LIMIT 1) AS upstream_request_id
    FROM stored_answer AS stored JOIN job ON job.id = stored.job_id
    WHERE stored.key_id = :key_id AND stored.endpoint = :endpoint AND job.response IS NOT NULL
"""
_GET = text(f"{_ROWS} AND stored.id = :id ORDER BY stored.job_id DESC LIMIT 1")


def get(session: Transaction, key_id: int, endpoint: str, answer_id: str) -> Any:
    """Returns the stored answer of this id, the newest if the upstream gave the id twice. Raises NotFound.

    Row: answer_id, answer_metadata, upstream_request_id, and id, response, response_type, request, wants_urls of its job.
    """
    row = session.execute(_GET, {"key_id": key_id, "endpoint": endpoint, "id": answer_id}).one_or_none()
    if row is None:
        raise NotFound(NOT_STORED, param="completion_id")
    return row


_FILTER = """
    AND NOT EXISTS (
        SELECT FROM stored_answer AS newer
        WHERE newer.key_id = :key_id AND newer.endpoint = :endpoint AND newer.id = stored.id AND newer.job_id > stored.job_id
    ) AND (CAST(:model AS text) IS NULL OR :model = ANY(stored.models)) AND stored.metadata @> CAST(:metadata AS jsonb)
"""
# A job's id is a UUIDv7: it sorts by creation time.
_PAGE_ASCENDING = text(f"""
    {_ROWS} {_FILTER} AND (CAST(:after AS uuid) IS NULL OR stored.job_id > :after) ORDER BY stored.job_id LIMIT :limit
""")
_PAGE_DESCENDING = text(f"""
    {_ROWS} {_FILTER} AND (CAST(:after AS uuid) IS NULL OR stored.job_id < :after) ORDER BY stored.job_id DESC LIMIT :limit
""")


def list_completions(
    session: Transaction, key_id: int, endpoint: str, *, limit: int, after: UUID | None, is_ascending: bool, model: str | None,
    metadata: Mapping[str, str],
) -> Sequence[Any]:  # fmt: skip
    """Returns up to limit + 1 rows of `get`, in the order in which their jobs were created.

    Of rows with the same id only the newest, as `get` has it: a page could not go on after another. after: the job of the previous page's
    last row. model: of the request or of the answer. metadata: pairs that each row must have.
    """
    params = {
        "key_id": key_id, "endpoint": endpoint, "after": after, "model": model, "metadata": json.dumps(metadata), "limit": limit + 1,
    }  # fmt: skip
    return session.execute(_PAGE_ASCENDING if is_ascending else _PAGE_DESCENDING, params).all()


_SET_METADATA = text("UPDATE stored_answer SET metadata = CAST(:metadata AS jsonb) WHERE job_id = :job_id")


def set_metadata(session: Transaction, key_id: int, endpoint: str, answer_id: str, metadata: Mapping[str, str]) -> None:
    """Replaces the metadata of a stored answer. Raises NotFound."""
    row = get(session, key_id, endpoint, answer_id)
    session.execute(_SET_METADATA, {"job_id": row.id, "metadata": json.dumps(metadata)})


def delete(session: Transaction, key_id: int, endpoint: str, answer_id: str) -> None:
    """Deletes a stored answer and the bodies of its job; usage and ledger entries stay. Raises NotFound."""
    deletion.erase_job(session, get(session, key_id, endpoint, answer_id).id)


def _is_metadata(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_PAIRS
        and all(len(name) <= MAX_KEY_CHARS and isinstance(each, str) and len(each) <= MAX_VALUE_CHARS for name, each in value.items())
        and all(_is_storable(each) for pair in value.items() for each in pair)
    )


def _is_storable(value: str) -> bool:
    """Whether Postgres takes it as text: without U+0000 and halves of surrogate pairs."""
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)

"""Answers that their callers asked to keep (`"store": true`): found by the upstream's own id, listed by metadata, deleted.

An answer is its job's; a row here says only that it is kept, under which id, and what its caller noted about it. The row is written in
the transaction that ends the job, for those that asked for it alone: other jobs pay nothing. `endpoint` tells the kinds apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models import erasure
from models.db import Session
from models.endpoint import CHAT
from models.errors import NotFound

JsonObject = dict[str, Any]
ID_MOST_CHARS = 256
MODEL_MOST_CHARS = 256
# As OpenAI limits metadata.
PAIRS_MOST, KEY_MOST_CHARS, VALUE_MOST_CHARS = 16, 64, 512


def metadata_to_store(endpoint: str, request: bytes) -> dict[str, str] | None:
    """The metadata under which the answer to this request is to be kept; None: it is not to be kept.

    Metadata that is not up to 16 pairs of strings is not kept: the upstream has judged it otherwise, we could not find it again.
    """
    # Looked for before anything is parsed: a prompt may be large, and nearly no request stores.
    if endpoint != CHAT or b'"store"' not in request:
        return None
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError):
        return None
    if not isinstance(asked, dict) or asked.get("store") is not True:
        return None
    metadata = asked.get("metadata")
    return metadata if _is_metadata(metadata) else {}


def keep(
    session: Session, *, job_id: UUID, key_id: int, endpoint: str, model: str, answer: Mapping[str, Any] | None, metadata: Mapping[str, str]
) -> None:
    """The answer of this job can be found by its id; nothing happens when it has none that an address can hold. model: that was asked."""
    answer_id, said_model = (answer or {}).get("id"), (answer or {}).get("model")
    if not isinstance(answer_id, str) or not is_answer_id(answer_id):
        return
    models = [model]
    if isinstance(said_model, str) and "\0" not in said_model and len(said_model) <= MODEL_MOST_CHARS:
        models.append(said_model)
    wanted = {"job_id": job_id, "key_id": key_id, "endpoint": endpoint, "id": answer_id, "models": models}
    session.execute(_KEEP, {**wanted, "metadata": json.dumps(metadata)})


def is_answer_id(said: str) -> bool:
    """Whether an answer can be kept under this id: 1 to 256 visible ASCII characters without a slash."""
    return 1 <= len(said) <= ID_MOST_CHARS and all("!" <= char <= "~" and char != "/" for char in said)


def get(session: Session, key_id: int, endpoint: str, answer_id: str) -> Any:
    """The kept answer of this id, the newest when an upstream gave it twice. Raises NotFound.

    Row: answer_id, noted (its metadata), upstream_request_id, and id, response, request, wants_urls of its job.
    """
    row = session.execute(_GET, {"key_id": key_id, "endpoint": endpoint, "id": answer_id}).one_or_none()
    if row is None:
        raise NotFound("No answer is stored under this id. It needs `store: true`, and the key that asked.", param="completion_id")
    return row


def page(
    session: Session, key_id: int, endpoint: str, *, limit: int, after: UUID | None, is_ascending: bool, model: str | None,
    metadata: Mapping[str, str],
) -> Sequence[Any]:  # fmt: skip
    """Up to limit + 1 rows as of `get`, oldest first or newest first. after: the job of the last one seen. model: as asked or answered.

    metadata: pairs that all of them have.
    """
    wanted = {
        "key_id": key_id, "endpoint": endpoint, "after": after, "model": model, "metadata": json.dumps(metadata), "most": limit + 1,
    }  # fmt: skip
    return session.execute(_PAGE_ASCENDING if is_ascending else _PAGE_DESCENDING, wanted).all()


def set_metadata(session: Session, key_id: int, endpoint: str, answer_id: str, metadata: Mapping[str, str]) -> None:
    """It has this metadata, and no other. Raises NotFound."""
    row = get(session, key_id, endpoint, answer_id)
    session.execute(_SET_METADATA, {"job_id": row.id, "metadata": json.dumps(metadata)})


def delete(session: Session, key_id: int, endpoint: str, answer_id: str) -> None:
    """It is gone, and the bodies of its job with it; what it used stays on record. Raises NotFound."""
    erasure.erase_job(session, get(session, key_id, endpoint, answer_id).id)


def _is_metadata(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= PAIRS_MOST
        and all(len(name) <= KEY_MOST_CHARS and isinstance(said, str) and len(said) <= VALUE_MOST_CHARS for name, said in value.items())
    )


_KEEP = text("""
    INSERT INTO stored_answer (job_id, key_id, endpoint, id, models, metadata)
    VALUES (:job_id, :key_id, :endpoint, :id, CAST(:models AS text[]), CAST(:metadata AS jsonb)) ON CONFLICT (job_id) DO NOTHING
""")
# A job without its response was emptied with its session.
_ROWS = """
    SELECT stored.id AS answer_id, stored.metadata AS noted, job.id, job.response, job.request, job.wants_urls,
           (SELECT upstream_request_id FROM attempt WHERE job_id = job.id AND outcome = 'succeeded' LIMIT 1) AS upstream_request_id
    FROM stored_answer AS stored JOIN job ON job.id = stored.job_id
    WHERE stored.key_id = :key_id AND stored.endpoint = :endpoint AND job.response IS NOT NULL
"""
_GET = text(f"{_ROWS} AND stored.id = :id ORDER BY stored.job_id DESC LIMIT 1")
_FILTER = """
    AND (CAST(:model AS text) IS NULL OR :model = ANY(stored.models)) AND stored.metadata @> CAST(:metadata AS jsonb)
"""
# A job's id begins with the time at which it was made.
_PAGE_ASCENDING = text(f"""
    {_ROWS} {_FILTER} AND (CAST(:after AS uuid) IS NULL OR stored.job_id > :after) ORDER BY stored.job_id LIMIT :most
""")
_PAGE_DESCENDING = text(f"""
    {_ROWS} {_FILTER} AND (CAST(:after AS uuid) IS NULL OR stored.job_id < :after) ORDER BY stored.job_id DESC LIMIT :most
""")
_SET_METADATA = text("UPDATE stored_answer SET metadata = CAST(:metadata AS jsonb) WHERE job_id = :job_id")

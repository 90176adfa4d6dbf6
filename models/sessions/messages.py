"""Messages of a session: two for each turn, the question and, with the next number, the answer."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.content import artifacts, attachments, chat_messages
from models.database.db import Transaction
from models.jobs.states import Status
from models.platform import ids
from models.platform.errors import NotFound

JsonObject = dict[str, Any]
PREFIX = "msg_"
# A page ends early before it reads more than this, except for its first turn.
PAGE_BYTES = 32 * 1024 * 1024
_NUMBER = re.compile(r"msg_([1-9][0-9]{0,9})")
_PICTURE = re.compile(r"img_([0-9a-f]{32})_([0-9]{1,4})")
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.ASCII)


def parse_id(public_id: str) -> int:
    """Returns the number of `msg_…`. Raises NotFound."""
    match = _NUMBER.fullmatch(public_id)
    if not match:
        raise NotFound("No such message.")
    return int(match[1])


def list_messages(
    session: Transaction, conversation_id: int, *, limit: int, after: int | None, is_ascending: bool, now: float, origin: str = ""
) -> tuple[list[JsonObject], bool]:
    """Returns up to `limit` messages after this one, and whether there are more.

    The question of turn n is number 2n-1, its answer 2n. now: seconds since 1970, to sign links; origin: prefix of the links.
    """
    statement = _UP if is_ascending else _DOWN
    params = {"id": conversation_id, "after": after, "limit": limit // 2 + 2, "max_bytes": PAGE_BYTES}
    rows = session.execute(statement, params).all()
    shown: list[JsonObject] = []
    for row in rows:
        pair = [_question(session, row, now=now, origin=origin), _answer(session, row, now=now, origin=origin)]
        for message in pair if is_ascending else pair[::-1]:
            number = parse_id(message["id"])
            if after is None or (number > after if is_ascending else number < after):
                shown.append(message)
    has_more = len(shown) > limit or (bool(rows) and rows[-1].has_more)
    return shown[:limit], has_more


_REQUEST = text("SELECT endpoint, request FROM job WHERE id = :id")


def image_bytes(session: Transaction, name: str) -> bytes:
    """Returns the image `img_…` of a question. Raises NotFound."""
    match = _PICTURE.fullmatch(name)
    row = session.execute(_REQUEST, {"id": UUID(hex=match[1])}).one_or_none() if match else None
    urls = chat_messages.image_urls(chat_messages.stored_request_messages(row.endpoint, row.request)) if row else []
    url = urls[int(match[2])] if match and int(match[2]) < len(urls) else ""
    if not _DATA_URL.match(url):
        raise NotFound("This picture was deleted.")
    try:
        return binascii.a2b_base64(url.partition(",")[2])
    except binascii.Error:
        raise NotFound("This picture is not base64.") from None


def _question(session: Transaction, row: Any, *, now: float, origin: str) -> JsonObject:
    messages = chat_messages.stored_request_messages(row.endpoint, row.request)
    images = [_image(row.id, n, url, now=now, origin=origin) for n, url in enumerate(chat_messages.image_urls(messages))]
    files = [attachments.attachment_view(one, now=now, origin=origin) for one in attachments.by_ids(session, row.attachments)]
    words = chat_messages.plain_text(messages) or None
    return _message(row, 2 * row.turn - 1, role="user", text=words, images=images, attachments=files, at=row.created_at)


def _answer(session: Transaction, row: Any, *, now: float, origin: str) -> JsonObject:
    message = chat_messages.reply_message(row.response) if row.status == Status.SUCCEEDED else None
    made = artifacts.by_job(session, row.id) if row.images and row.status == Status.SUCCEEDED else []
    images = [{"url": artifacts.artifact_url(one.id, now=now, origin=origin), "content_type": one.content_type} for one in made]
    return _message(
        row, 2 * row.turn, role="assistant", text=chat_messages.plain_text([message]) if message else None, images=images, at=row.ended_at
    )


def _message(
    row: Any, number: int, *, role: str, text: str | None, images: Sequence[JsonObject], at: datetime | None,
    attachments: Sequence[JsonObject] = (),
) -> JsonObject:  # fmt: skip
    return {
        "id": f"{PREFIX}{number}",
        "object": "session.message",
        "turn": row.turn,
        "job_id": ids.format_id("job_", row.id),
        "role": role,
        "status": Status.QUEUED if row.status == Status.ADMITTED else row.status,
        "starts_afresh": row.since_turn == row.turn and row.turn > 1,
        "text": text,
        "images": list(images),
        "attachments": list(attachments),
        "error": row.error if role == "assistant" else None,
        "created_at": None if at is None else round(at.timestamp(), 3),
    }


def _image(job_id: UUID, n: int, url: str, *, now: float, origin: str) -> JsonObject:
    """Returns the caller's own link unchanged; an image in the request gets a signed link."""
    if not url.startswith("data:"):
        return {"url": url, "content_type": None}
    return {"url": artifacts.signed_url(f"img_{job_id.hex}_{n}", now=now, origin=origin), "content_type": url[5:].partition(";")[0][:100]}


def _page(bound: str, order: str) -> Any:
    return text(f"""
        WITH turns AS (
            SELECT id, turn, octet_length(request) + coalesce(octet_length(response), 0) AS bytes FROM job
            WHERE conversation_id = :id AND (CAST(:after AS bigint) IS NULL OR {bound}) ORDER BY turn {order} LIMIT :limit
        ), summed AS (
            SELECT id, sum(bytes) OVER (ORDER BY turn {order}) - bytes AS before, count(*) OVER () AS scanned,
                   row_number() OVER (ORDER BY turn {order}) AS nth FROM turns
        )
        SELECT job.id, job.turn, job.endpoint, job.request, job.status, job.images, job.error, job.attachments, job.since_turn,
               job.created_at, job.ended_at, job.response, summed.scanned > summed.nth AS has_more
        FROM summed JOIN job ON job.id = summed.id WHERE summed.before <= :max_bytes OR summed.nth = 1 ORDER BY job.turn {order}
    """)


_UP, _DOWN = _page("2 * turn > :after", "ASC"), _page("2 * turn - 1 < :after", "DESC")

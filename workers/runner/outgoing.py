"""Loads the request body of a claimed job within the process's memory budget; for a conversation's turn, with the history before it.

A large request is a `Body`, which is freed once it is written; the row keeps an outline of it for the rest of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from models.config.settings import settings
from models.content import endpoints
from models.database import db, large_values
from models.queue import history_window
from workers.runner import prompt, stream
from workers.upstream import request
from workers.upstream.body_budget import FREE_BYTES, WAIT_S, BodyReservation
from workers.upstream.exchange import Body


class NoMemory(Exception):
    """The process's memory budget for large bodies is used up."""


def load(row: Any, room: BodyReservation, *, is_over: Callable[[], bool]) -> tuple[Any, bytes | Body]:
    """Returns the row with its request, or with an outline of a large one, and the body to send.

    row: of claims.claim. is_over: whether the job was cancelled meanwhile. Raises Unavailable, and NoMemory after WAIT_S.
    """
    history_bytes = _history_bytes(row)
    size = row.request_bytes + history_bytes if max(row.request_bytes, history_bytes) > FREE_BYTES else 0
    if size > room.held_bytes and not room.reserve(size - room.held_bytes, wait_s=WAIT_S, is_over=is_over):
        raise NoMemory
    with large_values.transfer_slot(size):
        content = _content(row)
        is_stored = not history_bytes and len(content) == row.request_bytes
        if len(content) <= FREE_BYTES:
            room.resize(0)
            return row._replace(request=content), stream.with_usage_requested(row, content)
        outline = request.outline(content) if row.content_type is None else b"{}"
        content = stream.with_usage_requested(row, content)
    room.resize(len(content))
    return row._replace(request=outline), Body(content, is_stored=is_stored, on_written=partial(room.resize, 0))


def _history_bytes(row: Any) -> int:
    """The estimated size of the history and attachments; 0 without any."""
    if row.conversation_id is None or not (row.history_tokens or row.attachments):
        return 0
    with db.autocommit() as session:
        return history_window.estimate_bytes(session, row, max_bytes=settings().max_body_bytes)


def _content(row: Any) -> bytes:
    content = request.read_request(row) if row.request is None else bytes(row.request)
    if row.conversation_id is None or row.endpoint != endpoints.CHAT:
        return content
    with db.begin() as session:
        return bytes(prompt.assemble(session, row._replace(request=content)).request)

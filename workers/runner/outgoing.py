"""Loads what goes out for a claimed job, within the process's memory budget: its own request, and for a turn what it remembers.

A large request is a `Body`, which is freed when it was written; the row keeps an outline of it for the rest of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from models.config.settings import settings
from models.content import endpoints
from models.database import db
from models.queue import history_window
from workers.runner import prompt, stream
from workers.upstream import request
from workers.upstream.body_budget import FREE_BYTES, WAIT_S, BodyReservation
from workers.upstream.client import Body


class NoMemory(Exception):
    """The process's large bodies take all of its memory budget."""


def load(row: Any, room: BodyReservation, *, is_over: Callable[[], bool]) -> tuple[Any, bytes | Body]:
    """The row, with its request or an outline of that, and what goes out. row: as claimed. is_over: nobody wants it any more.

    Raises Unavailable, and NoRoom where there was none within WAIT_S.
    """
    remembered = _remembered_bytes(row)
    wanted = row.request_bytes + remembered if max(row.request_bytes, remembered) > FREE_BYTES else 0
    if wanted > room.held_bytes and not room.reserve(wanted - room.held_bytes, wait_s=WAIT_S, is_over=is_over):
        raise NoMemory
    with db.moving(wanted):
        content = _whole(row, wanted)
        is_stored = not remembered and len(content) == row.request_bytes
        if len(content) <= FREE_BYTES:
            room.settle(0)
            return row._replace(request=content), stream.with_usage_requested(row, content)
        outline = request.outline(content) if row.content_type is None else b"{}"
        content = stream.with_usage_requested(row, content)
    room.settle(len(content))
    return row._replace(request=outline), Body(content, is_stored=is_stored, on_written=partial(room.settle, 0))


def _remembered_bytes(row: Any) -> int:
    """0 where nothing is remembered."""
    if row.conversation_id is None or not (row.history_tokens or row.attachments):
        return 0
    with db.autocommit() as session:
        return history_window.estimate_bytes(session, row, most_bytes=settings().max_body_bytes)


def _whole(row: Any, wanted: int) -> bytes:
    content = request.read(row) if row.request is None else bytes(row.request)
    if row.conversation_id is None or row.endpoint != endpoints.CHAT:
        return content
    with db.begin() as session:
        return bytes(prompt.assemble(session, row._replace(request=content)).request)

"""Formats the frames of a streamed response: comments while the job waits, chunks under another completion id, failures.

Measured traps for clients: an SSE `id:` line, an empty line after a comment, a bare `{"error": …}`, a chunk without a delta, a stream
without [DONE].
"""

from __future__ import annotations

import json
import math
import time
from uuid import uuid4

from api.http import render
from models.content.endpoints import EDITS, IMAGES
from models.jobs import job_view
from models.jobs.states import Status
from models.platform.wire import JsonObject
from models.queue.position import QueuePosition

DONE = b"data: [DONE]\n\n"
CHUNK = "chat.completion.chunk"


def comment(status: Status | None, place: QueuePosition | None) -> bytes:
    """Formats the job's state as a comment. It ends with one newline: some SSE parsers take an empty line for an event."""
    if status is not None and status not in job_view.WAITING:
        return b": running\n"
    words = [": queued"]
    if place is not None:
        words.append(f"position={place.position}")
        if place.eta_s is not None:
            words.append(f"eta_s={math.ceil(place.eta_s)}")
        if place.standstill is not None:
            words.append(f"blocked_by={place.standstill}")
    return f"{' '.join(words)}\n".encode()


def split(transcript: bytes) -> list[bytes]:
    """Splits a transcript into events, each with its empty line."""
    return [event + b"\n\n" for event in transcript.split(b"\n\n") if event]


def renamed(event: bytes, name: str) -> bytes:
    """Returns the chunk with this completion id; an event that is no chat chunk stays unchanged."""
    chunk = _chunk(event)
    return event if chunk is None else data({**chunk, "id": name})


def name_of(event: bytes) -> str:
    """Returns the completion id of this chunk; a new one when it has none."""
    name = (_chunk(event) or {}).get("id")
    return name if isinstance(name, str) else new_name()


def new_name() -> str:
    """Returns a new completion id. Some programs key their history by it, and loop when an id is repeated."""
    return f"chatcmpl-{uuid4().hex}"


def failure(error: JsonObject, *, endpoint: str, model: str, name: str, is_begun: bool) -> list[bytes]:
    """Formats a failure as events: text for programs that display the content, and an exception in every SDK.

    name: the completion's id. is_begun: content was sent before.
    """
    if endpoint in (IMAGES, EDITS):
        return [b"event: error\n" + data({"type": "error", "error": error})]
    frame = {"id": name, "object": CHUNK, "created": int(time.time()), "model": model}
    delta = {"role": "assistant", "content": ("\n\n" if is_begun else "") + str(error["message"])}
    return [
        data({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": None}], "error": error}),
        data({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    ]


def data(value: object) -> bytes:
    """Formats one event with this value."""
    return f"data: {render.dump(value)}\n\n".encode()


def _chunk(event: bytes) -> JsonObject | None:
    lines = [line.removeprefix(b"data:") for line in event.split(b"\n") if line.startswith(b"data:")]
    try:
        value = json.loads(b"\n".join(lines))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("object") == CHUNK else None

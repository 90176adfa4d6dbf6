"""Collects server-sent events into one answer: of a stream, or of a plain call that was answered with events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import chain
from typing import Any

from models.content import endpoints
from models.platform import json_reading
from workers.answers import sse
from workers.answers.chat_chunks import Accumulator, ChatAccumulator, ImageAccumulator
from workers.answers.sse import Event, EventParser
from workers.upstream import answer_body
from workers.upstream.answer_body import JsonObject
from workers.upstream.exchange import Answer

# Levels of nesting in an event. Accumulating a deeper one would overflow Python's stack.
MAX_DEPTH = 128
KINDS = {endpoints.IMAGES: "image_generation", endpoints.EDITS: "image_edit"}


class EventKind(Enum):
    """The role of one event in the answer."""

    CHUNK = auto()
    ERROR = auto()  #: The upstream ends the answer with an error.
    GARBLED = auto()  #: The event is not a JSON object.
    BEHIND = auto()  #: The event follows the end of a complete answer, and is ignored.


@dataclass(frozen=True)
class CollectedEvent:
    """event: in the form that is published. content: its JSON object; empty for GARBLED and BEHIND."""

    kind: EventKind
    event: Event
    content: JsonObject


class Collector:
    """The answer that the events so far make. kind: event prefix of an images endpoint, else empty. n: choices or images."""

    def __init__(self, *, kind: str, n: int) -> None:
        self.accumulator: Accumulator = ImageAccumulator(n=n) if kind else ChatAccumulator(n=n)
        self.has_begun = self.is_done = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete if no more events follow."""
        return self.accumulator.is_closed or (self.is_done and self.accumulator.is_begun)

    def take(self, event: Event) -> CollectedEvent:
        """Adds an event."""
        self.has_begun = True
        if event.data.strip() == sse.DONE:
            self.is_done = True
        if self.is_done:
            return CollectedEvent(EventKind.BEHIND, event, {})
        content = _object(event.data)
        is_error = content is not None and (bool(content.get("error")) or event.name == b"error")
        if content is None or is_error:
            if self.accumulator.is_whole:
                return CollectedEvent(EventKind.BEHIND, event, {})
            return _failed(event, content) if content is not None else CollectedEvent(EventKind.GARBLED, event, {})
        self.accumulator.add(content)
        return CollectedEvent(EventKind.CHUNK, event if event.data.startswith(b"{") else replace(event, data=_dump(content)), content)

    def is_readable(self, event: Event) -> bool:
        """Whether this event is [DONE] or a JSON object."""
        return event.data.strip() == sse.DONE or _object(event.data) is not None

    def answer(self) -> bytes:
        """The accumulated answer as JSON."""
        return _dump(self.accumulator.answer())


def with_json_body(answer: Answer, row: Any) -> Answer:
    """The answer with one JSON object in UTF-8 as its body, if its body holds one or consists of events; otherwise unchanged.

    row: of claims.claim. An error among the events becomes the body.
    """
    if not 200 <= answer.status < 300 or (answer.json is not None and not answer_body.is_marked(answer.body)):
        return answer
    content_type = answer.headers.get("content-type", "")
    body = answer_body.json_object(answer.body, content_type)
    if body is None:
        body = _accumulated(answer_body.decode(answer.body, content_type).encode(), row)
    return answer if body is None else replace(answer, body=body)


def number_of_choices(row: Any) -> int:
    """The number of choices or images that this job asks for."""
    if row.endpoint in KINDS:
        return max(1, int(row.images))
    n = (json_reading.json_object(bytes(row.request)) or {}).get("n")
    return n if isinstance(n, int) else 1


def _events_of(body: bytes) -> Iterator[Event]:
    """The events of a whole body, including a last one without the empty line."""
    parser = EventParser()
    return chain(parser.feed(body), parser.flush())


def _accumulated(body: bytes, row: Any) -> bytes | None:
    if not answer_body.is_event_stream(body):
        return None
    collector = Collector(kind=KINDS.get(row.endpoint, ""), n=number_of_choices(row))
    for collected in map(collector.take, _events_of(body)):
        if collected.kind == EventKind.ERROR:
            return collected.event.data
        if collected.kind == EventKind.GARBLED:
            return None
    return collector.answer() if collector.is_complete else None


def _failed(event: Event, content: JsonObject) -> CollectedEvent:
    error = content if content.get("error") else {"error": content}
    return CollectedEvent(EventKind.ERROR, replace(event, data=_dump(error)), error)


def _object(data: bytes) -> JsonObject | None:
    """The JSON object of an event; some upstreams wrap it in a list."""
    value = json_reading.parse_json(data)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, dict) and not _is_too_deep(value) else None


def _is_too_deep(value: JsonObject) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item) if isinstance(inner, dict | list)
        ]  # fmt: skip
        if not level:
            return False
    return True


def _dump(value: JsonObject) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

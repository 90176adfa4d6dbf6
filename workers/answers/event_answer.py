"""Adds server-sent events up to the answer they make: of a stream, and of a plain call that was answered with events all the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from itertools import chain
from typing import Any

from models.content import endpoints
from workers.answers import sse
from workers.answers.chat_chunks import Accumulator, ChatAccumulator, ImageAccumulator
from workers.answers.sse import Event, EventParser
from workers.upstream import answer_body
from workers.upstream.answer_body import JsonObject
from workers.upstream.client import Answer

# Levels of an event; an answer that needs more cannot be read.
DEPTH_MOST = 128
KINDS = {endpoints.IMAGES: "image_generation", endpoints.EDITS: "image_edit"}


class EventKind(Enum):
    """How one event belongs to the answer."""

    CHUNK = auto()
    ERROR = auto()  #: The upstream ends the answer with an error.
    GARBLED = auto()  #: It is no JSON object.
    BEHIND = auto()  #: It comes after the end, whatever it is: the answer is whole.


@dataclass(frozen=True)
class CollectedEvent:
    """What one event was. said: its JSON object; empty for what is garbled or behind the end. event: as it can be relayed."""

    part: EventKind
    event: Event
    said: JsonObject


class Collector:
    """The events of one answer so far. kind: of images, what their events are called; else empty. n: how many choices or pictures."""

    def __init__(self, *, kind: str, n: int) -> None:
        self.assembly: Accumulator = ImageAccumulator(n=n) if kind else ChatAccumulator(n=n)
        self.has_begun = self.is_done = False

    @property
    def is_complete(self) -> bool:
        """Whether the answer can be taken for whole when nothing more comes."""
        return self.assembly.is_closed or (self.is_done and self.assembly.is_begun)

    def take(self, event: Event) -> CollectedEvent:
        """One event more."""
        self.has_begun = True
        if event.data.strip() == sse.DONE:
            self.is_done = True
        if self.is_done:
            return CollectedEvent(EventKind.BEHIND, event, {})
        said = _object(event.data)
        is_error = said is not None and (bool(said.get("error")) or event.name == b"error")
        if said is None or is_error:
            if self.assembly.is_whole:
                return CollectedEvent(EventKind.BEHIND, event, {})
            return _failed(event, said) if said is not None else CollectedEvent(EventKind.GARBLED, event, {})
        self.assembly.add(said)
        return CollectedEvent(EventKind.CHUNK, event if event.data.startswith(b"{") else replace(event, data=_dump(said)), said)

    def is_readable(self, event: Event) -> bool:
        """Whether this event is the end or holds a JSON object."""
        return event.data.strip() == sse.DONE or _object(event.data) is not None

    def answer(self) -> bytes:
        """What the events add up to, as JSON."""
        return _dump(self.assembly.answer())


def with_json_body(answer: Answer, row: Any) -> Answer:
    """The answer with a JSON object in UTF-8 as its body, if its body holds one or is events that add up to one; else as it is.

    row: of the job, as it was claimed. An error in the events becomes the body.
    """
    if not 200 <= answer.status < 300 or (answer.said is not None and not answer_body.is_marked(answer.body)):
        return answer
    content_type = answer.headers.get("content-type", "")
    found = answer_body.json_object(answer.body, content_type)
    if found is None:
        found = _assembled(answer_body.decode(answer.body, content_type).encode(), row)
    return answer if found is None else replace(answer, body=found)


def number_of_choices(row: Any) -> int:
    """How many choices or pictures this job asks for."""
    if row.endpoint in KINDS:
        return max(1, int(row.images))
    n = (answer_body.parse(bytes(row.request)) or {}).get("n")
    return n if isinstance(n, int) else 1


def events_of(body: bytes) -> Iterator[Event]:
    """The events of a whole body, the last one too when no empty line follows it."""
    splitter = EventParser()
    return chain(splitter.feed(body), splitter.rest())


def _assembled(body: bytes, row: Any) -> bytes | None:
    if not answer_body.is_event_stream(body):
        return None
    collector = Collector(kind=KINDS.get(row.endpoint, ""), n=number_of_choices(row))
    for taken in map(collector.take, events_of(body)):
        if taken.part == EventKind.ERROR:
            return taken.event.data
        if taken.part == EventKind.GARBLED:
            return None
    return collector.answer() if collector.is_complete else None


def _failed(event: Event, said: JsonObject) -> CollectedEvent:
    named = said if said.get("error") else {"error": said}
    return CollectedEvent(EventKind.ERROR, replace(event, data=_dump(named)), named)


def _object(data: bytes) -> JsonObject | None:
    """The JSON object of an event; some upstreams put a list around it."""
    found = answer_body.parse_any(data)
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    return found if isinstance(found, dict) and not _is_deep(found) else None


def _is_deep(value: JsonObject) -> bool:
    """Whether it is nested deeper than what a request may be: adding it up would overflow Python's stack."""
    level: list[Any] = [value]
    for _ in range(DEPTH_MOST):
        level = [inside for one in level for inside in (one.values() if isinstance(one, dict) else one) if isinstance(inside, dict | list)]
        if not level:
            return False
    return True


def _dump(value: JsonObject) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()

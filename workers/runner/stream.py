"""Runs a call that asks for a stream: its events are published as they arrive, and accumulated into the answer that the job keeps."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from models.config.settings import settings
from models.jobs.states import Outcome
from models.platform import json_reading
from workers.answers import answer_events, event_answer, retry_policy
from workers.answers.event_answer import KINDS, Collector, EventKind
from workers.answers.retry_policy import NextStep, Verdict
from workers.answers.sse import Event, EventParser
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream import answer_body
from workers.upstream.answer_body import JsonObject
from workers.upstream.call import CallControl
from workers.upstream.client import open_answer
from workers.upstream.exchange import Aborted, Answer, IncomingAnswer, Lost, Request
from workers.upstream.request import with_member

# After [DONE] the call only waits for the end of the answer, so that the connection can be reused.
AFTER_DONE_S = 1.0


@dataclass(frozen=True)
class ReaderOptions:
    """kind: prefix of the event types of an images endpoint, else empty. n: expected choices or images. with_usage: relay the usage
    chunk."""

    kind: str
    n: int
    with_usage: bool


def call_streamed(row: Any, request: Request, *, call: CallControl, publisher: StreamPublisher) -> tuple[Answer, Verdict]:
    """The upstream's answer and its verdict; of a success, the answer that its events make. Raises NotSent, TimedOut, Lost or Aborted.

    The first bytes decide, not the content type: a plain JSON answer is split into events for the readers.
    """
    options = reader_options(row)
    call.on_wait = publisher.flush
    with open_answer(request, call=call) as incoming:
        head, incoming = _peek(incoming)
        if not 200 <= incoming.status < 300:
            answer = incoming.whole()
            return answer, retry_policy.classify(answer)
        if not head or answer_body.is_not_event_stream(head):
            return _publish_whole(event_answer.with_json_body(incoming.whole(), row), options, publisher)
        return _StreamReader(options, call, publisher).read(incoming)


def reader_options(row: Any) -> ReaderOptions:
    """The options of this job's client. row: its request may be an outline."""
    if kind := KINDS.get(row.endpoint, ""):
        return ReaderOptions(kind, event_answer.number_of_choices(row), with_usage=True)
    with_usage = _stream_options(bytes(row.request)).get("include_usage") is True
    return ReaderOptions("", event_answer.number_of_choices(row), with_usage=with_usage)


def with_usage_requested(row: Any, content: bytes) -> bytes:
    """The request as it is sent: a chat stream is also asked for its usage, which belongs in the records. row, content: as claimed."""
    if not row.streamed or row.endpoint in KINDS or not settings().stream_usage:
        return content
    options = _stream_options(content)
    if options.get("include_usage") is True:
        return content
    return with_member(content, "stream_options", {**options, "include_usage": True})


def _stream_options(content: bytes) -> JsonObject:
    options = (json_reading.json_object(content) or {}).get("stream_options")
    return options if isinstance(options, dict) else {}


def _peek(incoming: IncomingAnswer) -> tuple[bytes, IncomingAnswer]:
    """The first bytes that are not blank, and the answer with all its bytes."""
    seen: list[bytes] = []
    head = b""
    for part in incoming.parts:
        seen.append(part)
        head = b"".join(seen).removeprefix(codecs.BOM_UTF8).lstrip()
        if head:
            break
    return head, replace(incoming, parts=chain(seen, incoming.parts))


def _publish_whole(answer: Answer, options: ReaderOptions, publisher: StreamPublisher) -> tuple[Answer, Verdict]:
    verdict = retry_policy.classify(answer)
    if verdict.next == NextStep.SUCCEED:
        parsed = json_reading.json_object(answer.body) or {}
        for event in answer_events.events_from_answer(parsed, kind=options.kind, with_usage=options.with_usage):
            publisher.add(event)
    return answer, verdict


class _StreamReader:
    """Reads one stream to its end."""

    def __init__(self, options: ReaderOptions, call: CallControl, publisher: StreamPublisher) -> None:
        self._options = options
        self._call = call
        self._publisher = publisher
        self._collector = Collector(kind=options.kind, n=options.n)
        # The bytes before the first published event, kept in case that they cannot be parsed.
        self._raw: list[bytes] = []

    def read(self, incoming: IncomingAnswer) -> tuple[Answer, Verdict]:
        """The answer that the events make, or the event that ended them. Raises TimedOut, Lost or Aborted for a broken stream."""
        parser = EventParser(incoming.headers.get("content-type", ""))
        try:
            for event in chain.from_iterable(map(parser.feed, self._kept(incoming.parts))):
                if (ended := self._take(event, incoming)) is not None:
                    return ended
            for event in parser.flush():
                if self._collector.is_readable(event):
                    self._take(event, incoming)
        except Lost:
            if not self._collector.is_done and not self._collector.accumulator.is_whole:
                raise
        if not self._collector.is_complete:
            return self._incomplete(incoming)
        if self._publisher.has_published:
            self._publisher.flush()
        return Answer(incoming.status, incoming.headers, self._collector.answer()), Verdict(NextStep.SUCCEED, Outcome.SUCCEEDED)

    def _incomplete(self, incoming: IncomingAnswer) -> tuple[Answer, Verdict]:
        """A stream that ended without content is unreadable. Raises Lost or Aborted when its end is missing."""
        if self._collector.has_begun and not self._collector.is_done:
            raise Aborted if self._call.is_aborted else Lost("the stream broke off")
        return self._unreadable(incoming)

    def _take(self, event: Event, incoming: IncomingAnswer) -> tuple[Answer, Verdict] | None:
        """Adds the event to the answer and publishes it; returns the result when the event ends the stream."""
        was_done = self._collector.is_done
        collected = self._collector.take(event)
        if self._collector.is_done and not was_done:
            self._call.hurry(AFTER_DONE_S)
        if collected.kind == EventKind.ERROR:
            answer = Answer(incoming.status, incoming.headers, collected.event.data)
            return answer, retry_policy.classify_error_event(answer)
        if collected.kind == EventKind.GARBLED:
            if self._publisher.has_published:
                return Answer(incoming.status, incoming.headers, event.data), retry_policy.classify_unreadable()
            return self._unreadable(incoming)
        if collected.kind == EventKind.CHUNK and self._is_for_client(collected.content):
            self._publisher.add(collected.event.encoded())
        return None

    def _unreadable(self, incoming: IncomingAnswer) -> tuple[Answer, Verdict]:
        """Keeps all bytes of the answer, because it may have been paid for. Raises Aborted."""
        with suppress(Lost):  # what has arrived by then is kept
            self._raw.extend(incoming.parts)
        return Answer(incoming.status, incoming.headers, b"".join(self._raw)), retry_policy.classify_unreadable()

    def _kept(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            if self._publisher.has_published:
                self._raw.clear()
            else:
                self._raw.append(part)
            yield part

    def _is_for_client(self, content: Mapping[str, Any]) -> bool:
        # An empty `event: ping` breaks the SDKs.
        return bool(content) and (self._options.with_usage or content.get("choices") != [] or not content.get("usage"))

"""A call that is asked for a stream: its events are relayed as they arrive, and add up to the answer that the job keeps."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from models.config.settings import settings
from models.jobs.states import Outcome
from workers.answers import chat_chunks, event_answer, retry_policy
from workers.answers.event_answer import KINDS, Collector, EventKind
from workers.answers.retry_policy import NextStep, Verdict
from workers.answers.sse import Event, EventParser
from workers.runner.stream_publisher import StreamPublisher
from workers.upstream import answer_body
from workers.upstream.answer_body import JsonObject
from workers.upstream.call import CallControl
from workers.upstream.client import Aborted, Answer, IncomingAnswer, Lost, Request, open_answer
from workers.upstream.request import with_member

# After [DONE] the connection is only waited for so that it can be used again.
AFTER_DONE_S = 1.0


@dataclass(frozen=True)
class ReaderOptions:
    """kind: of images, what their events are called; else empty. with_usage: the client asked for the chunk that says only that."""

    kind: str
    n: int
    with_usage: bool


def call_streamed(row: Any, request: Request, *, call: CallControl, relay: StreamPublisher) -> tuple[Answer, Verdict]:
    """What came of it; of a success the answer is what the events add up to. Raises NotSent, TimedOut, Lost or Aborted.

    The first bytes decide, not the content type: an answer in plain JSON is taken apart into events for the readers.
    """
    wanted = reader_options(row)
    call.on_wait = relay.flush
    with open_answer(request, call=call) as incoming:
        head, rest = _peek(incoming)
        if not 200 <= incoming.status < 300:
            answer = rest.whole()
            return answer, retry_policy.classify(answer)
        if not head or answer_body.is_not_event_stream(head):
            return _at_once(event_answer.with_json_body(rest.whole(), row), wanted, relay)
        return _Listener(wanted, call, relay).hear(rest)


def _peek(incoming: IncomingAnswer) -> tuple[bytes, IncomingAnswer]:
    """The first bytes that are not blank, and the answer from its beginning on."""
    seen: list[bytes] = []
    head = b""
    for part in incoming.parts:
        seen.append(part)
        head = b"".join(seen).removeprefix(codecs.BOM_UTF8).lstrip()
        if head:
            break
    return head, replace(incoming, parts=chain(seen, incoming.parts))


def reader_options(row: Any) -> ReaderOptions:
    """What the client of this job wants of its stream. row: its request may be an outline."""
    if kind := KINDS.get(row.endpoint, ""):
        return ReaderOptions(kind, event_answer.number_of_choices(row), with_usage=True)
    return ReaderOptions("", event_answer.number_of_choices(row), with_usage=_options(bytes(row.request)).get("include_usage") is True)


def with_usage_requested(row: Any, content: bytes) -> bytes:
    """The request as it goes out: a chat's stream is also asked for what it used, which belongs on record. row, content: as claimed."""
    if not row.streamed or row.endpoint in KINDS or not settings().stream_usage:
        return content
    options = _options(content)
    if options.get("include_usage") is True:
        return content
    return with_member(content, "stream_options", {**options, "include_usage": True})


def _options(content: bytes) -> JsonObject:
    said = (answer_body.parse(content) or {}).get("stream_options")
    return said if isinstance(said, dict) else {}


def _at_once(answer: Answer, wanted: ReaderOptions, relay: StreamPublisher) -> tuple[Answer, Verdict]:
    verdict = retry_policy.classify(answer)
    if verdict.next == NextStep.SUCCEED:
        for event in chat_chunks.events_from_answer(answer_body.parse(answer.body) or {}, kind=wanted.kind, with_usage=wanted.with_usage):
            relay.take(event)
    return answer, verdict


class _Listener:
    """Hears one stream to its end."""

    def __init__(self, wanted: ReaderOptions, call: CallControl, relay: StreamPublisher) -> None:
        self._wanted = wanted
        self._call = call
        self._relay = relay
        self._collector = Collector(kind=wanted.kind, n=wanted.n)
        # What came before the first event was relayed: kept in case that it cannot be read.
        self._raw: list[bytes] = []

    def hear(self, incoming: IncomingAnswer) -> tuple[Answer, Verdict]:
        """The answer that the events add up to, or what ended them. Raises TimedOut, Lost or Aborted when they broke off."""
        splitter = EventParser(incoming.headers.get("content-type", ""))
        try:
            for event in chain.from_iterable(map(splitter.feed, self._keeping(incoming.parts))):
                if (ended := self._take(event, incoming)) is not None:
                    return ended
            for event in splitter.rest():
                if self._collector.is_readable(event):
                    self._take(event, incoming)
        except Lost:
            if not self._collector.is_done and not self._collector.assembly.is_whole:
                raise
        if not self._collector.is_complete:
            return self._incomplete(incoming)
        if self._relay.has_begun:
            self._relay.flush()
        return Answer(incoming.status, incoming.headers, self._collector.answer()), Verdict(NextStep.SUCCEED, Outcome.SUCCEEDED)

    def _incomplete(self, incoming: IncomingAnswer) -> tuple[Answer, Verdict]:
        """Nothing of an answer came, but its end. Raises Lost or Aborted when it is the end that is missing."""
        if self._collector.has_begun and not self._collector.is_done:
            raise Aborted if self._call.is_aborted else Lost("the stream broke off")
        return self._unreadable(incoming)

    def _take(self, event: Event, incoming: IncomingAnswer) -> tuple[Answer, Verdict] | None:
        """None: the event is part of the answer, and relayed; else what ended it."""
        was_done = self._collector.is_done
        taken = self._collector.take(event)
        if self._collector.is_done and not was_done:
            self._call.hurry(AFTER_DONE_S)
        if taken.part == EventKind.ERROR:
            answer = Answer(incoming.status, incoming.headers, taken.event.data)
            return answer, retry_policy.classify_error_event(answer)
        if taken.part == EventKind.GARBLED:
            if self._relay.has_begun:
                return Answer(incoming.status, incoming.headers, event.data), retry_policy.classify_unreadable()
            return self._unreadable(incoming)
        if taken.part == EventKind.CHUNK and self._is_for_client(taken.said):
            self._relay.take(taken.event.encoded())
        return None

    def _unreadable(self, incoming: IncomingAnswer) -> tuple[Answer, Verdict]:
        """All of it is kept, for it may have been paid for. Raises Aborted."""
        with suppress(Lost):  # what has come then is what there is
            self._raw.extend(incoming.parts)
        return Answer(incoming.status, incoming.headers, b"".join(self._raw)), retry_policy.classify_unreadable()

    def _keeping(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        for part in parts:
            if self._relay.has_begun:
                self._raw.clear()
            else:
                self._raw.append(part)
            yield part

    def _is_for_client(self, said: Mapping[str, Any]) -> bool:
        # `event: ping` with nothing in it breaks the SDKs.
        return bool(said) and (self._wanted.with_usage or said.get("choices") != [] or not said.get("usage"))

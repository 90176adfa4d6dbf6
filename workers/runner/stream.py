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
from workers.answers.event_answer import KINDS, Collector, Part
from workers.answers.retry_policy import Next, Verdict
from workers.answers.sse import Event, Splitter
from workers.runner.stream_publisher import Relay
from workers.upstream import answer_body
from workers.upstream.answer_body import JsonObject
from workers.upstream.call import Call
from workers.upstream.client import Aborted, Answer, Incoming, Lost, Request, listen
from workers.upstream.request import with_member

# After [DONE] the connection is only waited for so that it can be used again.
GOODBYE_S = 1.0


@dataclass(frozen=True)
class Wanted:
    """kind: of images, what their events are called; else empty. with_usage: the client asked for the chunk that says only that."""

    kind: str
    n: int
    with_usage: bool


def call(row: Any, request: Request, *, call: Call, relay: Relay) -> tuple[Answer, Verdict]:
    """What came of it; of a success the answer is what the events add up to. Raises NotSent, TimedOut, Lost or Aborted.

    The first bytes decide, not the content type: an answer in plain JSON is taken apart into events for the readers.
    """
    wanted = want(row)
    call.on_wait = relay.flush
    with listen(request, call=call) as incoming:
        head, rest = _peek(incoming)
        if not 200 <= incoming.status < 300:
            answer = rest.whole()
            return answer, retry_policy.judge(answer)
        if not head or answer_body.begins_whole(head):
            return _at_once(event_answer.readable(rest.whole(), row), wanted, relay)
        return _Listener(wanted, call, relay).hear(rest)


def _peek(incoming: Incoming) -> tuple[bytes, Incoming]:
    """The first bytes that are not blank, and the answer from its beginning on."""
    seen: list[bytes] = []
    head = b""
    for part in incoming.parts:
        seen.append(part)
        head = b"".join(seen).removeprefix(codecs.BOM_UTF8).lstrip()
        if head:
            break
    return head, replace(incoming, parts=chain(seen, incoming.parts))


def want(row: Any) -> Wanted:
    """What the client of this job wants of its stream. row: its request may be an outline."""
    if kind := KINDS.get(row.endpoint, ""):
        return Wanted(kind, event_answer.n_of(row), with_usage=True)
    return Wanted("", event_answer.n_of(row), with_usage=_options(bytes(row.request)).get("include_usage") is True)


def asking(row: Any, content: bytes) -> bytes:
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


def _at_once(answer: Answer, wanted: Wanted, relay: Relay) -> tuple[Answer, Verdict]:
    verdict = retry_policy.judge(answer)
    if verdict.next == Next.SUCCEED:
        for event in chat_chunks.apart(answer_body.parse(answer.body) or {}, kind=wanted.kind, with_usage=wanted.with_usage):
            relay.take(event)
    return answer, verdict


class _Listener:
    """Hears one stream to its end."""

    def __init__(self, wanted: Wanted, call: Call, relay: Relay) -> None:
        self._wanted = wanted
        self._call = call
        self._relay = relay
        self._collector = Collector(kind=wanted.kind, n=wanted.n)
        # What came before the first event was relayed: kept in case that it cannot be read.
        self._raw: list[bytes] = []

    def hear(self, incoming: Incoming) -> tuple[Answer, Verdict]:
        """The answer that the events add up to, or what ended them. Raises TimedOut, Lost or Aborted when they broke off."""
        splitter = Splitter(incoming.headers.get("content-type", ""))
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
        return Answer(incoming.status, incoming.headers, self._collector.answer()), Verdict(Next.SUCCEED, Outcome.SUCCEEDED)

    def _incomplete(self, incoming: Incoming) -> tuple[Answer, Verdict]:
        """Nothing of an answer came, but its end. Raises Lost or Aborted when it is the end that is missing."""
        if self._collector.has_begun and not self._collector.is_done:
            raise Aborted if self._call.is_aborted else Lost("the stream broke off")
        return self._unreadable(incoming)

    def _take(self, event: Event, incoming: Incoming) -> tuple[Answer, Verdict] | None:
        """None: the event is part of the answer, and relayed; else what ended it."""
        was_done = self._collector.is_done
        taken = self._collector.take(event)
        if self._collector.is_done and not was_done:
            self._call.hurry(GOODBYE_S)
        if taken.part == Part.ERROR:
            answer = Answer(incoming.status, incoming.headers, taken.event.data)
            return answer, retry_policy.judge_event(answer)
        if taken.part == Part.GARBLED:
            if self._relay.has_begun:
                return Answer(incoming.status, incoming.headers, event.data), retry_policy.garbled()
            return self._unreadable(incoming)
        if taken.part == Part.CHUNK and self._is_for_client(taken.said):
            self._relay.take(taken.event.encoded())
        return None

    def _unreadable(self, incoming: Incoming) -> tuple[Answer, Verdict]:
        """All of it is kept, for it may have been paid for. Raises Aborted."""
        with suppress(Lost):  # what has come then is what there is
            self._raw.extend(incoming.parts)
        return Answer(incoming.status, incoming.headers, b"".join(self._raw)), retry_policy.garbled()

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

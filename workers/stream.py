"""A call that is asked for a stream: its events are relayed as they arrive, and add up to the answer that the job keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from models import endpoint
from models.job import Outcome
from models.settings import settings
from workers import assembly, retry, sse
from workers.assembly import Assembly, Chat, Pictures
from workers.call import Call
from workers.openai_client import Aborted, Answer, Incoming, Lost, Request, listen
from workers.relay import Relay
from workers.retry import Next, Verdict
from workers.sse import Event, Splitter

# After [DONE] the connection is only waited for so that it can be used again.
GOODBYE_S = 1.0
KINDS = {endpoint.IMAGES: "image_generation", endpoint.EDITS: "image_edit"}


@dataclass(frozen=True)
class Wanted:
    """kind: of images, what their events are called; else empty. with_usage: the client asked for the chunk that says only that."""

    kind: str
    n: int
    with_usage: bool
    request: bytes


def call(row: Any, request: Request, *, call: Call, relay: Relay) -> tuple[Answer, Verdict]:
    """What came of it; of a success the answer is what the events add up to. Raises NotSent, TimedOut, Lost or Aborted.

    An upstream that answers with plain JSON all the same is taken at its word, and the answer apart into events for the readers.
    """
    wanted = want(row)
    call.on_wait = relay.flush
    with listen(replace(request, content=wanted.request), call=call) as incoming:
        first = next(incoming.parts, b"")
        rest = replace(incoming, parts=chain([first], incoming.parts))
        if not 200 <= incoming.status < 300:
            answer = rest.whole()
            return answer, retry.judge(answer)
        if "json" in incoming.headers.get("content-type", "") or first.lstrip().startswith(b"{"):
            return _at_once(rest.whole(), wanted, relay)
        return _Listener(wanted, call, relay).hear(rest)


def want(row: Any) -> Wanted:
    """What the upstream is asked for this job: its own request, and what a chat used, which belongs on record."""
    content = bytes(row.request)
    if kind := KINDS.get(row.endpoint, ""):
        return Wanted(kind, max(1, row.images), with_usage=True, request=content)
    body = retry.parse(content) or {}
    said, n = body.get("stream_options"), body.get("n")
    options = said if isinstance(said, dict) else {}
    with_usage = options.get("include_usage") is True
    if settings().stream_usage and not with_usage:
        content = json.dumps({**body, "stream_options": {**options, "include_usage": True}}).encode()
    return Wanted("", n if isinstance(n, int) else 1, with_usage, content)


def _at_once(answer: Answer, wanted: Wanted, relay: Relay) -> tuple[Answer, Verdict]:
    said = retry.parse(answer.body)
    if said is None:
        return answer, retry.garbled()
    if said.get("error"):
        return answer, retry.judge_event(answer)
    for event in assembly.apart(said, kind=wanted.kind, with_usage=wanted.with_usage):
        relay.take(event)
    return answer, Verdict(Next.SUCCEED, Outcome.SUCCEEDED)


class _Listener:
    """Hears one stream to its end."""

    def __init__(self, wanted: Wanted, call: Call, relay: Relay) -> None:
        self._wanted = wanted
        self._call = call
        self._relay = relay
        self._assembly: Assembly = Pictures(n=wanted.n) if wanted.kind else Chat(n=wanted.n)
        self._has_heard = False
        self._is_done = False

    def hear(self, incoming: Incoming) -> tuple[Answer, Verdict]:
        """The answer that the events add up to, or what ended them. Raises TimedOut, Lost or Aborted when they broke off."""
        splitter = Splitter()
        try:
            for event in chain.from_iterable(map(splitter.feed, incoming.parts)):
                verdict = self._take(event, incoming.headers)
                if verdict is not None:
                    return Answer(incoming.status, incoming.headers, event.data), verdict
        except Lost:
            if not self._is_done and not self._assembly.is_whole:
                raise
        if not self._has_heard:
            return Answer(incoming.status, incoming.headers, b""), retry.garbled()
        if not (self._assembly.is_closed or (self._is_done and self._assembly.is_begun)):
            raise Aborted if self._call.is_aborted else Lost("the stream broke off")
        if self._relay.has_begun:
            self._relay.flush()
        body = json.dumps(self._assembly.answer(), separators=(",", ":")).encode()
        return Answer(incoming.status, incoming.headers, body), Verdict(Next.SUCCEED, Outcome.SUCCEEDED)

    def _take(self, event: Event, headers: Mapping[str, str]) -> Verdict | None:
        """The event is part of the answer and can be relayed; or what it means that it is not one."""
        self._has_heard = True
        if event.data == sse.DONE:
            self._is_done = True
            self._call.hurry(GOODBYE_S)
        if self._is_done:
            return None
        said = retry.parse(event.data)
        if said is None:
            return retry.garbled()
        if said.get("error") or event.name == b"error":
            return retry.judge_event(Answer(200, headers, event.data))
        self._assembly.add(said)
        if self._is_for_client(said):
            self._relay.take(event.encoded())
        return None

    def _is_for_client(self, said: Mapping[str, Any]) -> bool:
        # `event: ping` with nothing in it breaks the SDKs.
        return bool(said) and (self._wanted.with_usage or said.get("choices") != [] or not said.get("usage"))

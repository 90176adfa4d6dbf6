"""Answers whose `usage` is missing or has another format than OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from tests.upstream.answer import Answer, JsonObject, encode, event

USAGES: Mapping[str, Callable[[JsonObject], object]] = MappingProxyType({
    "missing": lambda said: None,
    "null": lambda said: None,
    "empty": lambda said: {},
    "zeros": lambda said: dict.fromkeys(said, 0),
    "floats": lambda said: {name: float(value) for name, value in said.items() if isinstance(value, int)},
    "strings": lambda said: {name: str(value) for name, value in said.items() if isinstance(value, int)},
    "total": lambda said: {"total_tokens": said["total_tokens"]},
    "negative": lambda said: dict.fromkeys(said, -1),
    "huge": lambda said: dict.fromkeys(said, 2**31),
    "text": lambda said: "many",
})  # fmt: skip


def with_usage(answer: Answer, kind: str) -> Answer:
    """Replace the usage of an answer.

    kind: a name in USAGES. With `missing`, a stream loses the event that holds only the usage.
    """
    if answer.events is None:
        return replace(answer, body=encode(_changed(json.loads(answer.body), kind)))
    return replace(answer, events=[*filter(None, (_event(one, kind) for one in answer.events))])


def _event(sent: bytes, kind: str) -> bytes:
    text = sent.strip().removeprefix(b"data: ")
    if not text.startswith(b"{") or b'"usage":{' not in text:
        return sent
    return b"" if kind == "missing" else event(_changed(json.loads(text), kind))


def _changed(said: JsonObject, kind: str) -> JsonObject:
    if "usage" not in said:
        return said
    rest = {name: value for name, value in said.items() if name != "usage"}
    return rest if kind == "missing" else {**rest, "usage": USAGES[kind](said["usage"])}

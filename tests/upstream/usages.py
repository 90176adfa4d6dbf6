"""Answers whose `usage` is missing or has another format than OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from tests.upstream.answer import Answer, JsonObject, encode, event

USAGES: Mapping[str, Callable[[JsonObject], object]] = MappingProxyType({
    "missing": lambda given: None,
    "null": lambda given: None,
    "empty": lambda given: {},
    "zeros": lambda given: dict.fromkeys(given, 0),
    "floats": lambda given: {name: float(value) for name, value in given.items() if isinstance(value, int)},
    "strings": lambda given: {name: str(value) for name, value in given.items() if isinstance(value, int)},
    "total": lambda given: {"total_tokens": given["total_tokens"]},
    "negative": lambda given: dict.fromkeys(given, -1),
    "huge": lambda given: dict.fromkeys(given, 2**31),
    "text": lambda given: "many",
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


def _changed(given: JsonObject, kind: str) -> JsonObject:
    if "usage" not in given:
        return given
    rest = {name: value for name, value in given.items() if name != "usage"}
    return rest if kind == "missing" else {**rest, "usage": USAGES[kind](given["usage"])}

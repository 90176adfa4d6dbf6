"""Splits a whole answer into the server-sent events of a stream with the same content."""

from __future__ import annotations

from collections.abc import Iterator

from workers.answers import sse
from workers.answers.chat_chunks import STREAM_ONLY, JsonObject


def events_from_answer(answer: JsonObject, *, kind: str, with_usage: bool) -> Iterator[bytes]:
    """The events in ASCII. kind: event prefix of an images endpoint, else empty."""
    if isinstance(answer.get("choices"), list):
        return _chat_events(answer, with_usage=with_usage)
    if isinstance(answer.get("data"), list) and kind:
        return _image_events(answer, name=f"{kind}.completed")
    return iter([sse.encode_event(answer)])


def _chat_events(answer: JsonObject, *, with_usage: bool) -> Iterator[bytes]:
    frame = {name: value for name, value in answer.items() if name not in STREAM_ONLY} | {"object": "chat.completion.chunk"}
    for position, choice in enumerate(answer["choices"]):
        fields = choice if isinstance(choice, dict) else {}
        common = {"index": fields.get("index", position), "logprobs": fields.get("logprobs")}
        end: JsonObject = {"delta": {}, "logprobs": None, "finish_reason": fields.get("finish_reason")}
        yield sse.encode_event({**frame, "choices": [{**common, "delta": _delta(fields.get("message")), "finish_reason": None}]})
        yield sse.encode_event({**frame, "choices": [{**common, **end}]})
    if with_usage and "usage" in answer:
        yield sse.encode_event({**frame, "choices": [], "usage": answer["usage"]})


def _delta(message: object) -> JsonObject:
    """The message as one delta; its tool calls get the index that only a stream has."""
    delta = dict(message) if isinstance(message, dict) else {}
    if isinstance(calls := delta.get("tool_calls"), list):
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls) if isinstance(call, dict)]
    return delta


def _image_events(answer: JsonObject, *, name: str) -> Iterator[bytes]:
    common = {field: value for field, value in answer.items() if field not in ("data", "created")}
    for image in answer["data"]:
        fields = image if isinstance(image, dict) else {}
        yield sse.encode_event({"type": name, **fields, "created_at": answer.get("created", 0), **common}, name=name)

"""Accumulates the events of a stream into the answer that the same call would have returned without streaming.

Unknown fields are kept. In a message, strings are appended, lists are extended, and any other value replaces the earlier one.
Tool calls have rules of their own: workers/answers/tool_calls.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from io import StringIO
from typing import Any, Protocol

from workers.answers import tool_calls

JsonObject = dict[str, Any]

#: Fields of a chunk that only a stream has.
STREAM_ONLY = frozenset({"choices", "usage", "object", "obfuscation"})
# Fields of a message and its tool calls that are sent whole, by some upstreams with every delta. A name may grow: tool_calls.joined_name.
_WHOLE_NAMES = frozenset({"role", "id", "type", "name"})
_IMAGE_FIELDS = ("b64_json", "url", "revised_prompt")
_EVENT_FIELDS = frozenset({"type", "created_at", "partial_image_index", "sequence_number", *_IMAGE_FIELDS})


class Accumulator(Protocol):
    """The answer so far. is_begun: it has content; is_closed: everything that has begun is finished; is_whole: nothing is missing."""

    def add(self, event: JsonObject) -> None: ...
    @property
    def is_begun(self) -> bool: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def is_whole(self) -> bool: ...
    def answer(self) -> JsonObject: ...


class ChatAccumulator:
    """Accumulates chunks of a chat completion with n choices."""

    def __init__(self, *, n: int) -> None:
        self._n = n
        self._frame: JsonObject = {}
        self._usage: Any = None
        self._choices: dict[int, JsonObject] = {}
        self._messages: dict[int, JsonObject] = {}

    def add(self, event: JsonObject) -> None:
        """Adds a chunk."""
        self._usage = event.get("usage") or self._usage
        self._frame |= {name: value for name, value in event.items() if name not in STREAM_ONLY and (value or name not in self._frame)}
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict):
                self._add_choice(choice)

    @property
    def is_begun(self) -> bool:
        return bool(self._choices)

    @property
    def is_closed(self) -> bool:
        return self.is_begun and all(choice["finish_reason"] for choice in self._choices.values())

    @property
    def is_whole(self) -> bool:
        return self.is_closed and len(self._choices) >= self._n

    def answer(self) -> JsonObject:
        """The chat.completion object."""
        choices = [
            {"index": index, "message": _plain(self._messages[index]), **_plain(choice)} for index, choice in sorted(self._choices.items())
        ]
        usage = {"usage": self._usage} if self._usage else {}
        return {**self._frame, "object": "chat.completion", "choices": choices, **usage}

    def _add_choice(self, fields: JsonObject) -> None:
        index = fields.get("index")
        index = index if isinstance(index, int) else 0
        choice = self._choices.setdefault(index, {"logprobs": None, "finish_reason": None})
        message = self._messages.setdefault(index, {"role": "assistant", "content": None, "refusal": None})
        for name, value in fields.items():
            if name == "delta":
                _merge(message, value if isinstance(value, dict) else {})
            elif name == "message" and "delta" in fields:
                continue  # some upstreams repeat the message so far beside the delta; the deltas make it up
            elif name == "logprobs":
                _merge(choice, {name: value})
            elif name != "index" and (value is not None or name not in choice):
                choice[name] = value


class ImageAccumulator:
    """Accumulates events of n images. Only completed images count; partial ones are skipped."""

    def __init__(self, *, n: int) -> None:
        self._n = n
        self._completed: list[JsonObject] = []

    def add(self, event: JsonObject) -> None:
        """Adds an event."""
        if str(event.get("type")).endswith(".completed"):
            self._completed.append(event)

    @property
    def is_begun(self) -> bool:
        return bool(self._completed)

    @property
    def is_closed(self) -> bool:
        return self.is_begun

    @property
    def is_whole(self) -> bool:
        return len(self._completed) >= self._n

    def answer(self) -> JsonObject:
        """The answer of the images endpoints without a stream."""
        images = [{name: event[name] for name in _IMAGE_FIELDS if name in event} for event in self._completed]
        last = self._completed[-1] if self._completed else {}
        common = {name: value for name, value in last.items() if name not in _EVENT_FIELDS}
        return {"created": last.get("created_at", 0), "data": images, **common}


def _merge(merged: JsonObject, delta: Mapping[str, Any]) -> None:
    """Merges a delta into what has been accumulated; growing strings are StringIO until `_plain`."""
    for name, value in delta.items():
        before = merged.get(name)
        if value is None:
            merged.setdefault(name, None)
        elif isinstance(value, str) and name == "name" and before:
            merged[name] = tool_calls.joined_name(str(before), value)
        elif isinstance(value, str) and name not in _WHOLE_NAMES:
            _growing(merged, name, StringIO).write(value)
        elif isinstance(value, dict):
            _merge(_growing(merged, name, dict), value)
        elif isinstance(value, list):
            extend = partial(tool_calls.merge_deltas, merge=_merge) if name == "tool_calls" else _extend
            extend(_growing(merged, name, list), value)
        elif value or not before:
            merged[name] = value


def _growing(merged: JsonObject, name: str, kind: type[Any]) -> Any:
    """The value that grows under this name; a new one where there is none, or one of another type."""
    if not isinstance(merged.get(name), kind):
        merged[name] = kind()
    return merged[name]


def _extend(merged: list[Any], entries: Sequence[Any]) -> None:
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("index"), int):
            merged.append(entry)
            continue
        same = next((item for item in reversed(merged) if isinstance(item, dict) and item.get("index") == entry["index"]), None)
        if same is None:
            merged.append(same := {})
        _merge(same, entry)


def _plain(grown: Any) -> Any:
    """The accumulated value as plain JSON, without the `index` fields that only a stream needs."""
    if isinstance(grown, StringIO):
        return grown.getvalue()
    if isinstance(grown, list):
        return [
            _plain({name: value for name, value in item.items() if name != "index"} if isinstance(item, dict) else item) for item in grown
        ]
    return {name: _plain(value) for name, value in grown.items()} if isinstance(grown, dict) else grown

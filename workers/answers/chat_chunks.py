"""The answer that a stream's events add up to: what the same call would have said at once. And an answer taken apart into events.

Fields that nobody has heard of are kept: of a message, text goes on where it stopped, lists grow, anything else is said anew.
Tool calls have rules of their own: workers/answers/tool_calls.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from typing import Any, Protocol

from workers.answers import sse, tool_calls

JsonObject = dict[str, Any]

# Of a message and its tool calls: said whole, by some upstreams with every delta. Names may grow: tool_calls.joined_name.
_WHOLE_NAMES = frozenset({"role", "id", "type", "name"})
# Of a chunk: what only a stream has.
_PASSING = frozenset({"choices", "usage", "object", "obfuscation"})
_OF_A_PICTURE = ("b64_json", "url", "revised_prompt")
_OF_AN_EVENT = frozenset({"type", "created_at", "partial_image_index", "sequence_number", *_OF_A_PICTURE})


class Accumulator(Protocol):
    """What has been heard so far. is_begun: anything of the answer; is_closed: what has begun is finished; is_whole: nothing is missing."""

    def add(self, said: JsonObject) -> None: ...
    @property
    def is_begun(self) -> bool: ...
    @property
    def is_closed(self) -> bool: ...
    @property
    def is_whole(self) -> bool: ...
    def answer(self) -> JsonObject: ...


class ChatAccumulator:
    """Chunks of a chat completion with n choices."""

    def __init__(self, *, n: int) -> None:
        self._n = n
        self._frame: JsonObject = {}
        self._usage: Any = None
        self._choices: dict[int, JsonObject] = {}
        self._messages: dict[int, JsonObject] = {}

    def add(self, said: JsonObject) -> None:
        """One chunk more."""
        self._usage = said.get("usage") or self._usage
        self._frame |= {name: value for name, value in said.items() if name not in _PASSING and (value or name not in self._frame)}
        choices = said.get("choices")
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
        """The chat.completion."""
        choices = [
            {"index": index, "message": _whole(self._messages[index]), **_whole(choice)} for index, choice in sorted(self._choices.items())
        ]
        usage = {"usage": self._usage} if self._usage else {}
        return {**self._frame, "object": "chat.completion", "choices": choices, **usage}

    def _add_choice(self, said: JsonObject) -> None:
        index = said.get("index")
        index = index if isinstance(index, int) else 0
        choice = self._choices.setdefault(index, {"logprobs": None, "finish_reason": None})
        message = self._messages.setdefault(index, {"role": "assistant", "content": None, "refusal": None})
        for name, value in said.items():
            if name == "delta":
                _merge(message, value if isinstance(value, dict) else {})
            elif name == "message" and "delta" in said:
                continue  # said beside the delta, empty or with all so far: the deltas add up to it
            elif name == "logprobs":
                _merge(choice, {name: value})
            elif name != "index" and (value is not None or name not in choice):
                choice[name] = value


class ImageAccumulator:
    """Events of n pictures: those on the way are passed over, the completed ones count."""

    def __init__(self, *, n: int) -> None:
        self._n = n
        self._completed: list[JsonObject] = []

    def add(self, said: JsonObject) -> None:
        """One event more."""
        if str(said.get("type")).endswith(".completed"):
            self._completed.append(said)

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
        """As the images endpoints answer without a stream."""
        pictures = [{name: said[name] for name in _OF_A_PICTURE if name in said} for said in self._completed]
        last = self._completed[-1] if self._completed else {}
        about = {name: value for name, value in last.items() if name not in _OF_AN_EVENT}
        return {"created": last.get("created_at", 0), "data": pictures, **about}


def events_from_answer(answer: JsonObject, *, kind: str, with_usage: bool) -> Iterator[bytes]:
    """The events of a stream that adds up to this answer, in ASCII. kind: of images, what their events are called; else empty."""
    if isinstance(answer.get("choices"), list):
        return _chunks(answer, with_usage=with_usage)
    if isinstance(answer.get("data"), list) and kind:
        return _completed(answer, name=f"{kind}.completed")
    return iter([sse.encode_event(answer)])


def _chunks(answer: JsonObject, *, with_usage: bool) -> Iterator[bytes]:
    frame = {name: value for name, value in answer.items() if name not in _PASSING} | {"object": "chat.completion.chunk"}
    for place, choice in enumerate(answer["choices"]):
        said = choice if isinstance(choice, dict) else {}
        about = {"index": said.get("index", place), "logprobs": said.get("logprobs")}
        delta = _numbered(said.get("message"))
        yield sse.encode_event({**frame, "choices": [{**about, "delta": delta, "finish_reason": None}]})
        yield sse.encode_event({**frame, "choices": [{**about, "delta": {}, "logprobs": None, "finish_reason": said.get("finish_reason")}]})
    if with_usage and "usage" in answer:
        yield sse.encode_event({**frame, "choices": [], "usage": answer["usage"]})


def _numbered(message: object) -> JsonObject:
    delta = dict(message) if isinstance(message, dict) else {}
    if isinstance(calls := delta.get("tool_calls"), list):
        delta["tool_calls"] = [{"index": n, **call} for n, call in enumerate(calls) if isinstance(call, dict)]
    return delta


def _completed(answer: JsonObject, *, name: str) -> Iterator[bytes]:
    about = {field: value for field, value in answer.items() if field not in ("data", "created")}
    for picture in answer["data"]:
        said = picture if isinstance(picture, dict) else {}
        yield sse.encode_event({"type": name, **said, "created_at": answer.get("created", 0), **about}, name=name)


def _merge(so_far: JsonObject, delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        had = so_far.get(name)
        if value is None:
            so_far.setdefault(name, None)
        elif isinstance(value, str) and name == "name" and had:
            so_far[name] = tool_calls.joined_name(str(had), value)
        elif isinstance(value, str) and name not in _WHOLE_NAMES:
            _kept(so_far, name, StringIO).write(value)
        elif isinstance(value, dict):
            _merge(_kept(so_far, name, dict), value)
        elif isinstance(value, list):
            extend = partial(tool_calls.merge_deltas, merge=_merge) if name == "tool_calls" else _extend
            extend(_kept(so_far, name, list), value)
        elif value or not had:
            so_far[name] = value


def _kept(so_far: JsonObject, name: str, kind: type[Any]) -> Any:
    """What grows under this name; new where there was nothing, or something of another kind."""
    if not isinstance(so_far.get(name), kind):
        so_far[name] = kind()
    return so_far[name]


def _extend(so_far: list[Any], more: Sequence[Any]) -> None:
    for entry in more:
        if not isinstance(entry, dict) or not isinstance(entry.get("index"), int):
            so_far.append(entry)
            continue
        found = next((one for one in reversed(so_far) if isinstance(one, dict) and one.get("index") == entry["index"]), None)
        if found is None:
            so_far.append(found := {})
        _merge(found, entry)


def _whole(grown: Any) -> Any:
    """The same as plain JSON, and without the numbers that only a stream needs."""
    if isinstance(grown, StringIO):
        return grown.getvalue()
    if isinstance(grown, list):
        return [_whole({name: value for name, value in one.items() if name != "index"} if isinstance(one, dict) else one) for one in grown]
    return {name: _whole(value) for name, value in grown.items()} if isinstance(grown, dict) else grown

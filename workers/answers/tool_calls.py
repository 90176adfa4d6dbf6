"""Merges the deltas of a stream into the tool calls of a message, also in the dialects of other servers.

A delta belongs to, in this order:

1. the call with the same `id`, unless the `index` names another one;
2. with a new `id`: the call at its `index` that has no id yet, or else a new call;
3. without an `id`: the last call at its `index`, or without an `index` the last call;
4. but always to a new call when it names a function and begins new arguments after complete ones.

So `index` may be missing, or be 0 for every call. Names are joined by `joined_name`; arguments are appended.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

JsonObject = dict[str, Any]
# Merges a delta into the accumulated value.
Merge = Callable[[JsonObject, Mapping[str, Any]], None]


def merge_deltas(calls: list[Any], deltas: Sequence[Any], *, merge: Merge) -> None:
    """Merges these deltas into the calls."""
    for delta in deltas:
        if not isinstance(delta, dict):
            calls.append(delta)
            continue
        call = _find(calls, delta)
        if call is None:
            calls.append(call := {})
        # The index of the first delta stays, because a later, different index means another call.
        index = {"index": call["index"]} if "index" in call else {}
        merge(call, {**_with_text_arguments(delta), **index})


def joined_name(before: str, piece: str) -> str:
    """A name after one more piece. A piece that starts with the name so far replaces it.

    A second piece equal to the first ("ta", "ta") therefore counts as a repetition: many servers repeat names, and the few that split them
    split at tokens.
    """
    return piece if piece.startswith(before) else before + piece


def _find(calls: Sequence[Any], delta: Mapping[str, Any]) -> JsonObject | None:
    known = [call for call in reversed(calls) if isinstance(call, dict)]
    call_id, index = delta.get("id"), delta.get("index")
    index = index if isinstance(index, int) else None
    if call_id:
        same = [call for call in known if call.get("id") == call_id]
        return _first(same, lambda call: index is None or call.get("index") in (None, index)) or _first(
            known, lambda call: not call.get("id") and index is not None and call.get("index") == index
        )
    call = _first(known, lambda call: index is None or call.get("index") in (None, index))
    return None if call is not None and _begins_new_call(call, delta) else call


def _first(calls: Sequence[JsonObject], fits: Callable[[JsonObject], bool]) -> JsonObject | None:
    return next(filter(fits, calls), None)


def _begins_new_call(call: Mapping[str, Any], delta: Mapping[str, Any]) -> bool:
    """Whether this delta begins another call: its arguments would break the complete ones of this call."""
    before, function = _function(call), _function(delta)
    arguments = function.get("arguments")
    if not function.get("name") or not isinstance(arguments, str | dict) or not arguments:
        return False
    if isinstance(arguments, str) and not arguments.lstrip().startswith("{"):
        return False
    grown = before.get("arguments")
    return isinstance(grown, StringIO) and _is_complete(grown.getvalue())


def _is_complete(arguments: str) -> bool:
    if not arguments.rstrip().endswith("}"):
        return False
    try:
        json.loads(arguments)
    except (ValueError, RecursionError):
        return False
    return True


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    return function if isinstance(function, dict) else {}


def _with_text_arguments(delta: JsonObject) -> JsonObject:
    """The delta with its arguments as text; some servers send an object."""
    arguments = _function(delta).get("arguments")
    if not isinstance(arguments, dict | list):
        return delta
    return {**delta, "function": {**delta["function"], "arguments": json.dumps(arguments, separators=(",", ":"))}}

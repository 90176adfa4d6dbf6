"""Puts the tool calls of a message together from the deltas of a stream, in the dialects of other servers too.

A delta belongs to, in this order:

1. the call with its `id`, where the `index` does not name another one;
2. with an `id` that no call has: the call at its `index` that has no id yet, else a new call;
3. without an `id`: the last call at its `index`; without an `index` too: the last call;
4. and to a new call all the same, when it names a function and begins arguments behind arguments that are complete.

So `index` may be missing, or 0 for every call. Names are joined by `grown_name`, arguments one after another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from typing import Any

JsonObject = dict[str, Any]
# Merges a delta into what there is.
Merge = Callable[[JsonObject, Mapping[str, Any]], None]


def merge_deltas(calls: list[Any], deltas: Sequence[Any], *, merge: Merge) -> None:
    """These deltas are part of the calls."""
    for delta in deltas:
        if not isinstance(delta, dict):
            calls.append(delta)
            continue
        found = _find(calls, delta)
        if found is None:
            calls.append(found := {})
        # Kept from the first delta on, for an index that comes later means another call.
        index = {"index": found["index"]} if "index" in found else {}
        merge(found, {**_written(delta), **index})


def joined_name(had: str, more: str) -> str:
    """A name after a further piece of it. A piece that repeats what is there, or says it and more, stands for the whole.

    So a name whose second piece equals its first ("ta", "ta") is taken for one that was repeated: servers that repeat names are many,
    those that cut names are few and cut at tokens.
    """
    return more if more.startswith(had) else had + more


def _find(calls: Sequence[Any], delta: Mapping[str, Any]) -> JsonObject | None:
    known = [call for call in reversed(calls) if isinstance(call, dict)]
    call_id, index = delta.get("id"), delta.get("index")
    index = index if isinstance(index, int) else None
    if call_id:
        same = [call for call in known if call.get("id") == call_id]
        return _first(same, lambda call: index is None or call.get("index") in (None, index)) or _first(
            known, lambda call: not call.get("id") and index is not None and call.get("index") == index
        )
    found = _first(known, lambda call: index is None or call.get("index") in (None, index))
    return None if found is not None and _begins_anew(found, delta) else found


def _first(calls: Sequence[JsonObject], fits: Callable[[JsonObject], bool]) -> JsonObject | None:
    return next(filter(fits, calls), None)


def _begins_anew(call: Mapping[str, Any], delta: Mapping[str, Any]) -> bool:
    """Whether this delta is of another call than the one at its place: its arguments would make complete ones broken."""
    had, more = _function(call), _function(delta)
    arguments = more.get("arguments")
    if not more.get("name") or not isinstance(arguments, str | dict) or not arguments:
        return False
    if isinstance(arguments, str) and not arguments.lstrip().startswith("{"):
        return False
    grown = had.get("arguments")
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


def _written(delta: JsonObject) -> JsonObject:
    """Its arguments as text: some servers send the object itself."""
    arguments = _function(delta).get("arguments")
    if not isinstance(arguments, dict | list):
        return delta
    return {**delta, "function": {**delta["function"], "arguments": json.dumps(arguments, separators=(",", ":"))}}

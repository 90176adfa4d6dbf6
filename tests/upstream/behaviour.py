"""The misbehaviour of one call, set by the control API, or by a marker such as [[fake:status=500;times=1]] in the prompt."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from tests.upstream import surplus
from tests.upstream.usages import USAGES

_MARKER = re.compile(r"\[\[fake:([^\]]*)\]\]")
PLACES = {"hang": ("before", "headers"), "reset": ("before", "body")}
GARBAGE = ("html", "truncated", "nul", "surrogate", "nan", "long", "short", "empty", "type", "binary", "not_http", "no_content",
           "trailing_comma", "objects")  # fmt: skip
# Valid answers in an encoding that the client has to undo.
PACKED = ("gzip", "zlib", "deflate", "br", "zstd", "gzip_unlabelled", "gzip_label", "latin1", "latin1_unlabelled", "utf16", "bom", "list",
          "junk", "sse", "sse_json", "done_blank", "no_blank", "no_last_line")  # fmt: skip
# Shapes of an error body.
SHAPES = ("detail", "detail_list", "flat", "message", "text", "string", "errors", "problem", "list", "gzip", "latin1", "html", "empty",
          "in_200", "in_200_list", "in_200_null")  # fmt: skip
KINDS = ("rate", "rate_no_retry_after", "quota", "quota_legacy", "slow_down", "html")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Any of these together, applied in this order. A name without value in a marker means yes, or the first choice."""

    hold: bool = False  # until /_fake/release, 60 s at most
    delay: tuple[float, float] | None = None  # s, or minimum-maximum
    informational: int | None = None  # 100, 102, 103: first send one informational response
    hang: str | None = None  # before any byte, or after the headers
    reset: str | None = None  # TCP reset before any byte, or in the middle of the body
    status: int | None = None  # an error in OpenAI's shape
    kind: str | None = None  # the kind of 429; html: the error page of a proxy
    code: str | None = None  # another error.code
    retry_after: float | None = None  # s
    redirect: str | None = None  # 307, or `status`, to this location
    garbage: str | None = None  # 200 with an invalid answer
    packed: str | None = None  # 200 with an encoded answer
    shape: str | None = None  # of the error that `status` sets; in_200: the error with status 200
    huge_mb: float | None = None  # MB of padding in the JSON
    picture_mb: float | None = None  # additional MB of base64 in each image
    drip: int | None = None  # bytes/s of the body; for streams see chunk_delay
    chunk_delay: float | None = None  # s before each event of a stream
    hold_after: int | None = None  # events of a stream, then as hold
    cut_after: int | None = None  # events of a stream, then the connection closes
    error_after: int | None = None  # events of a stream, then an error event
    garble_after: int | None = None  # events of a stream, then half an event, terminated as if it were whole
    end_after: int | None = None  # events of a stream, then its regular end
    surplus: str | None = None  # a second answer after the first, in this form; see surplus.KINDS
    leaves: str | None = None  # after the answer, the connection is closed, reset, reset at the next request, or unresponsive
    usage: str | None = None  # one of USAGES: the usage in the answer is wrong or missing
    plain: bool = False  # answer a streamed call without streaming
    times: int | None = None  # number of calls; a marker counts calls with the same text
    probability: float | None = None  # share of the calls; never used up
    prompts: float | None = None  # share of the prompts, selected by their text, always the same ones; never used up

    @classmethod
    def read(cls, given: dict[str, Any]) -> Behaviour:
        """Parse a behaviour. Raises ValueError on an unknown name or value, so that a typo cannot make a test pass."""
        if unknown := set(given) - set(_READERS):
            raise ValueError(f"unknown fake behaviour {sorted(unknown)}, there are {sorted(_READERS)}")
        return cls(**{name: _READERS[name](value) for name, value in given.items()})


@lru_cache(maxsize=1024)
def label(behaviour: Behaviour) -> str:
    """The set options, in one line."""
    asked = ((field.name, getattr(behaviour, field.name)) for field in fields(behaviour))
    return ";".join(f"{name}={value}" for name, value in asked if value is not None and value is not False)


@dataclass
class _Scripted:
    behaviour: Behaviour
    left: int


class Scripts:
    """The scripted behaviours of each key, and how often each marker has occurred."""

    def __init__(self, *, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._scripts: dict[str, list[_Scripted]] = {}
        self._seen: dict[str, int] = {}

    def put(self, key: str, given: list[dict[str, Any]]) -> None:
        behaviours = map(Behaviour.read, given)
        self._scripts[key] = [_Scripted(behaviour, behaviour.times or 1) for behaviour in behaviours]

    def next(self, key: str, text: str) -> Behaviour | None:
        """The behaviour for the next call.

        The marker in the text comes first, then the script of the key, then the script of all keys. Raises ValueError
        on an invalid marker.
        """
        if "[[fake:" in text:
            return self._marked(text)
        return self._scripted(key, text) or self._scripted("*", text)

    def delay_s(self, span: tuple[float, float]) -> float:
        return self._rng.uniform(*span)

    def _marked(self, text: str) -> Behaviour | None:
        pairs = (pair.partition("=") for inside in _MARKER.findall(text) for pair in inside.split(";"))
        behaviour = Behaviour.read({name.strip(): value.strip() for name, _, value in pairs})
        self._seen[text] = seen = self._seen.get(text, 0) + 1
        return None if behaviour.times is not None and seen > behaviour.times else behaviour

    def _scripted(self, key: str, text: str) -> Behaviour | None:
        script = self._scripts.get(key, ())
        for scripted in script:
            chance, prompts = scripted.behaviour.probability, scripted.behaviour.prompts
            if prompts is not None:
                if _place_of(text) < prompts:
                    return scripted.behaviour
            elif chance is not None:
                if self._rng.random() < chance:
                    return scripted.behaviour
            elif scripted.left > 0:
                scripted.left -= 1
                return scripted.behaviour
        return None


def _place_of(text: str) -> float:
    """Map a text to a number from 0 to 1, evenly distributed."""
    return zlib.crc32(text.encode()) / 2**32


def _span(value: object) -> tuple[float, float]:
    parts = value if isinstance(value, list | tuple) else str(value).split("-")
    least, most = float(parts[0]), float(parts[-1])
    return least, most


def _yes(value: object) -> bool:
    return value in (True, "", "1", "true")


def _one_of(*choices: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        chosen = choices[0] if value in (True, "") else str(value)
        if chosen not in choices:
            raise ValueError(f"{chosen!r} is none of {choices}")
        return chosen

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "hold": _yes, "delay": _span, "hang": _one_of(*PLACES["hang"]), "reset": _one_of(*PLACES["reset"]), "status": int,
    "kind": _one_of(*KINDS), "code": str, "retry_after": float, "usage": _one_of(*USAGES),
    "garbage": _one_of(*GARBAGE), "packed": _one_of(*PACKED), "shape": _one_of(*SHAPES), "drip": int,
    "huge_mb": float, "redirect": lambda where: where if isinstance(where, str) and where else "/elsewhere", "informational": int,
    "picture_mb": float,
    "chunk_delay": float, "hold_after": int, "cut_after": int, "error_after": int, "garble_after": int, "end_after": int,
    "surplus": _one_of(*surplus.KINDS), "leaves": _one_of(*surplus.ENDINGS), "plain": _yes, "times": int, "probability": float,
    "prompts": float,
}  # fmt: skip
assert set(_READERS) == {field.name for field in fields(Behaviour)}

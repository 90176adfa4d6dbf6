"""How one call is mistreated: read from the control API, or from a marker such as [[fake:status=500;times=1]] in the prompt."""

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
# Answers that are good once somebody has undone this.
PACKED = ("gzip", "zlib", "deflate", "br", "zstd", "gzip_unlabelled", "gzip_label", "latin1", "latin1_unlabelled", "utf16", "bom", "list",
          "junk", "sse", "sse_json", "done_blank", "no_blank", "no_last_line")  # fmt: skip
# Shapes of an error's body.
SHAPES = ("detail", "detail_list", "flat", "message", "text", "string", "errors", "problem", "list", "gzip", "latin1", "html", "empty",
          "in_200", "in_200_list", "in_200_null")  # fmt: skip
KINDS = ("rate", "rate_no_retry_after", "quota", "quota_legacy", "slow_down", "html")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Any of these together, in this order. A name alone in a marker means yes, or the first of its choices."""

    hold: bool = False  # until /_fake/release, 60 s at most
    delay: tuple[float, float] | None = None  # s, or least-most
    informational: int | None = None  # 100, 102, 103: one such answer first
    hang: str | None = None  # before any byte, or after the headers
    reset: str | None = None  # TCP reset before any byte, or in the middle of the body
    status: int | None = None  # an error in OpenAI's shape
    kind: str | None = None  # which 429; html: as a proxy in front says it
    code: str | None = None  # another error.code
    retry_after: float | None = None  # s
    redirect: str | None = None  # 307, or `status`, to this location
    garbage: str | None = None  # 200, but
    packed: str | None = None  # 200, but its body is
    shape: str | None = None  # of the error that `status` asks for; in_200: said in a 200
    huge_mb: float | None = None  # MB of padding in the JSON
    picture_mb: float | None = None  # MB of base64 more in each picture
    drip: int | None = None  # bytes/s of the body; streams have chunk_delay
    chunk_delay: float | None = None  # s before each event of a stream
    hold_after: int | None = None  # events of a stream, then as hold
    cut_after: int | None = None  # events of a stream, then the connection closes
    error_after: int | None = None  # events of a stream, then an error event
    garble_after: int | None = None  # events of a stream, then half of one as if it were whole
    end_after: int | None = None  # events of a stream, then its proper end
    surplus: str | None = None  # a second answer after the answer, which is of this form; see surplus.KINDS
    leaves: str | None = None  # after the answer the connection is closed, reset, reset at the next request, or deaf
    usage: str | None = None  # of USAGES: the answer says otherwise, or not at all, what it used
    plain: bool = False  # a stream is asked for, the whole answer comes
    times: int | None = None  # this many calls, then none; a marker counts calls with the same text
    probability: float | None = None  # never used up
    prompts: float | None = None  # this share of all prompts, by their text: the same ones each time; never used up

    @classmethod
    def read(cls, said: dict[str, Any]) -> Behaviour:
        """Raises ValueError for a name or a value that means nothing, so that no test passes by a typo."""
        if unknown := set(said) - set(_READERS):
            raise ValueError(f"unknown fake behaviour {sorted(unknown)}, there are {sorted(_READERS)}")
        return cls(**{name: _READERS[name](value) for name, value in said.items()})


@lru_cache(maxsize=1024)
def label(behaviour: Behaviour) -> str:
    """What is asked for, in one line."""
    asked = ((field.name, getattr(behaviour, field.name)) for field in fields(behaviour))
    return ";".join(f"{name}={value}" for name, value in asked if value is not None and value is not False)


@dataclass
class _Scripted:
    behaviour: Behaviour
    left: int


class Scripts:
    """What waits for the next calls of each key, and how often each marker was seen."""

    def __init__(self, *, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._scripts: dict[str, list[_Scripted]] = {}
        self._seen: dict[str, int] = {}

    def put(self, key: str, said: list[dict[str, Any]]) -> None:
        behaviours = map(Behaviour.read, said)
        self._scripts[key] = [_Scripted(behaviour, behaviour.times or 1) for behaviour in behaviours]

    def next(self, key: str, text: str) -> Behaviour | None:
        """The marker in the text, else the next of the key's script, else of that of all keys. Raises ValueError on a bad marker."""
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
    """A number from 0 to 1 for each text, evenly spread."""
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

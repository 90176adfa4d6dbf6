"""The `Prefer` header (RFC 7240): `respond-async` and `wait`. The parser ignores unknown and malformed preferences."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_WORD = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*+")'
# All quantifiers are possessive, so that no header causes backtracking.
_PREFERENCE = re.compile(rf"({_TOKEN})(?:[ \t]*+=[ \t]*+({_WORD}))?+(?:[ \t]*+;[ \t]*+(?:{_TOKEN}(?:[ \t]*+=[ \t]*+{_WORD})?+)?+)*+")
_ELEMENT = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*+"?+)++')
_ESCAPE = re.compile(r"\\(.)")
_SECONDS = re.compile(r"[0-9]++")
# More seconds than any wait.
MAX_DIGITS = 9


@dataclass(frozen=True)
class Preferences:
    """respond_async: the client accepts 202 and a job. wait_s: it prefers the result if that is ready within this time."""

    respond_async: bool = False
    wait_s: int | None = None

    def applied(self) -> str:
        """The value of the header Preference-Applied."""
        return "respond-async" + (f", wait={self.wait_s}" if self.wait_s is not None else "")


def parse(headers: Iterable[str], *, max_wait_s: float) -> Preferences:
    """The preferences in these headers. max_wait_s: the longest `wait`.

    `wait` alone changes nothing: a client without respond-async expects the response of OpenAI and cannot handle 202.
    """
    preferences: dict[str, str] = {}
    for element in _ELEMENT.findall(", ".join(headers)):
        if match := _PREFERENCE.fullmatch(element.strip(" \t")):
            # Only the first of duplicate preferences counts.
            preferences.setdefault(match[1].lower(), _unquote(match[2] or ""))
    if preferences.get("respond-async") != "":
        return Preferences()
    wait = preferences.get("wait", "")
    return Preferences(True, min(int(wait.lstrip("0")[:MAX_DIGITS] or 0), int(max_wait_s)) if _SECONDS.fullmatch(wait) else None)


def _unquote(word: str) -> str:
    return _ESCAPE.sub(r"\1", word[1:-1]) if word.startswith('"') else word

"""What a caller would prefer (RFC 7240): not to be kept waiting, or not for long. What is unknown or malformed is ignored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_WORD = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*+")'
# Possessive throughout: no header makes this look twice.
_PREFERENCE = re.compile(rf"({_TOKEN})(?:[ \t]*+=[ \t]*+({_WORD}))?+(?:[ \t]*+;[ \t]*+(?:{_TOKEN}(?:[ \t]*+=[ \t]*+{_WORD})?+)?+)*+")
_ELEMENT = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*+"?+)++')
_ESCAPE = re.compile(r"\\(.)")
_SECONDS = re.compile(r"[0-9]++")
# More digits than this are more seconds than anybody waits.
DIGITS_MOST = 9


@dataclass(frozen=True)
class Preferences:
    """respond_async: a job at once is welcome (202). wait_s: the answer is still preferred when it is there within this time."""

    respond_async: bool = False
    wait_s: int | None = None

    def applied(self) -> str:
        """As `Preference-Applied` says it."""
        return "respond-async" + (f", wait={self.wait_s}" if self.wait_s is not None else "")


def parse(headers: Iterable[str], *, wait_most_s: float) -> Preferences:
    """What these `Prefer` headers ask for; a longer wait than `wait_most_s` is shortened to it.

    `wait` alone changes nothing: whoever did not say respond-async expects an OpenAI answer, and would not know what to do with 202.
    """
    asked: dict[str, str] = {}
    for element in _ELEMENT.findall(", ".join(headers)):
        if found := _PREFERENCE.fullmatch(element.strip(" \t")):
            # Of a preference that stands twice, only the first counts.
            asked.setdefault(found[1].lower(), _plain(found[2] or ""))
    if asked.get("respond-async") != "":
        return Preferences()
    wait = asked.get("wait", "")
    return Preferences(True, min(int(wait.lstrip("0")[:DIGITS_MOST] or 0), int(wait_most_s)) if _SECONDS.fullmatch(wait) else None)


def _plain(word: str) -> str:
    return _ESCAPE.sub(r"\1", word[1:-1]) if word.startswith('"') else word

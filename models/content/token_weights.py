"""Estimates the tokens of a text without a tokenizer's tables.

A text is reduced to one byte per character, the character's class, and patterns of classes are counted: starts of words, runs of digits
or punctuation, Chinese characters. Each pattern has a weight, fitted to OpenAI's encodings o200k_base and cl100k_base. bytes.translate
and bytes.count do the work, so the time is linear in the length of the text. tests/models/content/test_token_estimate.py compares
with exact counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class _Encoding:
    """Tokens per character of scripts other than ASCII, in addition to the weight of their words and punctuation."""

    latin: float
    latin_east: float
    greek: float
    cyrillic: float
    semitic: float
    indic: float
    symbol: float
    kana: float
    chinese: float
    spoken_chinese: float
    hangul: float
    emoji: float


_O200K = _Encoding(
    latin=0.9, latin_east=1.6, greek=0.27, cyrillic=0.11, semitic=0.4, indic=0.39, symbol=0.9, kana=0.78, chinese=0.7,
    spoken_chinese=1.4, hangul=0.82, emoji=2.2,
)  # fmt: skip
_CL100K = _Encoding(
    latin=2.4, latin_east=2.6, greek=0.82, cyrillic=0.31, semitic=1.0, indic=1.31, symbol=0.9, kana=1.1, chinese=0.9,
    spoken_chinese=3.2, hangul=1.42, emoji=2.8,
)  # fmt: skip
# OpenAI's models with cl100k_base. All newer models use o200k_base, and tokenizers of other vendors are closer to that.
_CL100K_MODELS = ("gpt-4", "gpt-3.5", "text-embedding-")
_O200K_MODELS = ("gpt-4o", "gpt-4.1", "gpt-4.5")

_CONTINUATION = bytes(range(0x80, 0xC0))
_SPANS = (
    (0xC3, 0xC3, b"e"), (0xC4, 0xCB, b"E"), (0xCC, 0xCF, b"g"), (0xD0, 0xD3, b"r"), (0xD4, 0xDF, b"b"), (0xE0, 0xE1, b"i"),
    (0xE3, 0xE3, b"k"), (0xE4, 0xE9, b"c"), (0xEA, 0xED, b"h"), (0xEF, 0xEF, b"k"), (0xF0, 0xFF, b"m"),
)  # fmt: skip


def _classes() -> bytes:
    """From the first byte of a character in UTF-8 to its class: a and A letters, 0, blank, newline, . punctuation, else a script's."""
    table = bytearray(b"s" * 256)
    for code in range(128):
        char = chr(code)
        known = "a" if char.islower() else "A" if char.isupper() else "0" if char.isdigit() else char if char in " \n" else None
        table[code] = ord(known or ("\n" if char.isspace() else "."))
    table[0] = ord("?")
    for first, last, name in _SPANS:
        table[first : last + 1] = name * (last + 1 - first)
    return bytes(table)


def _only(members: bytes, shown: bytes) -> bytes:
    """A table that shows these bytes as one, and all others as blanks."""
    return bytes(shown[0] if code in members else 32 for code in range(256))


_CLASS = _classes()
_LETTER, _DIGIT, _PUNCT = _only(b"aAeEgr", b"a"), _only(b"0", b"0"), _only(b".", b".")
_CONSONANT = _only(b"bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ", b"x")


def estimate_tokens(text: str, *, model: str = "") -> float:
    """The estimated tokens of this text for that model, not rounded."""
    raw = text.encode("utf-8", "surrogatepass")
    # A leading byte of no class, so that a run at the start of the text counts.
    kinds = b"?" + raw.translate(_CLASS, _CONTINUATION)
    letters, digits, puncts = kinds.translate(_LETTER), kinds.translate(_DIGIT), kinds.translate(_PUNCT)
    weight = (
        0.99 * letters.count(b" a") + 0.57 * letters.count(b"a" * 8) + 0.6 * kinds.count(b"aA")
        + 2.43 * raw.translate(_CONSONANT).count(b"xxxx")
        + 1.22 * digits.count(b" 0") + digits.count(b"000") + 1.54 * kinds.count(b" 0")
        + 0.42 * puncts.count(b" .") + 0.25 * puncts.count(b".") - 1.75 * puncts.count(b"." * 8)
        + 0.25 * kinds.count(b"\n") + kinds.count(b"\n ")
    )  # fmt: skip
    # Blanks alone are few tokens, but not zero.
    return max(weight if len(raw) == len(text) else weight + _weigh_scripts(text, kinds, _encoding(model)), len(text) / 100)


# Characters that rarely share a token with a neighbour: words of narrative and speech, and traditional forms.
_LONERS = "了我他她你不着就也都很说這們說來會學國沒對"


def _weigh_scripts(text: str, kinds: bytes, known: _Encoding) -> float:
    chinese = kinds.count(b"c")
    spoken = sum(map(text.count, _LONERS)) if chinese else 0
    return (
        known.latin * kinds.count(b"e") + known.latin_east * kinds.count(b"E") + known.greek * kinds.count(b"g")
        + known.cyrillic * kinds.count(b"r") + known.semitic * kinds.count(b"b") + known.indic * kinds.count(b"i")
        + known.symbol * kinds.count(b"s") + known.kana * kinds.count(b"k") + known.chinese * chinese
        + known.spoken_chinese * spoken + known.hangul * kinds.count(b"h") + known.emoji * kinds.count(b"m")
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _encoding(model: str) -> _Encoding:
    # `ft:gpt-4:acme::x` and `openai/gpt-4` are gpt-4.
    name = model.removeprefix("ft:").rpartition("/")[2].lower()
    return _CL100K if name.startswith(_CL100K_MODELS) and not name.startswith(_O200K_MODELS) else _O200K

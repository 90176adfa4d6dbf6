"""A request's JSON, guarded before it is parsed: size, media type, encoding, depth, and everything that JSON parsers disagree about."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import IO, Any, NoReturn

from flask import Request
from gunicorn.http.errors import ParseException

from api import intake
from models.errors import Invalid, ServingError, TooLarge, UnsupportedMedia
from models.settings import settings
from models.view import JsonObject

DEPTH_MOST = 32
INTEGER_MOST = 2**53
# Long texts are read at once, values one by one: 0.1 s for so many. The upstream takes 300,000 tokens in a request.
PIECES_MOST = 500_000
# A sender that pauses longer than this in the middle of a body is gone, or means harm.
PAUSE_MOST_S = 10
PIECE_BYTES = 256 * 1024

# Atomic groups: an unterminated string full of escapes must not be scanned again from each of its quotes.
_STRING = re.compile(rb'"(?>[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = [0] * 256
for _byte, _by in zip(b"[{]}", (1, 1, -1, -1), strict=True):
    _STEP[_byte] = _by
_SUSPECT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


class Timeout(ServingError):
    """The body did not arrive in time. Send it again, without pauses."""

    code = "request_timeout"
    type = "invalid_request_error"
    status = 408


@dataclass(frozen=True)
class Sent:
    """A JSON body: its bytes, and what they say."""

    content: bytes
    value: JsonObject

    @property
    def said(self) -> bytes:
        """The same bytes for the same JSON."""
        return canonical(self.value)

    def written(self, value: JsonObject) -> tuple[bytes, str | None]:
        """The body that says `value`, and its media type (None: JSON): the very bytes that came when that is what they say."""
        return (self.content if value == self.value else dump(value)), None


def read(request: Request) -> JsonObject:
    """The JSON object that was sent. Raises TooLarge, UnsupportedMedia or Invalid, with a message that says where and what to do."""
    return sent(request).value


def sent(request: Request) -> Sent:
    """The JSON body that was sent. Raises as `read`."""
    _expect_json(request)
    content = receive(request, most=settings().max_body_bytes)
    return Sent(content.removeprefix(codecs.BOM_UTF8), parse(content))


def parse(content: bytes) -> JsonObject:
    """The JSON object in these bytes. Raises Invalid, or UnsupportedMedia for what is not UTF-8."""
    text = _decode(content)
    _refuse_sprawling(content)
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise Invalid(
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.", code="invalid_json"
        ) from error
    if not isinstance(value, dict):
        raise Invalid('The body must be a JSON object: {"…": …}.', code="invalid_json")
    if _SUSPECT.search(text):
        _refuse_unstorable(value)
    return value


def dump(value: object) -> bytes:
    """Compact UTF-8 JSON: what goes to the upstream."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def canonical(value: object) -> bytes:
    """The same bytes for the same JSON, whatever its spaces and the order of its members."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _expect_json(request: Request) -> None:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
        raise UnsupportedMedia
    expect_plain(request)


def expect_plain(request: Request) -> None:
    """Raises UnsupportedMedia for a compressed body: it may grow without end."""
    if request.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise UnsupportedMedia("Compressed bodies are not accepted. Send it as it is, without Content-Encoding.")


def receive(request: Request, *, most: int) -> bytes:
    """Every byte of the body, at most so many, with a length or in chunks; a silent sender does not hold us for ever."""
    connection = request.environ.get("gunicorn.socket")
    try:
        if connection is not None:
            connection.settimeout(PAUSE_MOST_S)
        return _whole(request, most)
    except TimeoutError as error:
        raise Timeout from error
    except ParseException as error:
        raise Invalid("The body's chunks are malformed. HTTP libraries write them by themselves.", code="bad_framing") from error
    except OSError as error:
        raise Invalid("The body broke off. Send it again, whole.") from error
    finally:
        if connection is not None:
            connection.settimeout(None)


def _whole(request: Request, most: int) -> bytes:
    # Read by hand: werkzeug's limited stream cuts a body in chunks off at the limit without a word, and half a text may be JSON.
    length = request.content_length
    if length is None and "wsgi.input_terminated" not in request.environ:
        return b""
    if length is None or length <= most:
        content = b"".join(_pieces(request.environ["wsgi.input"], most + 1 if length is None else length))
        if length is not None and len(content) < length:
            raise Invalid("The body is shorter than its Content-Length. Send it again, whole.")
        if len(content) <= most:
            return content
    raise TooLarge(f"The body is larger than the {most} bytes this server accepts. Send less.")


def _pieces(stream: IO[bytes], wanted: int) -> Iterator[bytes]:
    while wanted and (piece := stream.read(min(PIECE_BYTES, wanted))):
        intake.take(len(piece))
        wanted -= len(piece)
        yield piece


def _decode(content: bytes) -> str:
    if not content.strip():
        raise Invalid("The body is empty. Send a JSON object.", code="invalid_json")
    if not json.detect_encoding(content).startswith("utf-8"):
        raise UnsupportedMedia("The body is UTF-16 or UTF-32. Send UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(f"The body is not UTF-8 at byte {error.start}. Encode it as UTF-8.", code="invalid_json") from error


def _refuse_sprawling(content: bytes) -> None:
    """Raises Invalid for what is nested too deep, or made of so many pieces that reading it would hold up everybody else."""
    # Before anything looks at each string. An escaped quote is none, a few too many count here as one.
    if content.count(b'"') - content.count(b'\\"') > 2 * PIECES_MOST:
        raise _sprawling()
    skeleton = _STRING.sub(b"", content)
    if sum(map(skeleton.count, (b",", b"[", b"{"))) > PIECES_MOST:
        raise _sprawling()
    depth = max(accumulate(map(_STEP.__getitem__, skeleton.translate(None, _NOT_BRACKETS))), default=0)
    if depth > DEPTH_MOST:
        raise Invalid(f"The body is nested {depth} levels deep; at most {DEPTH_MOST} are accepted. Flatten it.", code="too_deep")


def _sprawling() -> Invalid:
    return Invalid(f"The body is made of more than {PIECES_MOST:,} values. Send fewer in one request.", code="too_many_values")


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]  # add says None
        raise Invalid(f"The member {_shown(twice)} stands twice in one object. Send it once.", code="duplicate_key")
    return made


def _integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) > INTEGER_MOST:
        raise Invalid(
            "An integer in the body is beyond ±2^53, where JSON readers disagree. Send it as a string.", code="number_out_of_range"
        )
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _no_constant("A number too large for a double")
    return value


def _no_constant(name: str) -> NoReturn:
    raise Invalid(f"{name} is not a JSON number. Send a finite number, null or a string.", code="number_out_of_range")


def _refuse_unstorable(value: object) -> None:
    for path, text in _strings(value, ""):
        if "\0" in text:
            raise Invalid("A text holds the character U+0000, which cannot be stored. Remove it.", param=path, code="invalid_text")
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise Invalid(
                "A text holds half of a surrogate pair (\\ud800 to \\udfff). Send whole characters.", param=path, code="invalid_text"
            )


def _strings(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from _strings(item, f"{path}[{n}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield path or "a member's name", name
            yield from _strings(item, f"{path}.{_plain(name)}" if path else _plain(name))


def _shown(name: str) -> str:
    return f"`{_plain(name)}`"


def _plain(name: str) -> str:
    """A member's name as it may stand in an answer: short, printable."""
    return "".join(char if char.isprintable() else "?" for char in name[:40])

"""A form with pictures, read in memory: what its fields say, and its bytes again when one of them must change."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from flask import Request
from werkzeug.http import dump_options_header

from api.http import multipart, offload, request_body
from api.http.multipart import Part
from api.http.request_body import Result
from api.submit import options
from models.config.settings import settings
from models.platform.errors import Invalid, UnsupportedMedia
from models.platform.wire import JsonObject

FORM = "multipart/form-data"
# Far beyond the longest prompt that an upstream takes.
FIELD_MOST_BYTES = 1024 * 1024
PICTURES = frozenset({"image", "image[]"})
# RFC 2046: what a boundary may be made of.
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_STEPS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,3})")
_WHOLE = re.compile(r"[0-9]{1,9}")
_GONE = object()


@dataclass(frozen=True)
class Form:
    """value: what the fields say, as the JSON form of the request would; the files named image or image[] are its `images`."""

    content: bytes
    boundary: str
    parts: Sequence[Part]
    value: JsonObject

    def digest(self, line: bytes) -> bytes:
        """SHA-256 of this line and the form, the same for the same parts: a client that asks again may choose another boundary."""
        return hashlib.sha256(line + b"".join(map(_digest, self.parts))).digest()

    def written(self, value: JsonObject) -> tuple[bytes, str]:
        """The form that says `value`, and its media type: the very bytes that came when that is what they say."""
        media = dump_options_header(FORM, {"boundary": self.boundary})
        if value == self.value:
            return self.content, media
        parts = [*filter(None, (self._kept(part, value) for part in self.parts))]
        parts += [multipart.field(name, str(said)) for name, said in value.items() if name not in self.value]
        return multipart.join(parts, self.boundary), media

    def _kept(self, part: Part, value: JsonObject) -> Part | None:
        if part.filename is not None or value.get(part.root, _GONE) == self.value.get(part.root, _GONE):
            return part
        return multipart.field(part.root, str(value[part.root])) if part.root in value else None


def _digest(part: Part) -> bytes:
    made = hashlib.sha256(part.head + b"\r\n\r\n")
    made.update(part.content)
    return made.digest()


def is_form(request: Request) -> bool:
    """Whether a form with files was sent."""
    return request.mimetype == FORM


def parse_form(request: Request, then: Callable[[Form], Result]) -> Result:
    """What `then` makes of the form that was sent, as body.read_then. Raises TooLarge, UnsupportedMedia or Invalid, likewise."""
    boundary = request.mimetype_params.get("boundary", "")
    if not BOUNDARY.fullmatch(boundary):
        raise UnsupportedMedia(f"Send the form with `Content-Type: {FORM}; boundary=…`; HTTP libraries write that by themselves.")
    content = request_body.read_bytes(request, limit=settings().max_upload_bytes)
    return offload.run(len(content), lambda: then(parse(content, boundary)))


def parse(content: bytes, boundary: str) -> Form:
    """The form in these bytes. Raises Invalid."""
    parts = multipart.split(content, boundary)
    value: JsonObject = {}
    for part in parts:
        if part.filename is None:
            _set(value, part)
    pictures = [{"file": part.filename} for part in parts if part.filename is not None and part.name in PICTURES]
    if not pictures:
        raise Invalid("`image` is required: at least one file part named `image` or `image[]`.", param="image")
    return Form(content, boundary, parts, {**value, "images": pictures})


def _set(value: JsonObject, part: Part) -> None:
    """The field of this part has its value. `a[b]` is a member of `a`; names of other forms are left to the upstream."""
    if part.name in PICTURES:
        raise Invalid("`image` must be a file: its part needs a `filename`.", param="image")
    text = _text(part)
    steps = _STEPS.fullmatch(part.name)
    if steps is None or part.name.endswith("[]"):
        return
    at, *inner = [steps[1], *re.findall(r"\[([^\[\]]*)\]", steps[2])]
    inside = value
    for step in inner:
        inside = inside.setdefault(at, {})
        at = step
        if not isinstance(inside, dict):
            raise _twice(part)
    if at in inside:
        raise _twice(part)
    inside[at] = _KINDS.get(part.name, _same)(text, part.name)


def _text(part: Part) -> str:
    if len(part.content) > FIELD_MOST_BYTES:
        raise Invalid(f"A field is longer than {FIELD_MOST_BYTES} bytes. Send less.", param=part.shown, code="invalid_form")
    try:
        text = part.content.decode()
    except UnicodeDecodeError:
        raise Invalid("A field is not UTF-8. Encode it as UTF-8.", param=part.shown, code="invalid_text") from None
    return text


def _whole(text: str, name: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise Invalid(f"`{name}`: must be a whole number.", param=name)
    return int(text)


def _number(text: str, _name: str) -> object:
    # The upstream judges what is none.
    return int(text) if _WHOLE.fullmatch(text) else text


def _flag(text: str, name: str) -> bool:
    if text not in ("true", "false"):
        raise Invalid(f"`{name}`: must be true or false.", param=name)
    return text == "true"


def _seconds(text: str, name: str) -> float:
    return options.parse_seconds(text, named=name)


def _same(text: str, _name: str) -> str:
    return text


# The fields that we read and that are no texts.
_KINDS: Mapping[str, Callable[[str, str], object]] = MappingProxyType(
    {
        "n": _number,
        "stream": _flag,
        "nowserving[max_attempts]": _whole,
        **{f"nowserving[{name}]": _seconds for name in ("expires_in", "expires_in_s", "timeout", "timeout_s")},
    }
)


def _twice(part: Part) -> Invalid:
    return Invalid(f"The field `{part.shown}` stands twice in the form. Send it once.", param=part.shown, code="duplicate_key")

"""Forms with image files (POST /v1/images/edits): parsed into the equivalent JSON, and written again when a field changes."""

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
# Far more than the longest prompt that an upstream accepts.
MAX_FIELD_BYTES = 1024 * 1024
IMAGE_FIELDS = frozenset({"image", "image[]"})
# The syntax of a boundary (RFC 2046).
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PATH = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\]){0,3})")
_WHOLE = re.compile(r"[0-9]{1,9}")
_ABSENT = object()


@dataclass(frozen=True)
class Form:
    """value: the fields as the JSON body of the same request; `images` are the files named image or image[]."""

    content: bytes
    boundary: str
    parts: Sequence[Part]
    value: JsonObject

    def digest(self, prefix: bytes) -> bytes:
        """SHA-256 of this prefix and the parts, without the boundary: a client may choose another one when it retries."""
        return hashlib.sha256(prefix + b"".join(map(_digest, self.parts))).digest()

    def encode(self, value: JsonObject) -> tuple[bytes, str]:
        """The form with this value, and its media type. An unchanged value keeps its original bytes."""
        media_type = dump_options_header(FORM, {"boundary": self.boundary})
        if value == self.value:
            return self.content, media_type
        parts = [*filter(None, (self._updated(part, value) for part in self.parts))]
        parts += [multipart.field(name, str(item)) for name, item in value.items() if name not in self.value]
        return multipart.join(parts, self.boundary), media_type

    def _updated(self, part: Part, value: JsonObject) -> Part | None:
        if part.filename is not None or value.get(part.root, _ABSENT) == self.value.get(part.root, _ABSENT):
            return part
        return multipart.field(part.root, str(value[part.root])) if part.root in value else None


def _digest(part: Part) -> bytes:
    digest = hashlib.sha256(part.head + b"\r\n\r\n")
    digest.update(part.content)
    return digest.digest()


def is_form(request: Request) -> bool:
    """Whether the body is a form with files."""
    return request.mimetype == FORM


def parse_form(request: Request, then: Callable[[Form], Result]) -> Result:
    """Parses the form and returns the result of `then`, as request_body.parse_json. Raises TooLarge, UnsupportedMedia or Invalid."""
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
            _set_field(value, part)
    images = [{"file": part.filename} for part in parts if part.filename is not None and part.name in IMAGE_FIELDS]
    if not images:
        raise Invalid("`image` is required: at least one file part named `image` or `image[]`.", param="image")
    return Form(content, boundary, parts, {**value, "images": images})


def _set_field(value: JsonObject, part: Part) -> None:
    """Adds the field of this part to the value. `a[b]` is a member of `a`; names in other forms are left to the upstream."""
    if part.name in IMAGE_FIELDS:
        raise Invalid("`image` must be a file: its part needs a `filename`.", param="image")
    text = _text(part)
    path = _PATH.fullmatch(part.name)
    if path is None or part.name.endswith("[]"):
        return
    *parents, name = [path[1], *re.findall(r"\[([^\[\]]*)\]", path[2])]
    target = value
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise _duplicate(part)
    if name in target:
        raise _duplicate(part)
    target[name] = _PARSERS.get(part.name, _same)(text, part.name)


def _text(part: Part) -> str:
    if len(part.content) > MAX_FIELD_BYTES:
        raise Invalid(f"A field is longer than {MAX_FIELD_BYTES} bytes. Send less.", param=part.shown, code="invalid_form")
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
    # The upstream refuses other values.
    return int(text) if _WHOLE.fullmatch(text) else text


def _flag(text: str, name: str) -> bool:
    if text not in ("true", "false"):
        raise Invalid(f"`{name}`: must be true or false.", param=name)
    return text == "true"


def _seconds(text: str, name: str) -> float:
    return options.parse_seconds(text, named=name)


def _same(text: str, _name: str) -> str:
    return text


# The fields that we use and that are no strings.
_PARSERS: Mapping[str, Callable[[str, str], object]] = MappingProxyType(
    {
        "n": _number,
        "stream": _flag,
        "nowserving[max_attempts]": _whole,
        **{f"nowserving[{name}]": _seconds for name in ("expires_in", "expires_in_s", "timeout", "timeout_s")},
    }
)


def _duplicate(part: Part) -> Invalid:
    return Invalid(f"The field `{part.shown}` stands twice in the form. Send it once.", param=part.shown, code="duplicate_key")

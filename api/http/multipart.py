"""A strict multipart/form-data parser and writer (RFC 7578), for forms with files.

The upstream parses the same bytes and must find the same parts in them, so the parser accepts no ambiguous form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from werkzeug.http import parse_options_header

from models.platform.errors import Invalid

MAX_PARTS = 200
MAX_HEAD_BYTES = 4_096


@dataclass(frozen=True)
class Part:
    """One part, unchanged. filename None: the part is a field."""

    name: str
    filename: str | None
    head: bytes
    content: bytes

    @property
    def root(self) -> str:
        """The top-level field: `svg` of `svg[model]`."""
        return self.name.partition("[")[0]

    @property
    def shown(self) -> str:
        """The name for an error message: short."""
        return self.name[:64]


def field(name: str, text: str) -> Part:
    """A new field. name: must hold no quotes."""
    return Part(name, None, f'Content-Disposition: form-data; name="{name}"'.encode(), text.encode())


def split(content: bytes, boundary: str) -> Sequence[Part]:
    """The parts of a form. Raises Invalid."""
    return [_parse_part(raw) for raw in _split_parts(content, f"--{boundary}".encode())]


def join(parts: Iterable[Part], boundary: str) -> bytes:
    """A form of these parts. boundary: must occur in none of them, as the boundary of the form that they came from."""
    mark = f"--{boundary}".encode()
    lines = [line for part in parts for line in (mark, b"\r\n", part.head, b"\r\n\r\n", part.content, b"\r\n")]
    return b"".join([*lines, mark, b"--\r\n"])


def malformed(why: str) -> Invalid:
    """The error for a form that cannot be parsed."""
    return Invalid(f"The form cannot be read: {why}. HTTP libraries write forms by themselves.", code="invalid_form")


def _split_parts(content: bytes, mark: bytes) -> Sequence[bytes]:
    """The bytes between the boundaries: head and content of each part."""
    first, *rest = content.split(b"\r\n" + mark, MAX_PARTS + 1)
    if not first.startswith(mark):
        raise malformed("it does not begin with its boundary")
    if len(rest) > MAX_PARTS:
        raise Invalid(f"The form has more than {MAX_PARTS} parts. Send fewer.", code="too_many_parts")
    *parts, last = [first[len(mark) :], *rest]
    if not last.startswith(b"--"):
        raise malformed("its last boundary is missing")
    if not all(part.startswith(b"\r\n") for part in parts):
        raise malformed("a boundary does not end its line")
    return parts


def _parse_part(raw: bytes) -> Part:
    end = raw.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        raise malformed(f"the head of a part does not end within {MAX_HEAD_BYTES} bytes")
    head = raw[2:end]
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError:
        raise malformed("the head of a part is not UTF-8") from None
    values = [line.partition(":")[2] for line in lines if line.partition(":")[0].lower() == "content-disposition"]
    kind, options = parse_options_header(values[0] if len(values) == 1 else "")
    name, filename = options.get("name", ""), options.get("filename")
    if kind != "form-data" or not name or not (name + (filename or "")).isprintable():
        raise malformed("a part does not say its name (`Content-Disposition: form-data; name=…`)")
    if filename is not None and ("/" in filename or "\\" in filename):
        raise Invalid("The name of a file is a path. Send its last part only.", param=name[:64], code="invalid_form")
    return Part(name, filename, head, raw[end + 4 :])

"""The parts of a form with files (multipart/form-data, RFC 7578), cut and put together as bytes.

Strictly: the upstream will read the same bytes, and must find the same parts in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from werkzeug.http import parse_options_header

from models.platform.errors import Invalid

PARTS_MOST = 200
HEAD_MOST_BYTES = 4_096


@dataclass(frozen=True)
class Part:
    """One part as it came. filename: of a file, None: a field."""

    name: str
    filename: str | None
    head: bytes
    content: bytes

    @property
    def root(self) -> str:
        """The field that this is a part of: `svg` of `svg[model]`."""
        return self.name.partition("[")[0]

    @property
    def shown(self) -> str:
        """The name as it may stand in an answer: short."""
        return self.name[:64]


def field(name: str, text: str) -> Part:
    """A new field. name: one of ours, without quotes."""
    return Part(name, None, f'Content-Disposition: form-data; name="{name}"'.encode(), text.encode())


def split(content: bytes, boundary: str) -> Sequence[Part]:
    """The parts of this form. Raises Invalid."""
    return [_part(piece) for piece in _pieces(content, f"--{boundary}".encode())]


def join(parts: Iterable[Part], boundary: str) -> bytes:
    """The form of these parts. boundary: in none of them, as that of the form they came from."""
    mark = f"--{boundary}".encode()
    lines = [line for part in parts for line in (mark, b"\r\n", part.head, b"\r\n\r\n", part.content, b"\r\n")]
    return b"".join([*lines, mark, b"--\r\n"])


def malformed(why: str) -> Invalid:
    """The refusal of a form that cannot be read."""
    return Invalid(f"The form cannot be read: {why}. HTTP libraries write forms by themselves.", code="invalid_form")


def _pieces(content: bytes, mark: bytes) -> Sequence[bytes]:
    """What stands between the boundaries, each with its head."""
    first, *rest = content.split(b"\r\n" + mark, PARTS_MOST + 1)
    if not first.startswith(mark):
        raise malformed("it does not begin with its boundary")
    if len(rest) > PARTS_MOST:
        raise Invalid(f"The form has more than {PARTS_MOST} parts. Send fewer.", code="too_many_parts")
    *pieces, last = [first[len(mark) :], *rest]
    if not last.startswith(b"--"):
        raise malformed("its last boundary is missing")
    if not all(piece.startswith(b"\r\n") for piece in pieces):
        raise malformed("a boundary does not end its line")
    return pieces


def _part(piece: bytes) -> Part:
    end = piece.find(b"\r\n\r\n", 0, HEAD_MOST_BYTES)
    if end < 0:
        raise malformed(f"the head of a part does not end within {HEAD_MOST_BYTES} bytes")
    head = piece[2:end]
    try:
        lines = head.decode().split("\r\n")
    except UnicodeDecodeError:
        raise malformed("the head of a part is not UTF-8") from None
    said = [line.partition(":")[2] for line in lines if line.partition(":")[0].lower() == "content-disposition"]
    kind, names = parse_options_header(said[0] if len(said) == 1 else "")
    name, filename = names.get("name", ""), names.get("filename")
    if kind != "form-data" or not name or not (name + (filename or "")).isprintable():
        raise malformed("a part does not say its name (`Content-Disposition: form-data; name=…`)")
    if filename is not None and ("/" in filename or "\\" in filename):
        raise Invalid("The name of a file is a path. Send its last part only.", param=name[:64], code="invalid_form")
    return Part(name, filename, head, piece[end + 4 :])

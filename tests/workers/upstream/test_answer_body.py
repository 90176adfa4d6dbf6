"""The body of an answer is read as one JSON object, in any charset and wrapping."""

from __future__ import annotations

import json

import pytest

from workers.upstream import answer_body

OBJECT = {"id": "x", "text": "größer"}
TEXT = json.dumps(OBJECT, ensure_ascii=False)
PLAIN = TEXT.encode()

READABLE = {
    "utf-8": (PLAIN, ""),
    "byte order mark": (b"\xef\xbb\xbf" + PLAIN, ""),
    "utf-16": (TEXT.encode("utf-16"), ""),
    "utf-16 big-endian, no mark": (TEXT.encode("utf-16-be"), ""),
    "utf-32": (TEXT.encode("utf-32"), ""),
    "latin-1, labelled": (TEXT.encode("latin-1"), "application/json; charset=ISO-8859-1"),
    "latin-1, not labelled": (TEXT.encode("latin-1"), "application/json"),
    "latin-1, labelled utf-8": (TEXT.encode("latin-1"), "application/json; charset=utf-8"),
    "latin-1, labelled nonsense": (TEXT.encode("latin-1"), "application/json; charset=base64"),
    "koi8-r, labelled": (TEXT.replace("größer", "больше").encode("koi8-r"), "application/json; charset=koi8-r"),
    "a list around it": (b"[" + PLAIN + b"]", ""),
    "blanks around it": (b" \r\n" + PLAIN + b"\n\n", ""),
    "bytes behind it": (PLAIN + b"\r\n0\r\n\r\n", ""),
    "a comment behind it": (PLAIN + b"\n<!-- cached -->", ""),
    "zeros behind it": (PLAIN + b"\x00\x00", ""),
}  # fmt: skip


@pytest.mark.parametrize("form", READABLE)
def test_an_object_is_found_in_every_wrapping(form: str) -> None:
    body, content_type = READABLE[form]
    found = answer_body.json_object(body, content_type) or b""

    assert (OBJECT["id"], "больше" if "koi8" in form else OBJECT["text"]) == tuple(json.loads(found.decode()).values())


UNREADABLE = [
    b"", b"<html>", b"[]", b"1", b'"ok"', b"null", b"{", b"\xff", b"[" * 100_000, b'{"a":1,}', b'{"a":1}{"a":2}', b'{"a":1}\n{"b":2}\n',
    b'[{"a":1},{"b":2}]', b'[{"a":1}', b'{"a":1},', b"data: {}\n\n",
]  # fmt: skip


@pytest.mark.parametrize("body", UNREADABLE)
def test_body_without_exactly_one_object_is_unreadable(body: bytes) -> None:
    assert answer_body.json_object(body) is None


def test_an_object_in_utf8_stays_byte_for_byte() -> None:
    body = b'{ "b":1,\n "a": 1e5, "nan": NaN, "twice":1,"twice":2 }\n'

    assert body == answer_body.json_object(body)


def test_broken_characters_in_utf8_are_replaced_and_the_others_kept() -> None:
    found = json.loads(answer_body.json_object('{"a":"größer '.encode() + b'\xff"}') or b"")

    assert {"a": "größer \ufffd"} == found


@pytest.mark.parametrize("body", [b"data: {}", b"\n\nevent: x", b": comment", b"id:1", b"retry: 1", b"data:{}"])
def test_events_are_distinguished_from_other_text(body: bytes) -> None:
    assert answer_body.is_event_stream(body)
    assert not answer_body.is_not_event_stream(body.strip())


@pytest.mark.parametrize("body", [b"{", b"[{}]", b"<html>", b"\xff\xfe{\x00", b"\x00{", b'"text"'])
def test_whole_body_is_distinguished_from_events(body: bytes) -> None:
    assert answer_body.is_not_event_stream(body)
    assert not answer_body.is_event_stream(body)


@pytest.mark.parametrize(
    ("body", "is_unreadable", "kept"),
    [
        (b'{"error":{}}', False, (b'{"error":{}}', None)),
        (b"[{}]", False, (b"[{}]", None)),
        (b"[{}]", True, (b"[{}]", "text/html; charset=x")),
        (b"<html>", False, (b"<html>", "text/html; charset=x")),
        (b"", True, (None, None)),
    ],
)
def test_a_body_is_kept_with_its_type_unless_it_is_json(body: bytes, is_unreadable: bool, kept: object) -> None:
    assert kept == answer_body.body_to_store(body, {"content-type": "text/html; charset=x"}, is_unreadable=is_unreadable)


@pytest.mark.parametrize("named", ["", "text", "text/html\r\nx: 1", "text/html\n;x", "é/ü", "a/b;" + "x" * 500])
def test_a_content_type_that_is_none_is_not_kept(named: str) -> None:
    assert "application/octet-stream" == answer_body.media_type({"content-type": named})

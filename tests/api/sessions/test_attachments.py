"""Attachments of sessions: typed by their content, never unpacked, sent with the turns that name them."""

from __future__ import annotations

import base64
import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import TestResponse

from models.platform import wire
from tests.api.http.test_multipart import BOUNDARY, form, part
from tests.support.http_tools import CHAT, Caller, error_of
from tests.support.queue_tools import query
from tests.support.session_tools import SESSION, answer, assistant, claim, fail, say, sent, stored, talk, user

pytestmark = pytest.mark.usefixtures("database")

FORM = f"multipart/form-data; boundary={BOUNDARY}"
PNG = b"\x89PNG\r\n\x1a\n rest"
TXT = "第一行\nsecond line\n".encode()


def archive(*names: str, content: bytes = b"x", **named: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in names:
            zipped.writestr(name, content)
        for name, inside in named.items():
            zipped.writestr(name, inside)
    return made.getvalue()


def ole(stream: str) -> bytes:
    return b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500) + f"{stream}\0".encode("utf-16-le") + bytes(500)


TYPES = "[Content_Types].xml"
GOOD = {
    "a.docx": (archive(TYPES, "word/document.xml"), "word"),
    "a.xlsx": (archive(TYPES, "xl/workbook.xml"), "excel"),
    "a.pptx": (archive(TYPES, "ppt/presentation.xml"), "ppt"),
    "a.doc": (ole("WordDocument"), "word"),
    "a.xls": (ole("Workbook"), "excel"),
    "a.ppt": (ole("PowerPoint Document"), "ppt"),
    "a.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "pdf"),
    "a.zip": (archive("b.txt", "c/d.txt"), "zip"),
    "notes.txt": (TXT, "txt"),
    "table.csv": (b"a,b\r\n1,2\r\n", "txt"),
    "no ending": (b"plain", "txt"),
    "片🍵.png": (PNG, "image"),
}


@pytest.fixture
def caller() -> Caller:
    made = Caller()
    assert 201 == made.post("/v1/sessions", {"id": SESSION}).status_code
    return made


def send(caller: Caller, name: str, content: bytes, *, declared: str = "application/octet-stream", session: str = SESSION) -> TestResponse:
    """Uploads a file as curl does; returns the response."""
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\nContent-Type: {declared}'
    whole = f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return caller.send("POST", f"/v1/sessions/{session}/attachments", data=whole, content_type=FORM)


def attach(caller: Caller, name: str = "notes.txt", content: bytes = TXT) -> str:
    """Uploads a file; returns its id."""
    made = send(caller, name, content)
    assert 201 == made.status_code, made.text
    return str(made.json["data"][0]["id"])


@pytest.mark.parametrize("name", GOOD)
def test_file_type_comes_from_content(caller: Caller, name: str) -> None:
    content, kind = GOOD[name]
    made = send(caller, name, content)

    assert 201 == made.status_code, made.text
    (one,) = made.json["data"]
    assert (name, kind, len(content)) == (one["name"], one["kind"], one["bytes"])
    opened = caller.app.test_client().get(one["url"])
    assert (200, content, "nosniff") == (opened.status_code, opened.data, opened.headers["X-Content-Type-Options"])
    assert opened.headers["Content-Disposition"].startswith("inline" if kind == "image" else "attachment")


def test_downloaded_file_keeps_its_name(caller: Caller) -> None:
    url = send(caller, "报告 1.txt", TXT).json["data"][0]["url"]

    assert "attachment; filename*=UTF-8''%E6%8A%A5%E5%91%8A%201.txt" == caller.get(url).headers["Content-Disposition"]


LIES = [
    ("a.png", TXT, ""), ("a.txt", PNG, ""), ("a.pdf", archive("b.txt"), ""), ("a.docx", archive("b.txt"), ""),
    ("a.docx", archive("word/document.xml"), ""), ("a.xlsx", archive(TYPES, "word/document.xml"), ""), ("a.zip", b"%PDF-1.7", ""),
    ("a.doc", ole("Workbook"), ""), ("a.jpg", PNG, ""), ("notes", PNG, "text/plain"), ("notes", TXT, "image/png"),
    ("a.pdf", b"%PDF-1.7", "application/zip"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "declared"), LIES)
def test_contradicting_file_type_is_refused(caller: Caller, name: str, content: bytes, declared: str) -> None:
    refused = send(caller, name, content, declared=declared or "application/octet-stream")

    assert (400, "wrong_file_type", "file") == (refused.status_code, error_of(refused)["code"], error_of(refused)["param"])
    assert [] == query("SELECT id FROM artifact")


def test_csv_declared_as_excel_is_accepted(caller: Caller) -> None:
    assert 201 == send(caller, "table.csv", b"a,b\n", declared="application/vnd.ms-excel").status_code


@pytest.mark.parametrize(
    "content", [b"", b"\0\1\2", b"MZ\x90\0", b"\x7fELF", b"\xff\xfea\0", ole("Something"), "你好".encode("gbk"), b"RIFF\x10\0\0\0WAVE"]
)
def test_unknown_file_type_is_refused(caller: Caller, content: bytes) -> None:
    refused = send(caller, "thing", content)

    assert (400, "unsupported_file") == (refused.status_code, error_of(refused)["code"])
    assert [] == query("SELECT id FROM artifact")


def bomb(*, members: int, mib: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as zipped:
        for n in range(members):
            zipped.writestr(f"{n}", bytes(mib * 1024 * 1024))
    return made.getvalue()


def boasting() -> bytes:
    """Returns an archive whose directory declares its small member as 4 GB."""
    made = bytearray(archive("a"))
    at = made.index(b"PK\x01\x02")
    made[at + 24 : at + 28] = struct.pack("<L", 2**32 - 2)
    return bytes(made)


BOMBS = {
    "deflated": lambda: bomb(members=1, mib=24),
    "boasting": boasting,
    "many": lambda: archive(*(f"{n}" * 40 for n in range(9_000))),
    "zip64": lambda: archive("a")[:-22] + b"PK\x06\x07" + bytes(16) + archive("a")[-22:],
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("name", ["a.zip", "a.docx"])
def test_archive_bomb_is_refused(caller: Caller, kind: str, name: str) -> None:
    refused = send(caller, name, BOMBS[kind]())

    assert (400, "archive_too_large") == (refused.status_code, error_of(refused)["code"])
    assert [] == query("SELECT id FROM artifact")


@pytest.mark.parametrize(
    "cut", [lambda whole: whole[:-10], lambda whole: whole[:40], lambda whole: b"PK\x05\x06", lambda whole: b"PK\x03\x04" + bytes(300)]
)
def test_broken_archive_is_refused(caller: Caller, cut: Callable[[bytes], bytes]) -> None:
    refused = send(caller, "a.zip", cut(archive("a", "b")))

    assert (400, "broken_file") == (refused.status_code, error_of(refused)["code"])


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\..\\boot.ini", "C:\\a.txt", "a/b.txt", "..", ".", "x" * 201])
def test_path_as_file_name_is_refused(caller: Caller, name: str) -> None:
    refused = send(caller, name, TXT)

    assert (400, "invalid_form") == (refused.status_code, error_of(refused)["code"])
    assert [] == query("SELECT id FROM artifact")


def test_large_file_is_refused(caller: Caller, override: Callable[..., None]) -> None:
    override(max_attachment_bytes=1_024)
    refused = send(caller, "a.txt", b"x" * 1_025)

    assert (413, "request_too_large") == (refused.status_code, error_of(refused)["code"])
    assert 201 == send(caller, "a.txt", b"x" * 1_024).status_code


def test_files_per_session_are_limited(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.content.attachments.MAX_FILES", 1)
    attach(caller)

    assert "too_many_attachments" == error_of(send(caller, "a.txt", TXT))["code"]


@pytest.mark.parametrize(
    "how", [{"json": {}}, {"data": b"x", "content_type": "text/plain"}, {"data": b"x", "content_type": "multipart/form-data"}]
)
def test_body_that_is_no_form_is_refused(caller: Caller, how: dict[str, Any]) -> None:
    assert 415 == caller.send("POST", f"/v1/sessions/{SESSION}/attachments", **how).status_code


def test_form_without_file_names_missing_field(caller: Caller) -> None:
    path = f"/v1/sessions/{SESSION}/attachments"
    refused = caller.send("POST", path, data=form(part("file", "text")), content_type=FORM)

    assert (400, "file") == (refused.status_code, error_of(refused)["param"])


def test_unknown_session_is_refused(caller: Caller) -> None:
    assert 404 == send(caller, "a.txt", TXT, session="unknown").status_code
    assert 404 == send(Caller("sk-stranger", caller.app), "a.txt", TXT).status_code
    assert 1 == len(query("SELECT id FROM conversation"))


# Turns that carry them


def test_model_gets_images_and_texts_and_names_of_other_files(caller: Caller) -> None:
    files = [attach(caller, "cat.png", PNG), attach(caller), attach(caller, "a.pdf", b"%PDF-1.7\n")]
    row = claim(caller, say(caller, {"role": "system", "content": "Look."}, "What is this?", attachments=files))
    result = sent(row)[1]["content"]

    assert {"type": "text", "text": "What is this?"} == result[0]
    assert {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"}} == result[1]
    assert {"type": "text", "text": f"File notes.txt:\n{TXT.decode()}"} == result[2]
    assert "a.pdf" in result[3]["text"]
    assert user("What is this?") == sent(stored(row.id))[1], "what is stored is what was sent"


def test_later_turns_include_attachments(caller: Caller) -> None:
    first = talk(caller, "Read.", attachments=[attach(caller)], reply="Read.")

    assert [*first, assistant("Read."), user("And?")] == talk(caller, "And?")


def test_openai_route_accepts_attachments(caller: Caller) -> None:
    body = {**CHAT["body"], "nowserving": {"conversation": SESSION, "attachments": [attach(caller)]}}
    made = caller.post("/v1/chat/completions", body, headers={"Prefer": "respond-async"})
    row = claim(caller, made.json["id"])

    assert 2 == len(sent(row)[0]["content"])
    assert b"nowserving" not in row.request


def test_attachments_are_shown_with_message(caller: Caller) -> None:
    talk(caller, "Read.", attachments=[attach(caller)])
    asked, answered = caller.get(f"/v1/sessions/{SESSION}/messages?order=asc").json["data"]

    assert ([("notes.txt", "txt")], []) == ([(one["name"], one["kind"]) for one in asked["attachments"]], answered["attachments"])
    assert TXT == caller.get(asked["attachments"][0]["url"]).data


def test_attachment_tokens_are_reserved_once_after_retry(caller: Caller) -> None:
    files = [attach(caller, "long.txt", b"word " * 4_000), attach(caller, "cat.png", PNG)]
    plain = say(caller, "one", session="other")
    row = claim(caller, say(caller, "one", attachments=files))
    fail(row)
    again = caller.post(f"/v1/jobs/{wire.public_id(row.id)}/retry").json["id"]

    assert 5_000 <= row.tokens - stored(wire.parse_id(plain)).tokens <= 5_200
    assert row.tokens == stored(wire.parse_id(again)).tokens
    assert sent(row) == sent(claim(caller, again))


@pytest.mark.parametrize("files", [["art_" + "0" * 32], ["nonsense"], [7], "art_1", ["art_" + "0" * 32] * 21])
def test_unknown_attachments_are_refused(caller: Caller, files: Any) -> None:
    refused = caller.post("/v1/jobs", {**CHAT, "conversation": SESSION, "attachments": files})

    assert refused.status_code in (400, 404)
    assert "attachments" in (error_of(refused)["param"] or "attachments")
    assert [] == query("SELECT id FROM job")


def test_files_of_other_sessions_and_keys_are_refused(caller: Caller) -> None:
    mine, stranger = attach(caller), Caller("sk-stranger", caller.app)
    for who, session in ((caller, "other"), (stranger, SESSION)):
        refused = who.post("/v1/jobs", {**CHAT, "conversation": session, "attachments": [mine]})
        assert (404, "attachments") == (refused.status_code, error_of(refused)["param"])
    assert [] == query("SELECT id FROM job")


def test_attachments_need_conversation_and_chat(caller: Caller) -> None:
    picture = {"endpoint": "/v1/images/generations", "body": {"prompt": "a cat"}}
    for payload in ({**CHAT, "attachments": [attach(caller)]}, {**picture, "conversation": SESSION, "attachments": [attach(caller)]}):
        refused = caller.post("/v1/jobs", payload)
        assert (400, "attachments") == (refused.status_code, error_of(refused)["param"])


def test_attachments_are_deleted_with_session(caller: Caller) -> None:
    url = send(caller, "notes.txt", TXT).json["data"][0]["url"]
    row = claim(caller, say(caller, "Read.", attachments=[attach(caller)]))
    answer(row, "Read.")
    caller.send("DELETE", f"/v1/sessions/{SESSION}")

    assert 404 == caller.get(url).status_code
    assert [] == query("SELECT id FROM artifact")

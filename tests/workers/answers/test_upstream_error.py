"""The upstream's message is extracted from every error shape and put into the four keys of OpenAI's error object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.answers import upstream_error
from workers.answers.error_text import FIELD_BYTES, MESSAGE_BYTES
from workers.answers.upstream_error import UNNAMED

HTML = """<!doctype html><html><head><title>502 Bad Gateway</title><style>b { c: d }</style><script>let x = "<p>";</script></head>
<body><!-- padding --><center><h1>Oops &amp; sorry</h1></center><hr>nginx</body></html>"""


def read(body: object, *, status: int = 400, **headers: str) -> Any:
    result = body if isinstance(body, bytes) else json.dumps(body).encode()
    return upstream_error.error_of(status, {name.replace("_", "-"): value for name, value in headers.items()}, result)


SHAPES: dict[str, tuple[object, dict[str, object]]] = {
    "OpenAI": ({"error": {"message": "no", "type": "t", "param": "p", "code": "c"}}, {"type": "t", "param": "p", "code": "c"}),
    "without type": ({"error": {"message": "no"}}, {}),
    "text in error": ({"error": "no"}, {}),
    "code and text": ({"error": "not_found", "message": "no"}, {"code": "not_found"}),
    "error in error": ({"error": {"error": {"message": "no", "code": "c"}}}, {"code": "c"}),
    "list in error": ({"error": ["no"]}, {}),
    "FastAPI, text": ({"detail": "no"}, {}),
    "FastAPI, object": ({"detail": {"message": "no", "code": "c"}}, {"code": "c"}),
    "FastAPI, error": ({"detail": {"error": {"message": "no", "type": "t"}}}, {"type": "t"}),
    "vLLM": ({"object": "error", "message": "no", "type": "BadRequestError", "param": None, "code": 400},
             {"type": "BadRequestError", "code": 400}),
    "message": ({"message": "no"}, {}),
    "msg": ({"code": 1001, "msg": "no"}, {"code": 1001}),
    "errors": ({"errors": [{"message": "no", "code": "c"}]}, {"code": "c"}),
    "errors, texts": ({"errors": ["no"]}, {}),
    "title": ({"title": "no", "status": 400}, {}),
    "detail behind title": ({"detail": "no", "status": 400}, {}),
    "OAuth": ({"error": "invalid_token", "error_description": "no"}, {"code": "invalid_token"}),
    "Apigee": ({"fault": {"faultstring": "no", "detail": {"errorcode": "c"}}}, {}),
    "Gemini": ([{"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}}], {"code": 400}),
    "AWS": ({"Message": "no"}, {}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_words_are_found(shape: str) -> None:
    body, fields = SHAPES[shape]
    expected = {"message": "no", "type": "invalid_request_error", "param": None, "code": None, **fields}

    assert expected == {name: value for name, value in read(body).items() if name in expected}


def test_upstream_error_keeps_its_param() -> None:
    one, two = {"loc": ["body", "messages", 0, "role"], "msg": "missing", "type": "x"}, {"loc": ["body", "n"], "msg": "too big"}

    assert ("messages.0.role: missing; n: too big", "messages.0.role") == tuple(
        read({"detail": [one, two]})[name] for name in ("message", "param")
    )


def test_title_and_detail_belong_together() -> None:
    assert "Forbidden: no access" == read({"type": "about:blank", "title": "Forbidden", "detail": "no access"})["message"]


def test_html_error_is_reported_as_its_text() -> None:
    result = read(HTML.encode(), status=502, content_type="text/html")

    assert ("The upstream answered 502: 502 Bad Gateway. Oops & sorry nginx", UNNAMED) == (result["message"], result["code"])


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1", "utf-16", "windows-1252"])
def test_text_and_json_are_read_in_every_charset(charset: str) -> None:
    label = f"text/plain; charset={charset}"

    assert "The upstream answered 400: größe" == read("größe".encode(charset), content_type=label)["message"]
    assert "größe" == read('{"detail": "größe"}'.encode(charset), content_type=label)["message"]


@pytest.mark.parametrize("body", [b"", b"   ", b"{}", b"[]", b"null", bytes(range(256)), b"\x00" * 50])
def test_empty_error_is_described_by_its_status(body: bytes) -> None:
    result = read(body, status=502)

    assert ("server_error", UNNAMED) == (result["type"], result["code"])
    assert "502 without saying why" in result["message"]


TYPES = [(400, "invalid_request_error"), (401, "invalid_request_error"), (403, "permission_error"), (404, "invalid_request_error"),
         (409, "invalid_request_error"), (422, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error"),
         (503, "server_error"), (307, "server_error")]  # fmt: skip


@pytest.mark.parametrize(("status", "kind"), TYPES)
def test_a_missing_type_is_that_of_the_status(status: int, kind: str) -> None:
    assert kind == read({"detail": "no"}, status=status)["type"]


MOVED = [
    ("https://u:p@api.example.com/v1/chat/completions?key=secret", "to https://api.example.com/v1/chat", "to https://api.example.com/v1."),
    ("https://api.example.com/v2/models/x", "https://api.example.com/v2/models/x", "to https://api.example.com/v2."),
    ("/elsewhere", "/elsewhere", "Check OPENAI_BASE_URL"),
    ("//[", "without an address", "OPENAI_BASE_URL"),
    ("", "without an address", "OPENAI_BASE_URL"),
]


@pytest.mark.parametrize(("location", "where", "advice"), MOVED)
def test_redirect_error_names_its_target_and_the_setting(location: str, where: str, advice: str) -> None:
    message = read(b"", status=308, location=location)["message"]

    assert where in message
    assert advice in message
    assert "secret" not in message


def test_long_words_are_cut() -> None:
    result = read({"error": {"message": "日" * 3000, "code": "c" * 1000, **{f"x{n}": n for n in range(100)}}})

    assert len(result["message"].encode()) <= MESSAGE_BYTES
    assert len(result["code"].encode()) <= FIELD_BYTES
    assert len(result) < 30


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "errors", "loc", "msg", "title", "code", "x", "type"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON, st.sampled_from([200, 307, 400, 429, 500]))
def test_whatever_comes_there_are_four_keys_that_can_be_stored(body: Any, status: int) -> None:
    result = read(body, status=status)

    assert {"message", "type", "param", "code"} <= set(result)
    assert result["message"].strip()
    assert isinstance(result["type"], str)
    text = json.dumps(result, allow_nan=False, ensure_ascii=False)
    assert b"\\u0000" not in text.encode()
    assert isinstance(upstream_error.status_of(body if isinstance(body, dict) else {}), int)


@given(st.binary(max_size=200), st.text(max_size=40))
def test_whatever_bytes_come_words_can_be_stored(body: bytes, content_type: str) -> None:
    result = read(body, status=500, content_type=content_type)

    assert "\\u0000" not in json.dumps(result)
    result["message"].encode()

"""Image downloads by signed link need no key, expire, and never run in a browser."""

from __future__ import annotations

import base64
import http.client
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text
from uuid_utils.compat import uuid7
from werkzeug.test import TestResponse

from api.http.errors import ConnectionAborted
from api.submit import image_stream
from api.submit.image_stream import ImageReader
from models.content import artifacts
from models.content.image_placeholders import ExtractedImage
from models.database import db
from models.platform import wire
from models.platform.errors import NotFound
from tests.api.server.test_api_server import serving
from tests.support.http_tools import IMAGE, Caller, end, error_of
from tests.support.queue_tools import clean_up, query

pytestmark = pytest.mark.usefixtures("database")

PNG = b"\x89PNG\r\n\x1a\n rest"
SVG = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


@pytest.fixture
def caller() -> Caller:
    return Caller()


def links_of(caller: Caller, *pictures: bytes) -> list[str]:
    """Returns the links of a job that produced these images."""
    name = caller.post("/v1/jobs", IMAGE).json["id"]
    end(caller, name)
    with db.begin() as session:
        artifacts.store(session, wire.parse_id(name), [ExtractedImage(uuid7(), n, content) for n, content in enumerate(pictures)])
    return [artifact["url"] for artifact in caller.get(f"/v1/jobs/{name}").json["artifacts"]]


@pytest.fixture
def links(caller: Caller) -> list[str]:
    return links_of(caller, PNG, b"<script>alert(1)</script>")


def fetch(link: str, *, method: str = "GET", **headers: str) -> TestResponse:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Caller().app.test_client().open(link, method=method, headers=named)


def test_signed_link_opens_image_without_key(links: list[str]) -> None:
    answer = fetch(links[0])

    assert (200, PNG, "image/png", len(PNG)) == (answer.status_code, answer.data, answer.mimetype, answer.content_length)
    assert ("nosniff", "private, no-cache", "default-src 'none'; sandbox") == tuple(
        answer.headers[name] for name in ("X-Content-Type-Options", "Cache-Control", "Content-Security-Policy")
    )


@pytest.mark.parametrize(
    ("content", "kind", "shown"),
    [
        (PNG, "image/png", "inline .png"),
        (b"\xff\xd8\xff\xe0 jpeg", "image/jpeg", "inline .jpg"),
        (b"GIF89a", "image/gif", "inline .gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp", "inline .webp"),
        (SVG, "image/svg+xml", "attachment .svg"),
        (b"\xef\xbb\xbf  <svg onload='alert(1)'/>", "image/svg+xml", "attachment .svg"),
        (b"<script>alert(1)</script>", "application/octet-stream", "attachment .bin"),
        (b"\0", "application/octet-stream", "attachment .bin"),
    ],
)
def test_only_inert_types_are_displayed_inline(caller: Caller, content: bytes, kind: str, shown: str) -> None:
    (link,) = links_of(caller, content)
    disposition, extension = shown.split()
    answer = fetch(link)

    assert (kind, content) == (answer.content_type, answer.data)
    assert f'{disposition}; filename="{link.split("/")[-1].split("?")[0]}{extension}"' == answer.headers["Content-Disposition"]


def test_changed_or_outdated_link_is_refused(links: list[str]) -> None:
    path, query = links[0].split("?")
    old = str(int(time.time()) - 1)
    changed = [
        path,
        f"{path}?{query}x",
        f"{path[:-1]}{'1' if path.endswith('0') else '0'}?{query}",
        links[1].split("?")[0] + "?" + query,
        f"{path}?expires={old}&signature=x",
        "/v1/artifacts/x?expires=1&signature=ü",
    ]

    for link in changed:
        assert (404, "not_found") == (fetch(link).status_code, error_of(fetch(link))["code"])


def test_signed_link_expires(links: list[str], override: Callable[..., None]) -> None:
    override(artifact_url_s=3600)
    id_ = UUID(hex=links[0].split("art_")[1][:32])

    for age_s, opens in ((0, True), (2_600, True), (3_601, False)):
        link = artifacts.artifact_url(id_, now=time.time() - age_s)
        assert (200 if opens else 404) == fetch(link).status_code


def test_job_etag_is_stable_while_links_are_valid(caller: Caller, links: list[str]) -> None:
    name = caller.get("/v1/jobs").json["data"][0]["id"]
    quarter_s = 900
    now = int(time.time()) // quarter_s * quarter_s
    id_ = UUID(hex=links[0].split("art_")[1][:32])

    assert artifacts.artifact_url(id_, now=now) == artifacts.artifact_url(id_, now=now + quarter_s - 1)
    assert artifacts.artifact_url(id_, now=now) != artifacts.artifact_url(id_, now=now + quarter_s)
    assert 304 == caller.get(f"/v1/jobs/{name}", headers={"If-None-Match": caller.get(f"/v1/jobs/{name}").headers["ETag"]}).status_code


# Ranges


def test_head_request_returns_image_size(links: list[str]) -> None:
    answer = fetch(links[0], method="HEAD")

    assert (200, b"", str(len(PNG)), "bytes") == (
        answer.status_code, answer.data, answer.headers["Content-Length"], answer.headers["Accept-Ranges"],
    )  # fmt: skip


def test_known_image_returns_304(links: list[str]) -> None:
    known = fetch(links[0]).headers["ETag"]
    again = fetch(links[0], If_None_Match=known)

    assert (304, b"") == (again.status_code, again.data)
    assert 200 == fetch(links[0], If_None_Match='"another"').status_code


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=2-4", slice(2, 5)),
        ("bytes=9-", slice(9, 20)),
        ("bytes=-7", slice(13, 20)),
        ("bytes=5-1000", slice(5, 20)),
        ("bytes=0-19", slice(0, 20)),
        ("bytes=6-12", slice(6, 13)),
    ],
)
def test_range_request_returns_only_that_range(caller: Caller, monkeypatch: pytest.MonkeyPatch, header: str, expected: slice) -> None:
    monkeypatch.setattr(image_stream, "CHUNK_BYTES", 3)
    content = PNG[:8] + b"twelve bytes"
    (link,) = links_of(caller, content)
    answer = fetch(link, Range=header)

    assert (206, content[expected]) == (answer.status_code, answer.data)
    assert f"bytes {expected.start}-{expected.stop - 1}/20" == answer.headers["Content-Range"]
    assert expected.stop - expected.start == answer.content_length


@pytest.mark.parametrize("header", ["bytes=0-1,3-4", "bytes=x", "lines=0-1", "bytes=-5000", "bytes=4-2", "nonsense"])
def test_invalid_range_returns_whole_image(links: list[str], header: str) -> None:
    answer = fetch(links[0], Range=header)

    assert (200, PNG) == (answer.status_code, answer.data)


def test_range_beyond_end_returns_416_with_size(links: list[str]) -> None:
    answer = fetch(links[0], Range="bytes=5000-")

    assert (416, "range_not_satisfiable") == (answer.status_code, error_of(answer)["code"])
    assert f"bytes */{len(PNG)}" == answer.headers["Content-Range"]


def test_if_range_mismatch_returns_whole_image(links: list[str]) -> None:
    known = fetch(links[0]).headers["ETag"]

    assert 206 == fetch(links[0], Range="bytes=0-1", If_Range=known).status_code
    assert 200 == fetch(links[0], Range="bytes=0-1", If_Range='"another"').status_code


def test_image_deleted_while_sending_aborts_response(links: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_stream, "CHUNK_BYTES", 3)
    content = ImageReader(UUID(hex=links[0].split("art_")[1][:32]), size=len(PNG))

    assert PNG[:3] == next(content)
    query("DELETE FROM artifact")
    with pytest.raises(ConnectionAborted):
        next(content)


def test_result_with_deleted_image_is_not_invented(links: list[str]) -> None:
    assert links
    with db.begin() as session:
        (job_id,) = session.execute(text("SELECT id FROM job")).scalars()
        first, _ = artifacts.by_job(session, job_id)
        assert base64.b64encode(PNG) == artifacts.read_base64(session, first)
        session.execute(text("DELETE FROM artifact"))

        with pytest.raises(NotFound):
            artifacts.read_base64(session, first)


def test_client_detects_truncated_image(caller: Caller, tmp_path: Path) -> None:
    (link,) = links_of(caller, PNG + bytes(30_000_000))
    with serving(tmp_path / "log") as api, closing(http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)) as connection:
        connection.request("GET", link.removeprefix("http://localhost"))
        answer = connection.getresponse()
        assert PNG == answer.read(len(PNG))
        query("DELETE FROM artifact")

        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        assert "image not sent completely" in api.log.read_text()
        assert "signature" not in api.log.read_text()


# Retention


def test_job_and_images_are_deleted_after_retention(caller: Caller, links: list[str]) -> None:
    assert 0 == clean_up(later_days=29)
    assert 200 == fetch(links[0]).status_code
    assert 1 == clean_up(later_days=31)

    assert (404, "not_found") == (fetch(links[0]).status_code, error_of(fetch(links[0]))["code"])
    assert [] == caller.get("/v1/jobs").json["data"]
    for table in ("job", "artifact", "attempt", "job_event"):
        assert 0 == query(f"SELECT count(*) AS left FROM {table}")[0].left, table

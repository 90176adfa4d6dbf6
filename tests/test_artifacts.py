"""Pictures by signed links: opened without a key, until they expire, and never run by a browser."""

from __future__ import annotations

import time

import pytest

from models import artifact, db, view
from tests.http_tools import IMAGE, Caller, end, error_of

pytestmark = pytest.mark.usefixtures("database")

PNG = b"\x89PNG\r\n\x1a\n rest"


@pytest.fixture
def links() -> list[str]:
    caller = Caller()
    name = caller.post("/v1/jobs", IMAGE).json["id"]
    end(caller, name)
    with db.begin() as session:
        artifact.store(session, view.parse_id(name), [PNG, b"<script>alert(1)</script>"])
    return [one["url"] for one in caller.get(f"/v1/jobs/{name}").json["artifacts"]]


def test_a_link_opens_its_picture_without_a_key(links: list[str]) -> None:
    answer = Caller().app.test_client().get(links[0])

    assert (200, PNG, "image/png") == (answer.status_code, answer.data, answer.mimetype)
    assert ("inline", "nosniff", "private, no-store") == tuple(
        answer.headers[name] for name in ("Content-Disposition", "X-Content-Type-Options", "Cache-Control")
    )


def test_what_is_not_a_picture_is_downloaded_not_shown(links: list[str]) -> None:
    answer = Caller().app.test_client().get(links[1])

    assert ("application/octet-stream", "attachment") == (answer.mimetype, answer.headers["Content-Disposition"])


def test_a_changed_or_old_link_opens_nothing(links: list[str]) -> None:
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
        answer = Caller().app.test_client().get(link)
        assert (404, "not_found") == (answer.status_code, error_of(answer)["code"])


def test_a_job_with_pictures_keeps_its_etag_for_a_while(links: list[str]) -> None:
    caller = Caller()
    name = caller.get("/v1/jobs").json["data"][0]["id"]
    answer = caller.get(f"/v1/jobs/{name}")

    assert links
    assert 304 == caller.get(f"/v1/jobs/{name}", headers={"If-None-Match": answer.headers["ETag"]}).status_code

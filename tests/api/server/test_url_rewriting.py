"""Every spelling of an address is served as the plain one, without a redirect; pages and unknown addresses stay where they are."""

from __future__ import annotations

import pytest

from api.server import url_rewriting
from tests.support.http_tools import CHAT, Caller, error_of

CHATS = "/v1/chat/completions"
NAMES = frozenset({"chat", "models", "jobs", "artifacts", "embeddings"})


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (CHATS, CHATS),
        ("/v1//chat/completions", CHATS),
        ("//v1///chat//completions//", CHATS),
        ("/v1/chat/completions/", CHATS),
        ("/chat/completions", CHATS),
        ("/v1/v1/chat/completions", CHATS),
        ("/v1/v1/v1/chat/completions/", CHATS),
        ("/openai/v1/chat/completions", CHATS),
        ("/v1/openai/v1/chat/completions", CHATS),
        ("/v1/chat/completions/chat/completions", CHATS),
        ("/v1/chat/completions/v1/chat/completions", CHATS),
        ("/chat/completions/models", "/v1/models"),
        ("/v1/chat/completions/chatcmpl-1/messages/", "/v1/chat/completions/chatcmpl-1/messages"),
        ("/models/", "/v1/models"),
        ("/models/ft:m:acme/x", "/v1/models/ft:m:acme/x"),
        ("/v1/v1/models/acme%2F%2Fx%3F", "/v1/models/acme%2F%2Fx%3F"),
        ("/v1/jobs/%2F", "/v1/jobs/%2F"),
        ("/jobs/job_1/events/", "/v1/jobs/job_1/events"),
        ("/openai//deployments/d/chat/completions/", "/openai/deployments/d/chat/completions"),
        ("/v1//nothing/", "/v1/nothing"),
        ("/", "/"),
        ("//", "//"),
        ("/ops/", "/ops/"),
        ("/ops//jobs", "/ops//jobs"),
        ("/nothing/v1/models", "/nothing/v1/models"),
    ],
)
def test_an_address_is_read_in_every_spelling(sent: str, meant: str) -> None:
    assert meant == url_rewriting.canonical_path(sent, NAMES)


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("path", ["/v1//jobs", "/v1/jobs/", "/v1/v1/jobs", "//v1//jobs//", "/jobs"])
def test_a_post_keeps_its_body_and_a_get_finds_the_same(path: str) -> None:
    caller = Caller()
    # Of a path that begins with two slashes the test client would take the name of a host.
    host = {"Host": "localhost"}

    made = caller.post(path, CHAT, headers=host)

    assert 202 == made.status_code
    assert [made.json["id"]] == [job["id"] for job in caller.get(f"{path}?limit=5", headers=host).json["data"]]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(("path", "status"), [("/ops/", 200), ("/", 302), ("/docs", 200), ("/docs/", 404), ("/v1/jobs/%2F", 404)])
def test_pages_and_names_with_slashes_are_left_alone(path: str, status: int) -> None:
    answered = Caller().get(path).status_code

    assert status == answered or (path == "/" and answered == 200)  # with a chat page built


@pytest.mark.usefixtures("environment")
def test_a_wrong_method_is_refused_as_at_the_plain_address() -> None:
    answer = Caller().get("/v1//embeddings/")

    assert (405, "method_not_allowed") == (answer.status_code, error_of(answer)["code"])

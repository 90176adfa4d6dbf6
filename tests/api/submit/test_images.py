"""Pictures as base64 or as links: what the upstream is asked, what the caller is answered, and what that costs."""

from __future__ import annotations

import base64
import json
import os
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from uuid_utils.compat import uuid7
from werkzeug.test import TestResponse

from api.submit import images
from models.content import artifacts
from models.content.endpoints import EDITS, IMAGES
from models.content.image_placeholders import ExtractedImage
from models.database import db
from models.jobs import job_rows
from models.jobs.states import JobResult, Status
from models.platform import wire
from models.platform.errors import Invalid
from tests.support.http_tools import Caller, finish, run
from tests.support.programs import processes
from tests.support.programs.processes import Stack
from tests.support.queue_tools import GOOD, query, row
from tests.upstream.images import png
from workers.results import finish as ending
from workers.results.attempt_record import AttemptRecord

PNG = b"\x89PNG\r\n\x1a\n picture"
MB = 1_000_000
# A few of the pieces that are read at a time, in all their shapes.
LITTLE = 12 * MB


@dataclass
class Asked:
    """A job from an OpenAI route whose caller sent `Prefer: respond-async`."""

    body: dict[str, Any]
    caller: Caller = field(default_factory=Caller)
    token: str = field(default_factory=lambda: str(uuid4()))
    name: str = ""

    def __post_init__(self) -> None:
        made = self.post(Prefer="respond-async")
        assert 202 == made.status_code, made.text
        self.name = made.json["id"]

    @property
    def id(self) -> UUID:
        return wire.parse_id(self.name)

    def post(self, **headers: str) -> TestResponse:
        """Sends the request again, with the same Idempotency-Key."""
        return self.caller.post(IMAGES, self.body, headers={"Idempotency-Key": self.token, **headers})

    def look(self) -> dict[str, Any]:
        found = self.caller.get(f"/v1/jobs/{self.name}")
        assert found.content_length == len(found.data)
        return dict(found.json)

    def ends(self, response: bytes, *, transcript: bytes | None = None, status: Status = Status.SUCCEEDED, http_status: int = 200) -> None:
        """It has run, and its result is stored as the worker does it."""
        dispatch_id, found = run(self.caller, self.name), row(self.id)
        result = JobResult(status, http_status, response, transcript=transcript)
        ending.commit(AttemptRecord(self.id, dispatch_id, found.key_id, found.lane_id, found.model, GOOD, result))


def ask(**body: Any) -> Asked:
    return Asked({"model": "gpt-image-2", "prompt": "a cat", **body})


def answered(*contents: bytes, **more: Any) -> bytes:
    """Returns the upstream's response with these images."""
    items = [{"b64_json": base64.b64encode(each).decode(), "revised_prompt": "a cät"} for each in contents]
    return json.dumps({"created": 1, "data": items, "size": "1024x1024", "x_price": 0.10, **more}, indent=1).encode()


def get(link: str) -> bytes:
    """The bytes behind an absolute link to this server."""
    assert link.startswith("http://localhost/")
    return Caller().app.test_client().get(link).data


# What the upstream is asked


@pytest.mark.parametrize("model", ["gpt-image-2", "gpt-image-2.6-flare", "chatgpt-image-latest", "openai/gpt-image-2", None])
@pytest.mark.parametrize(("wanted", "wants_urls"), [("url", True), ("b64_json", False), (None, False)])
def test_openai_models_get_no_fields_that_they_refuse(model: str | None, wanted: str | None, wants_urls: bool) -> None:
    body = {"model": model, "prompt": "a cat", "response_format": wanted}

    assert ({"model": model, "prompt": "a cat"}, wants_urls) == images.prepare(body)
    assert wanted == body["response_format"]


def test_other_models_are_always_asked_for_bytes() -> None:
    asked = {"model": "flux", "response_format": "b64_json"}

    assert (asked, True) == images.prepare({"model": "flux", "response_format": "url"})
    assert (asked, False) == images.prepare(asked)
    assert ({"model": "flux"}, False) == images.prepare({"model": "flux"})


def test_unchanged_value_is_the_same_object() -> None:
    body = {"model": "gpt-image-2", "prompt": "a cat"}

    assert body is images.prepare(body)[0]


def test_links_cannot_be_streamed() -> None:
    with pytest.raises(Invalid) as refused:
        images.prepare({"model": "gpt-image-2", "stream": True, "response_format": "url"})

    assert "response_format" == refused.value.param


@pytest.mark.usefixtures("database", "redis_client")
class TestAsked:
    def test_the_wish_for_links_stays_here(self) -> None:
        job = row(ask(response_format="url", n=2).id)

        assert ({"model": "gpt-image-2", "prompt": "a cat", "n": 2}, True) == (json.loads(job.request), job.wants_urls)

    def test_a_job_is_asked_for_in_the_same_way(self) -> None:
        body = {"model": "flux", "prompt": "a cat", "response_format": "url"}
        made = Caller().post("/v1/jobs", {"endpoint": IMAGES, "body": body})
        job = row(wire.parse_id(made.json["id"]))

        assert ({**body, "response_format": "b64_json"}, True) == (json.loads(job.request), job.wants_urls)

    def test_a_form_says_it_too(self) -> None:
        fields = {"prompt": "a hat", "model": "gpt-image-2", "response_format": "url", 'image"; filename="cat.png': PNG.decode("latin-1")}
        parts = [f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{result}\r\n' for name, result in fields.items()]
        form = "".join([*parts, "--x--\r\n"]).encode("latin-1")
        made = Caller().post(EDITS, data=form, content_type="multipart/form-data; boundary=x", headers={"Prefer": "respond-async"})
        job = row(wire.parse_id(made.json["id"]))

        assert (True, False, True) == (job.wants_urls, b"response_format" in bytes(job.request), PNG in bytes(job.request))

    @pytest.mark.parametrize("wrong", ["png", "", 1, ["url"]])
    def test_anything_else_is_for_the_upstream_to_judge(self, wrong: object) -> None:
        body = {"model": "gpt-image-2", "prompt": "a cat", "response_format": wrong}
        made = Caller().post("/v1/jobs", {"endpoint": IMAGES, "body": body})
        job = row(wire.parse_id(made.json["id"]))

        assert (body, False) == (json.loads(job.request), job.wants_urls)


# What the caller is answered


@pytest.mark.usefixtures("database", "redis_client")
class TestAnswered:
    @pytest.mark.parametrize("n", [1, 2, 10])
    def test_base64_is_to_the_byte_what_the_upstream_sent(self, n: int) -> None:
        body = answered(*[PNG + os.urandom(500_000 + each) for each in range(n)])
        asked = ask(n=n)
        asked.ends(body)
        answer = asked.post()

        assert (200, body, len(body)) == (answer.status_code, answer.data, answer.content_length)
        assert (json.loads(body), n) == (asked.look()["result"], len(asked.look()["artifacts"]))
        assert len(bytes(row(asked.id).response)) < 1_500

    def test_the_last_event_of_a_job_has_its_pictures(self) -> None:
        asked = ask()
        asked.ends(answered(PNG))
        last = asked.caller.get(f"/v1/jobs/{asked.name}/events").text.split("data: ")[-1]

        assert json.loads(answered(PNG)) == json.loads(last)["job"]["result"]

    def test_links_stand_where_base64_stood_and_open_the_pictures(self) -> None:
        asked = ask(response_format="url", n=2)
        asked.ends(answered(PNG, b"\xff\xd8\xff jpeg", usage={"total_tokens": 3}))
        result = asked.post().json

        assert [PNG, b"\xff\xd8\xff jpeg"] == [get(item["url"]) for item in result["data"]]
        assert [{"url", "revised_prompt"}] * 2 == [set(item) for item in result["data"]]
        assert {**json.loads(answered(usage={"total_tokens": 3})), "data": result["data"]} == result
        assert result == asked.look()["result"]

    def test_links_begin_with_the_address_that_was_called(self, override: Callable[..., None]) -> None:
        override(allowed_hosts="*")
        asked = ask(response_format="url")
        asked.ends(answered(PNG))

        for host, begins in (("queue.example:8443", "http://queue.example:8443/v1/artifacts/art_"), ('no"host', "/v1/artifacts/art_")):
            answer = asked.post(Host=host, **{"X-Forwarded-Host": "evil.example"})
            assert answer.json["data"][0]["url"].startswith(begins)

    def test_links_begin_with_the_public_url_where_there_is_one(self, override: Callable[..., None]) -> None:
        asked = ask(response_format="url")
        asked.ends(answered(PNG))
        override(public_url="https://queue.example/")

        assert asked.post().json["data"][0]["url"].startswith("https://queue.example/v1/artifacts/art_")
        assert asked.look()["artifacts"][0]["url"].startswith("https://queue.example/v1/artifacts/art_")

    def test_base64_that_is_not_ours_to_make_again_becomes_a_link_all_the_same(self) -> None:
        asked = ask(response_format="url")
        asked.ends(b'{"created":1,"data":[{"b64_json":"\\/\\/\\/\\/","url":null}]}')
        (item,) = asked.post().json["data"]

        assert ({"url"}, b"\xff\xff\xff") == (set(item), get(item["url"]))

    @pytest.mark.parametrize("wanted", ["url", "b64_json"])
    def test_a_url_of_the_upstream_is_passed_on_and_never_fetched(self, wanted: str) -> None:
        body = b'{"created":1,"data":[{"url":"http://127.0.0.1:1/x.png","b64_json":null},{"b64_json":"no"}]}'
        asked = ask(model="flux", response_format=wanted)
        asked.ends(body)

        assert (json.loads(body), []) == (asked.post().json, asked.look()["artifacts"])

    def test_an_answer_that_is_not_quite_json_is_passed_on(self) -> None:
        body = answered(PNG).replace(b"0.1", b"NaN")
        asked = ask(response_format="url")
        asked.ends(body)

        assert (body, body.decode()) == (asked.post().data, asked.look()["result"])

    def test_an_error_stays_what_it_is(self) -> None:
        asked = ask(response_format="url")
        body = b'{"error":{"message":"no cats","type":"t","param":null,"code":"moderation_blocked"},"data":[{"b64_json":"AAAA"}]}'
        asked.ends(body, status=Status.FAILED, http_status=400)

        assert (400, body) == (asked.post().status_code, asked.post().data)

    def test_an_answer_stored_with_its_base64_is_read_as_before(self) -> None:
        asked = ask(n=2)
        body = answered(PNG, PNG)
        finish(asked.name, run(asked.caller, asked.name), answer=body)
        with db.begin() as session:
            artifacts.store(session, asked.id, [ExtractedImage(uuid7(), n, PNG) for n in range(2)])

        assert (body, json.loads(body)) == (asked.post().data, asked.look()["result"])
        assert [PNG, PNG] == [get(one["url"]) for one in asked.look()["artifacts"]]

    @pytest.mark.parametrize("wanted", ["url", "b64_json"])
    def test_who_knows_a_job_with_pictures_is_not_sent_them_again(self, wanted: str) -> None:
        asked = ask(response_format=wanted)
        asked.ends(answered(PNG))
        known = asked.caller.get(f"/v1/jobs/{asked.name}").headers["ETag"]
        again = asked.caller.get(f"/v1/jobs/{asked.name}", headers={"If-None-Match": known})

        assert (304, b"") == (again.status_code, again.data)

    def test_metadata_that_looks_like_a_mark_is_only_text(self) -> None:
        other = ask()
        other.ends(answered(PNG))
        mark = json.loads(bytes(row(other.id).response))["data"][0]["b64_json"]
        made = Caller("sk-two").post("/v1/jobs", {"endpoint": IMAGES, "body": other.body, "metadata": {"x": mark}})

        assert {"x": mark} == Caller("sk-two").get(f"/v1/jobs/{made.json['id']}").json["metadata"]

    def test_the_stream_of_a_picture_is_whole_for_who_comes_late(self) -> None:
        early = b'event: image_generation.partial_image\ndata: {"b64_json":"AAAA","partial_image_index":0}\n\n'
        last = f'event: image_generation.completed\ndata: {{"b64_json":"{base64.b64encode(PNG).decode()}","usage":{{}}}}\n\n'.encode()
        asked = ask(stream=True)
        asked.ends(answered(PNG), transcript=early + last)
        with db.begin() as session:
            transcript = job_rows.read_transcript(session, asked.id)

        assert early + last == transcript
        assert base64.b64encode(PNG) not in bytes(row(asked.id).transcript)
        assert early + last in asked.caller.get(f"/v1/jobs/{asked.name}/stream").data


# What it costs


@pytest.fixture
def large(database: None, redis_client: object) -> Asked:
    """Ten pictures of 4 MB."""
    asked = ask(n=10)
    asked.ends(answered(*[os.urandom(4 * MB) for _ in range(10)]))
    return asked


@pytest.mark.parametrize("path", ["/v1/jobs/{name}", IMAGES])
def test_a_large_answer_is_never_in_memory_as_a_whole(large: Asked, path: str) -> None:
    client = large.caller.app.test_client()
    headers = {"Authorization": f"Bearer {large.caller.token}", "Idempotency-Key": large.token}
    tracemalloc.start()
    try:
        answer = client.open(
            path.format(name=large.name),
            method="POST" if path == IMAGES else "GET",
            json=large.body if path == IMAGES else None,
            headers=headers,
        )
        sent = sum(map(len, answer.iter_encoded()))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert sent > 53 * MB
    assert most < LITTLE


def test_ten_pictures_are_stored_once(large: Asked) -> None:
    (size,) = query("SELECT pg_column_size(job.response) AS answer, (SELECT sum(length(content)) FROM artifact) AS pictures FROM job")

    assert (40 * MB, True) == (size.pictures, size.answer < 2_000)


# All of it


@pytest.fixture(scope="module")
def stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with processes.running(tmp_path_factory.mktemp("stack")) as made:
        made.pacer()
        made.worker()
        yield made


def test_a_caller_is_answered_with_links_that_work(stack: Stack) -> None:
    body = {"model": "gpt-image-2", "prompt": "a cat", "n": 2, "response_format": "url"}
    answer = Caller().post(IMAGES, body)

    assert 200 == answer.status_code, answer.text
    assert [png("a cat", 0), png("a cat", 1)] == [get(item["url"]) for item in answer.json["data"]]
    assert {"kept": True} == answer.json["x_extra"]


def test_a_streamed_picture_is_stored_once_and_streamed_again(stack: Stack) -> None:
    body = {"model": "gpt-image-2", "prompt": "a dog", "stream": True, "partial_images": 2}
    answer = Caller().post(IMAGES, body)
    name = answer.headers["X-Nowserving-Job-Id"]
    again = Caller().get(f"/v1/jobs/{name}/stream")
    job = row(wire.parse_id(name))

    assert [event for event in again.data.split(b"\n") if event[:1] != b":"] == [one for one in answer.data.split(b"\n") if one[:1] != b":"]
    assert base64.b64encode(png("a dog", 0)) in answer.data
    assert base64.b64encode(png("a dog", 0)) not in bytes(job.transcript) + bytes(job.response)
    assert base64.b64encode(png("a dog", 0)).decode() == Caller().get(f"/v1/jobs/{name}").json["result"]["data"][0]["b64_json"]
    assert [png("a dog", 0)] == [bytes(one.content) for one in query("SELECT content FROM artifact WHERE job_id = :id", id=job.id)]

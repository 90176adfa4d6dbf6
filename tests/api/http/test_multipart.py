"""Forms with pictures: passed on byte for byte, changed only where they must be, refused when two readers might read them differently."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from flask import request
from hypothesis import given
from hypothesis import strategies as st

from api.submit import image_form as forms
from api.submit import openai_parse
from api.submit.openai_parse import ParsedRequest
from models.content.endpoints import EDITS
from models.content.token_estimate import DEFAULT_IMAGE_TOKENS
from models.keys.keys import Key
from models.platform.errors import Invalid
from models.queue.submission import Submission
from tests.support.http_tools import new_app
from tests.support.time_limits import least, seconds

CALLER = Key(id=1, pool_id=1, kind="own")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) + b"\r\n--x\r\n--"
BOUNDARY = "xYz"

pytestmark = pytest.mark.usefixtures("environment")


def part(name: str, content: bytes | str, *, filename: str | None = None) -> bytes:
    """One part, as curl writes it."""
    head = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"\r\nContent-Type: image/png' if filename else "")
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + (content.encode() if isinstance(content, str) else content) + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


IMAGE, PROMPT = part("image", PNG, filename="cat.png"), part("prompt", "a cat")


def read(content: bytes, *, boundary: str = BOUNDARY, headers: dict[str, str] | None = None) -> ParsedRequest:
    media = f"multipart/form-data; boundary={boundary}"
    with new_app().test_request_context(EDITS, method="POST", data=content, content_type=media, headers=headers):
        return openai_parse.parse(request, CALLER, EDITS)


def again(submission: Submission) -> dict[str, str | bytes]:
    """Parses the request for the upstream with an independent parser."""
    with new_app().test_request_context("/", method="POST", data=submission.request, content_type=submission.content_type):
        return {**request.form.to_dict(), **{name: file.read() for name, file in request.files.items()}}


def refused(content: bytes, *, boundary: str = BOUNDARY) -> Invalid:
    with pytest.raises(Invalid) as error:
        read(content, boundary=boundary)
    return error.value


def sent_by_the_sdk(**more: Any) -> tuple[bytes, str]:
    """The body and media type with which openai-python sends an edit."""
    seen: list[httpx2.Request] = []

    def answer(sent: httpx2.Request) -> httpx2.Response:
        seen.append(sent)
        return httpx2.Response(200, json={"created": 1, "data": []})

    client = openai.OpenAI(api_key="k", http_client=httpx2.Client(transport=httpx2.MockTransport(answer)), max_retries=0)
    client.images.edit(prompt="a café", **more)
    return seen[0].read(), seen[0].headers["content-type"]


def test_sdk_requests_pass_byte_for_byte() -> None:
    content, media = sent_by_the_sdk(
        image=[("a.png", PNG), ("b.png", PNG)], mask=("m.png", PNG), model="gpt-image-2", n=3, stream=True, user="u"
    )

    submission = read(content, boundary=media.partition("boundary=")[2]).submission

    assert (content, media) == (submission.request, submission.content_type)
    assert ("gpt-image-2", 3, 3 + 2 * DEFAULT_IMAGE_TOKENS, True, "u") == (
        submission.model,
        submission.images,
        submission.tokens,
        submission.streamed,
        submission.flow,
    )


def test_our_options_are_removed_from_the_form() -> None:
    own = {"priority": "high", "timeout": 12, "metadata": {"a": "b"}, "max_attempts": 2, "idempotency_key": "t1"}
    content, media = sent_by_the_sdk(image=("a.png", PNG), mask=("m.png", PNG), svg={"model": "s"}, extra_body={"nowserving": own})

    made = read(content, boundary=media.partition("boundary=")[2])

    submission = made.submission
    assert ("high", 12.0, {"a": "b"}, 2, "t1") == (
        submission.priority,
        submission.timeout_s,
        submission.metadata,
        submission.max_attempts,
        made.token,
    )
    assert {"prompt": "a café", "svg[model]": "s", "image": PNG, "mask": PNG} == again(submission)


def test_a_header_beats_a_field_of_the_form() -> None:
    made = read(form(IMAGE, PROMPT, part("nowserving[priority]", "low")), headers={"X-Nowserving-Priority": "high"})

    assert "high" == made.submission.priority


def test_the_operators_image_model_is_added_to_the_form(override: Callable[..., None]) -> None:
    override(default_image_model="gpt-image-2")

    submission = read(form(IMAGE, PROMPT)).submission

    assert ("gpt-image-2", {"prompt": "a cat", "model": "gpt-image-2", "image": PNG}) == (submission.model, again(submission))


@pytest.mark.parametrize(
    ("model", "asked", "going", "wants_urls"),
    [("gpt-image-2", "url", None, True), ("gpt-image-2", "b64_json", None, False), ("other", "url", "b64_json", True)],
)
def test_pictures_are_asked_of_the_upstream_as_it_understands(model: str, asked: str, going: str | None, wants_urls: bool) -> None:
    submission = read(form(part("response_format", asked), IMAGE, PROMPT, part("model", model))).submission

    assert (going, wants_urls) == (again(submission).get("response_format"), submission.wants_urls)
    assert (PNG, "a cat", model) == tuple(again(submission)[name] for name in ("image", "prompt", "model"))


def test_a_field_may_change_and_go_without_a_trace_in_the_others() -> None:
    read_form = forms.parse(form(part("a", "1"), IMAGE, part("b", "2"), part("c[d]", "3"), part("f[]", "4")), BOUNDARY)

    content, _ = read_form.encode({"b": "new", "images": read_form.value["images"], "c": {"d": "3"}, "e": "5"})

    assert form(IMAGE, part("b", "new"), part("c[d]", "3"), part("f[]", "4"), part("e", "5")) == content


# What stands near boundaries, and anything.
BYTES = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"-", b"--", b"xY", b"z", b"\0"]) | st.binary(max_size=8), max_size=12).map(
    b"".join
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@given(
    pictures=st.lists(BYTES, min_size=1, max_size=3),
    fields=st.dictionaries(st.from_regex(r"[a-z_]{1,8}(\[[a-z]{1,4}\])?", fullmatch=True), TEXT, max_size=5),
    changed=TEXT,
)
def test_another_json_reader_parses_the_same(pictures: list[bytes], fields: dict[str, str], changed: str) -> None:
    """For any parts: the API refuses the form, or an independent parser reads the same parts from it and from our rebuilt form."""
    fields = {name: text for name, text in fields.items() if name.partition("[")[0] not in ("n", "stream", "image", "changed")}
    content = form(
        *[part("image[]", one, filename="a.png") for one in pictures], part("changed", "x"), *[part(*one) for one in fields.items()]
    )
    try:
        found = forms.parse(content, BOUNDARY)
    except Invalid:
        return

    for want, (sent, media) in (("x", found.encode(found.value)), (changed, found.encode({**found.value, "changed": changed}))):
        if f"--{BOUNDARY}" not in changed:
            with new_app().test_request_context("/", method="POST", data=sent, content_type=media):
                assert {**fields, "changed": want} == request.form.to_dict()
                assert pictures == [one.read() for one in request.files.getlist("image[]")]


def test_one_picture_or_many_under_either_name() -> None:
    one, two = (
        read(form(IMAGE, PROMPT)).submission,
        read(form(part("image[]", PNG, filename="a"), part("image[]", PNG, filename="b"), PROMPT)).submission,
    )

    assert (2 + DEFAULT_IMAGE_TOKENS, 2 + 2 * DEFAULT_IMAGE_TOKENS) == (one.tokens, two.tokens)
    assert ("default", 1) == (one.model, one.images)


def test_the_same_form_is_recognised_under_another_boundary() -> None:
    content = form(IMAGE, PROMPT)
    same, other = content.replace(b"--xYz", b"--other"), form(IMAGE, part("prompt", "a dog"))

    assert read(content).digest == read(same, boundary="other").digest
    assert read(content).digest != read(other).digest


def test_edits_may_come_as_json_too() -> None:
    sent = json.dumps({"prompt": "a cat", "images": [{"image_url": "data:image/png;base64,AA"}] * 2, "model": "p"})
    with new_app().test_request_context(EDITS, method="POST", data=sent, content_type="application/json"):
        submission = openai_parse.parse(request, CALLER, EDITS).submission

    assert (sent.encode(), None, 2 + 2 * DEFAULT_IMAGE_TOKENS) == (submission.request, submission.content_type, submission.tokens)


HEAD = b'Content-Disposition: form-data; name="prompt"'


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_form"),
        (b"x", "invalid_form"),
        (form(), "invalid_request"),
        (b"--xYz\r\n", "invalid_form"),
        (form(IMAGE, PROMPT)[:-6], "invalid_form"),
        (form(IMAGE, PROMPT).replace(b"\r\n", b"\n"), "invalid_form"),
        (b"preamble\r\n" + form(IMAGE, PROMPT), "invalid_form"),
        (form(IMAGE, PROMPT, b"--xYzz\r\n"), "invalid_form"),
        (form(IMAGE, PROMPT, b"--xYz\r\nprompt"), "invalid_form"),
        (form(IMAGE, b"--xYz\r\n\r\nx\r\n"), "invalid_form"),
        (form(IMAGE, b"--xYz\r\n" + HEAD + b"\r\n" + HEAD + b"\r\n\r\nx\r\n"), "invalid_form"),
        (form(IMAGE, b"--xYz\r\n" + HEAD.replace(b"form-data", b"attachment") + b"\r\n\r\nx\r\n"), "invalid_form"),
        (form(IMAGE, b"--xYz\r\n" + HEAD.replace(b"prompt", b"\xff") + b"\r\n\r\nx\r\n"), "invalid_form"),
        (form(IMAGE, b"--xYz\r\n" + HEAD + b"\r\nX: " + b"a" * 5_000 + b"\r\n\r\nx\r\n"), "invalid_form"),
        (form(IMAGE, part("", "x")), "invalid_form"),
        (form(IMAGE, part("a\0b", "x")), "invalid_form"),
        (form(IMAGE, PROMPT, *[part(f"p{n}", "") for n in range(199)]), "too_many_parts"),
        (form(*[part("p", "")] * 100_000), "too_many_parts"),
        (form(part("image", PNG, filename="../cat.png"), PROMPT), "invalid_form"),
        (form(part("image", PNG, filename="c:\\\\cat.png"), PROMPT), "invalid_form"),
        (form(PROMPT), "invalid_request"),
        (form(part("image", PNG), PROMPT), "invalid_request"),
        (form(IMAGE), "invalid_request"),
        (form(part("image", PNG, filename="a"), part("prompt", b"caf\xe9")), "invalid_text"),
        (form(IMAGE, part("prompt", "x" * 1_100_000)), "invalid_form"),
        (form(IMAGE, PROMPT, PROMPT), "duplicate_key"),
        (form(IMAGE, PROMPT, part("n", "1"), part("n", "10")), "duplicate_key"),
        (form(IMAGE, PROMPT, part("svg", "1"), part("svg[model]", "10")), "duplicate_key"),
        (form(IMAGE, PROMPT, part("stream", "yes")), "invalid_request"),
        (form(IMAGE, PROMPT, part("model", "x" * 201)), "invalid_request"),
        (form(IMAGE, PROMPT, part("nowserving", "high")), "invalid_request"),
        (form(IMAGE, PROMPT, part("nowserving[priority]", "urgent")), "invalid_request"),
        (form(IMAGE, PROMPT, part("nowserving[timeout]", "1e3")), "invalid_request"),
        (form(IMAGE, PROMPT, part("nowserving[a][b][c][d]", "1")), None),
        (form(IMAGE, PROMPT, part("x" + "[y]" * 1_000, "1")), None),
    ],
    ids=lambda value: repr(value[-60:]) if isinstance(value, bytes) else str(value),
)
@pytest.mark.usefixtures("database")
def test_a_form_that_is_not_plain_is_refused(content: bytes, code: str | None) -> None:
    if code is None:
        assert read(content).submission.request == content
    else:
        error = refused(content)

        assert (400, code) == (error.status, error.code)


@pytest.mark.parametrize("media", ["", "; boundary=", "; boundary=a%b", '; boundary="a\tb"', "; boundary=" + "x" * 71])
def test_a_form_without_a_boundary_is_refused(media: str) -> None:
    sent = new_app().test_request_context(EDITS, method="POST", data=form(IMAGE), content_type="multipart/form-data" + media)
    with sent, pytest.raises(Invalid) as error:
        openai_parse.parse(request, CALLER, EDITS)

    assert (415, "unsupported_media_type") == (error.value.status, error.value.code)


def test_every_cut_of_a_form_is_refused() -> None:
    content = form(IMAGE, PROMPT)

    for end in range(len(content) - len("\r\n")):
        if not content[:end].endswith(b"--xYz--"):
            refused(content[:end])


def test_an_upload_may_be_larger_than_json_but_not_endless(override: Callable[..., None]) -> None:
    override(max_body_bytes=1_024, max_upload_bytes=10_000)

    assert read(form(part("image", b"x" * 5_000, filename="a"), PROMPT)).submission.request
    assert 413 == refused(form(part("image", b"x" * 10_000, filename="a"), PROMPT)).status


@pytest.mark.parametrize(
    "content",
    [b"\r\n--x" * 2_000_000, form(part("image", b"\r\n--xY" * 2_000_000, filename="a"), PROMPT), b"--xYz\r\n" + b"a" * 20_000_000],
    ids=["boundaries", "almost", "head"],
)
def test_a_hostile_form_costs_little_time(content: bytes) -> None:
    def parse() -> None:
        with contextlib.suppress(Invalid):
            forms.parse(content, "xYz")

    assert least(lambda: seconds(parse, clock=time.thread_time), below=0.5) < 0.5


@pytest.mark.parametrize(("n", "images"), [("11", 11), ("0", 1), ("-1", 1), ("", 1), ("1" * 5_000, 1), ("two", 1)])
def test_a_number_that_only_the_upstream_can_judge_goes_to_it(n: str, images: int) -> None:
    content = form(IMAGE, part("prompt", "a\0b" * 20_000), part("n", n), part("model", ""))

    submission = read(content).submission

    assert (content, images, "default") == (submission.request, submission.images, submission.model)
